"""The PEFT tuner of MPT4LM (doi 10.3233/FAIA240515): puts one `MPT4LMLayer` on a host and keeps its checkpoints."""

from peft.tuners.tuners_utils import NoMatchingPeftModuleError

from mmpt.mpt4lm.bottleneck import sublayers
from mmpt.mpt4lm.config import MPT4LMConfig
from mmpt.mpt4lm.host import VisionBesideLM
from mmpt.mpt4lm.layer import MPT4LMLayer
from mmpt.tuner import RootTuner


class MPT4LMModel(RootTuner):
    """MPT4LM on a `VisionBesideLM`; made by `peft.get_peft_model(model, MPT4LMConfig(...))`.

    Inputs are those of the LLM's tokenizer and the tower's image processor: one picture a row as pixel_values, and
    has_image where some rows have none. Logits, labels and last hidden states have the caller's length.
    A decoder's `hidden_states`, `attentions` and KV cache begin with S columns of prompts, K of the instruction and
    m visual ones; an encoder's hold each row's visible columns first: instruction, visual prompts, text.
    Checkpoints hold the tuned parts only, under keys that name no module of the host: mpt4lm.mpt4lm_instruction,
    mpt4lm.mpt4lm_cross_attention.queries, mpt4lm.mpt4lm_adapters.0_mlp.down.weight.

    The prompts act in a forward of the host, hence in `generate`. Not possible: merging, a static cache, pictures that
    come after a cache was begun, several adapters active at once.
    """

    NAME = "mpt4lm"
    prefix = "mpt4lm_"
    tuner_layer_cls = MPT4LMLayer
    layer: MPT4LMLayer

    # ---- injection ---------------------------------------------------------------------------------------------

    def _prepare_adapter_config(self, peft_config: MPT4LMConfig, model_config: dict) -> MPT4LMConfig:
        if not isinstance(self.model, VisionBesideLM):
            raise NoMatchingPeftModuleError(
                f"MPT4LM tunes a text-only LLM with a vision tower beside it, and was given a "
                f"{type(self.model).__name__}: make a host with VisionBesideLM.of(tower, llm)."
            )
        llm = self.model.language_model
        if sublayers(llm) is None:
            raise NoMatchingPeftModuleError(
                f"MPT4LM knows the blocks of the Llama and T5 families, and {type(llm).__name__} has others: use one "
                "of those."
            )
        return peft_config

    def _check_target_module_exists(self, peft_config: MPT4LMConfig, key: str) -> bool:
        # PEFT looks for modules to replace; the tower stands for the one place per model.
        return key == "vision_tower"

    def _new_layer(self) -> MPT4LMLayer:
        return MPT4LMLayer(self.model)
