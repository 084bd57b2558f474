"""M²PT as one would write it first: prompts concatenated and cut off at every layer, logits at every position.

It is what `mmpt.bench` holds the library's implementation against: the same numbers, the slow way. Of the settings
only the paper's: textual prompts first, slots replaced, outputs read out; CLIP's tower with its CLS.

Shapes: B rows, T tokens, N patches, P textual and V visual prompts.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, LlavaForConditionalGeneration


class LiteralM2PT(nn.Module):
    """A frozen LLaVA with prompts of all layers.

    Args:
        textual: (layers, P, D), visual: (tower's layers, V, Dv).
    """

    def __init__(self, model: LlavaForConditionalGeneration, textual: Tensor, visual: Tensor):
        super().__init__()
        self.frozen = (model,)  # in a tuple, so that it is not a child
        self.textual, self.visual = nn.Parameter(textual), nn.Parameter(visual)

    def embed(self, input_ids: Tensor, pixel_values: Tensor) -> tuple[Tensor, int, int]:
        """Embeddings (B, V + T, D) with pictures in their places; where these begin, and how many columns they take.

        Pictures stand at the same column of every row.
        """
        model = self.frozen[0]
        tower = model.model.vision_tower
        patches = tower.pre_layrnorm(tower.embeddings(pixel_values))
        for layer, prompts in zip(tower.encoder.layers, self.visual):
            both = layer(torch.cat([patches, prompts.to(patches).expand(len(patches), -1, -1)], 1), None)
            patches, slots = both[:, : patches.shape[1]], both[:, patches.shape[1] :]
        seen = model.model.multi_modal_projector(torch.cat([slots, patches[:, 1:]], 1))  # without CLS
        text = model.get_input_embeddings()(input_ids)
        start = int((input_ids[0] == model.config.image_token_id).nonzero()[0])
        n = patches.shape[1] - 1
        return torch.cat([text[:, :start], seen, text[:, start + n :]], 1), start, seen.shape[1] - n

    def read(self, embeds: Tensor, cache: DynamicCache | None = None) -> Tensor:
        """Hidden states (B, V + T, D) before the head. Padding, if any, is at the right, where nobody looks at it."""
        llm = self.frozen[0].model.language_model
        P = self.textual.shape[1]
        positions = torch.arange(P + embeds.shape[1], device=embeds.device)[None]
        rotary = llm.rotary_emb(embeds, positions)
        for layer, prompts in zip(llm.layers, self.textual):
            whole = torch.cat([prompts.to(embeds).expand(len(embeds), -1, -1), embeds], 1)
            embeds = layer(whole, position_embeddings=rotary, past_key_values=cache)[:, P:]
        return llm.norm(embeds)

    def forward(self, input_ids: Tensor, pixel_values: Tensor, labels: Tensor, attention_mask: Tensor) -> Tensor:
        """Mean cross-entropy over the labels (B, T), from logits (B, V + T, vocabulary)."""
        embeds, start, V = self.embed(input_ids, pixel_values)
        logits = self.frozen[0].lm_head(self.read(embeds)).float()
        unsaid = labels.new_full((len(labels), V), -100)
        labels = torch.cat([labels[:, :start], unsaid, labels[:, start:]], 1)
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    @torch.inference_mode()
    def generate(self, input_ids: Tensor, pixel_values: Tensor, attention_mask: Tensor, max_new_tokens: int) -> Tensor:
        """Greedy tokens (B, max_new_tokens) after rows of equal length, whatever ends an answer."""
        model, cache = self.frozen[0], DynamicCache(config=self.frozen[0].config.text_config)
        embeds, _, _ = self.embed(input_ids, pixel_values)
        tokens = [model.lm_head(self.read(embeds, cache))[:, -1:].argmax(-1)]
        while len(tokens) < max_new_tokens:
            output = model.model.language_model(tokens[-1], past_key_values=cache, use_cache=True)
            tokens.append(model.lm_head(output.last_hidden_state).argmax(-1))
        return torch.cat(tokens, 1)
