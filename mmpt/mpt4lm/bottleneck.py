"""Bottleneck adapters (Houlsby et al., 2019, arXiv 1902.00751) behind the sublayers of every block of an LLM."""

from torch import Tensor, nn
from transformers import PreTrainedModel


class Bottleneck(nn.Module):
    """h + W_up GELU(W_down h): (…, D) → (…, D), the identity until it is tuned."""

    def __init__(self, width: int, rank: int, **factory):
        super().__init__()
        self.down = nn.Linear(width, rank, **factory)
        self.up = nn.Linear(rank, width, **factory)

    def reset_parameters(self) -> None:
        """Zero the up-projection."""
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        change = self.up(nn.functional.gelu(self.down(hidden.to(self.down.weight.dtype))))
        return hidden + change.to(hidden.dtype)


def sublayers(llm: PreTrainedModel) -> dict[str, nn.Module] | None:
    """Every attention and MLP of an LLM of the Llama or the T5 family, by name; None for another family.

    What they give back is added to the residual stream. Names say where they stand, whatever the LLM calls them:
    "0_attention", "0_mlp"; "encoder_0_attention", "decoder_0_attention", "decoder_0_cross_attention", "decoder_0_mlp".
    """
    found = {}
    if llm.config.is_encoder_decoder:
        for stack in ("encoder", "decoder"):
            for i, block in enumerate(getattr(getattr(llm, stack, None), "block", ())):
                found[f"{stack}_{i}_attention"] = block.layer[0].SelfAttention
                if stack == "decoder":
                    found[f"{stack}_{i}_cross_attention"] = block.layer[1].EncDecAttention
                found[f"{stack}_{i}_mlp"] = block.layer[-1].DenseReluDense
    else:
        for i, block in enumerate(getattr(llm.get_decoder(), "layers", ())):
            if not (hasattr(block, "self_attn") and hasattr(block, "mlp")):
                return None
            found |= {f"{i}_attention": block.self_attn, f"{i}_mlp": block.mlp}
    return found or None
