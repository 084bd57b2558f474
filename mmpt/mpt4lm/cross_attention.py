"""Text-relevant visual prompts: learned queries read the question, then the picture. The equations are our reading.

Shapes: B rows, m queries, T text tokens, N patches, D width of the LLM, Dv of the vision tower, w inner width.
"""

import torch
from torch import Tensor, nn


class CrossAttention(nn.Module):
    """From question and picture to m vectors that the LLM reads.

    Q¹ = Q + Attention(LN(Q), LN(X))      X, the question's embeddings; Q¹ = Q without conditioning
    Q² = Q¹ + Attention(LN(Q¹), LN(V))    V, the patch features
    P  = LN(Q²) W + b                     the visual prompts
    """

    def __init__(
        self,
        num_queries: int,
        width: int,
        heads: int,
        text_width: int,
        vision_width: int,
        condition_on_question: bool = True,
        **factory,
    ):
        super().__init__()
        self.queries = nn.Parameter(torch.empty(num_queries, width, **factory))
        self.question = Read(width, heads, text_width, **factory) if condition_on_question else None
        self.picture = Read(width, heads, vision_width, **factory)
        self.norm = nn.LayerNorm(width, **factory)
        self.output = nn.Linear(width, text_width, **factory)

    def reset_parameters(self, size: float) -> None:
        """Start with queries that differ, and with visual prompts of the root mean square `size`.

        The size is the norm's and not W's: a step of Adam has one absolute size, which is large beside so small a W.
        """
        nn.init.normal_(self.queries, std=0.5)
        nn.init.constant_(self.norm.weight, size)
        nn.init.normal_(self.output.weight, std=self.output.in_features**-0.5)
        nn.init.zeros_(self.output.bias)

    def forward(self, text: Tensor, is_question: Tensor, patches: Tensor) -> Tensor:
        """X (B, T, D), which of it is the question (B, T) bool, V (B, N, Dv) → P (B, m, D)."""
        dtype = self.queries.dtype
        q = self.queries.expand(len(patches), -1, -1)  # (B, m, w)
        if self.question is not None:
            q = q + self.question(q, text.to(dtype), ~is_question)
        q = q + self.picture(q, patches.to(dtype), None)
        return self.output(self.norm(q)).to(text.dtype)


class Read(nn.Module):
    """Attention(LN(Q), LN(S)) with keys and values from a source S of another width."""

    def __init__(self, width: int, heads: int, source_width: int, **factory):
        super().__init__()
        self.query_norm = nn.LayerNorm(width, **factory)
        self.source_norm = nn.LayerNorm(source_width, **factory)
        self.attention = nn.MultiheadAttention(
            width, heads, kdim=source_width, vdim=source_width, batch_first=True, **factory
        )

    def forward(self, queries: Tensor, source: Tensor, hidden: Tensor | None) -> Tensor:
        """(B, m, w), (B, S, source width), which of the source is hidden (B, S) bool → (B, m, w)."""
        source = self.source_norm(source)
        return self.attention(self.query_norm(queries), source, source, key_padding_mask=hidden, need_weights=False)[0]
