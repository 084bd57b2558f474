"""How many parameters MPT4LM tunes, with its three parts apart."""

from dataclasses import dataclass

from mmpt.mpt4lm.config import MPT4LMConfig
from mmpt.mpt4lm.host import VisionBesideLM
from mmpt.mpt4lm.layer import build


@dataclass(frozen=True)
class ParameterReport:
    """Counts of parameters.

    Attributes:
        instruction: K · D.
        cross_attention: queries, both attentions with their norms, output.
        adapters: bottlenecks · (2 D r + r + D).
        base: of the LLM, embeddings and head included, what the paper's percentage is of.
        tower: of the frozen vision tower beside it.
    """

    instruction: int
    cross_attention: int
    adapters: int
    base: int
    tower: int

    @property
    def total(self) -> int:
        return self.instruction + self.cross_attention + self.adapters

    @property
    def percent(self) -> float:
        """100 · total / base."""
        return 100 * self.total / self.base


def parameter_report(model: VisionBesideLM, config: MPT4LMConfig) -> ParameterReport:
    """What `config` tunes on `model`; nothing is added to the model, and the meta device will do."""
    instruction, cross_attention, adapters = build(config, model, device="meta")
    return ParameterReport(
        instruction=0 if instruction is None else instruction.numel(),
        cross_attention=0 if cross_attention is None else _count(cross_attention),
        adapters=_count(adapters),
        base=_count(model.language_model),
        tower=_count(model.vision_tower),
    )


def _count(module) -> int:
    return sum(p.numel() for p in module.parameters())
