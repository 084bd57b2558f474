"""MPT4LM: a frozen text-only LLM learns to see by text-relevant visual prompts, a learnable instruction and adapters,
without alignment pre-training (ECAI 2024, doi 10.3233/FAIA240515)."""

from mmpt.mpt4lm.config import MPT4LMConfig
from mmpt.mpt4lm.host import VisionBesideLM, VisionBesideLMConfig
from mmpt.mpt4lm.layer import MPT4LMLayer
from mmpt.mpt4lm.model import MPT4LMModel
from mmpt.mpt4lm.report import ParameterReport, parameter_report
from mmpt.register import register

register("mpt4lm", MPT4LMConfig, MPT4LMModel)

__all__ = [
    "MPT4LMConfig",
    "MPT4LMLayer",
    "MPT4LMModel",
    "ParameterReport",
    "VisionBesideLM",
    "VisionBesideLMConfig",
    "parameter_report",
]
