"""How many parameters M²PT tunes, with the three kinds apart: most of the paper's 0.09 % is the projector.

The output head is never tuned; the paper's code trains all of it.
"""

from dataclasses import dataclass

from torch import nn

from mmpt.m2pt.backbone import find_backbone
from mmpt.m2pt.config import M2PTConfig


@dataclass(frozen=True)
class ParameterReport:
    """Counts of parameters.

    Attributes:
        visual_prompts: layers · Pv · D_vision.
        textual_prompts: layers · Pt · D_text.
        attention_prompts: inside the LLM's attention: layers · 2 · (G · P · D_head + H · F).
        projector: of the tuned copy, 0 if it is not tuned.
        base: LLM (with embeddings and head) and vision encoder, what the paper's percentage is of.
    """

    visual_prompts: int
    textual_prompts: int
    projector: int
    base: int
    attention_prompts: int = 0

    @property
    def prompts(self) -> int:
        return self.visual_prompts + self.textual_prompts + self.attention_prompts

    @property
    def total(self) -> int:
        return self.prompts + self.projector

    @property
    def percent(self) -> float:
        """100 · total / base."""
        return 100 * self.total / self.base


def parameter_report(model: nn.Module, config: M2PTConfig) -> ParameterReport:
    """What `config` tunes on `model`, by formula; nothing is added to the model.

    Args:
        model: a model of one of the families of hosts.py, with or without adapters; the meta device will do.
        config: the configuration to count.

    Raises:
        ValueError: `config` does not fit `model`.
    """
    backbone = find_backbone(model)
    projector = getattr(backbone.projector, "base_layer", backbone.projector)
    head = getattr(backbone.generator, "lm_head", None)
    parts = [backbone.llm, backbone.tower] + ([] if head is None else [head])
    # A tied head is the embedding over again, so count each tensor once.
    weights = {id(p): _count(p) for part in parts for p in part.parameters()}
    for parameter in projector.parameters():  # which may stand inside the tower
        weights.pop(id(parameter), None)
    return ParameterReport(
        visual_prompts=len(backbone.visual_layers(config)) * config.num_visual_prompts * backbone.visual_width,
        textual_prompts=len(backbone.textual_layers(config)) * config.num_textual_prompts * backbone.textual_width,
        projector=sum(p.numel() for p in projector.parameters()) if config.tune_projector else 0,
        base=sum(weights.values()),
        attention_prompts=len(backbone.attention_layers(config)) * _attention_prompts(backbone, config),
    )


def _count(parameter):
    """bitsandbytes packs two numbers of 4 bits into each byte."""
    packed = type(parameter).__name__ == "Params4bit"
    return parameter.numel() * (2 * parameter.element_size() if packed else 1)


def _attention_prompts(backbone, config):
    attention = backbone.textual_blocks[0].self_attn
    heads, groups = attention.config.num_attention_heads, attention.config.num_key_value_heads
    return 2 * (groups * config.num_kv_prompts * attention.head_dim + heads * config.num_feature_prompts)
