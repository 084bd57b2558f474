"""M²PT: visual prompts in every layer of the vision encoder, textual prompts in every layer of the LLM, and a tuned
interaction layer between the two (Wang et al., EMNLP 2024, arXiv 2409.15657)."""

from mmpt.m2pt.config import M2PTConfig
from mmpt.m2pt.layer import M2PTLayer
from mmpt.m2pt.model import M2PTModel
from mmpt.m2pt.report import ParameterReport, parameter_report
from mmpt.register import register

register("m2pt", M2PTConfig, M2PTModel)

__all__ = ["M2PTConfig", "M2PTLayer", "M2PTModel", "ParameterReport", "parameter_report"]
