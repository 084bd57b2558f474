"""Questions read by an LLM whose visual prompts depend on them, so that no reading of a picture can be shared.

Notation: B questions, S columns read so far, T tokens, V vocabulary.
"""

from dataclasses import dataclass, field

import torch
from peft import PeftModel
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from mmpt.reading import Reading


@dataclass
class DecoderReading(Reading):
    """The state of a decoder behind an encoder: `cache` and `mask` are of what the decoder has read.

    Attributes:
        encoded: what the encoder made of prompts and question, encoder_outputs and attention_mask.
    """

    encoded: dict[str, BaseModelOutput | Tensor] = field(default_factory=dict)

    def ahead(self, ids: Tensor, mask: Tensor | None = None, **options) -> Tensor:
        self.mask = torch.cat([self.mask, torch.ones_like(ids)], 1)
        output = self.backbone.model(
            decoder_input_ids=ids, past_key_values=self.cache, use_cache=True, **self.encoded, **options
        )
        self.cache = output.past_key_values
        return output.logits


@torch.inference_mode()
def read_text(backbone, images, questions) -> Reading:
    """Let the LLM of a `TextBackbone` read B questions, each with its picture."""
    model, batch = backbone.model, backbone.inputs(images, questions)
    if not model.config.is_encoder_decoder:
        positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        output = model(**batch, position_ids=positions, use_cache=True, logits_to_keep=1)
        return Reading(backbone, output.past_key_values, batch["attention_mask"], output.logits[:, -1])
    host = model.get_base_model() if isinstance(model, PeftModel) else model
    inputs = host.llm_inputs(dict(batch))
    encoded = {"encoder_outputs": host.get_encoder()(**inputs), "attention_mask": inputs["attention_mask"]}
    start = torch.full_like(batch["input_ids"][:, :1], model.generation_config.decoder_start_token_id)
    reading = DecoderReading(backbone, None, start[:, :0], None, encoded=encoded)
    reading.logits = reading.ahead(start)[:, -1]
    return reading
