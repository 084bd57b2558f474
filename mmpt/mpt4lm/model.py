"""The PEFT tuner of MPT4LM (doi 10.3233/FAIA240515): puts one `MPT4LMLayer` on a host and keeps its checkpoints."""

import re
from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTuner, NoMatchingPeftModuleError
from torch import Tensor, nn

from mmpt.mpt4lm.bottleneck import sublayers
from mmpt.mpt4lm.config import MPT4LMConfig
from mmpt.mpt4lm.host import VisionBesideLM
from mmpt.mpt4lm.layer import NO_MERGE, MPT4LMLayer

NAME = "mpt4lm"  # of the layer at the root of the host, hence the first part of every key in a checkpoint


class MPT4LMModel(BaseTuner):
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

    prefix = "mpt4lm_"
    tuner_layer_cls = MPT4LMLayer
    target_module_mapping: ClassVar[dict] = {}

    @property
    def layer(self) -> MPT4LMLayer:
        """The module that holds the adapters."""
        return getattr(self.model, NAME)

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

    def _create_and_replace(
        self,
        peft_config: MPT4LMConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = getattr(self.model, NAME, None) or MPT4LMLayer(self.model)
        layer.update_layer(adapter_name, peft_config)
        setattr(self.model, NAME, layer)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        if not isinstance(adapter_name, str) and len(adapter_name) > 1:
            raise ValueError(f"MPT4LM runs one adapter at a time, but got {list(adapter_name)}: set one of them.")
        super().set_adapter(adapter_name, inference_mode=inference_mode)

    # ---- removal -----------------------------------------------------------------------------------------------

    def _check_merge_allowed(self) -> None:
        raise NotImplementedError(NO_MERGE)

    def _unload_and_optionally_merge(self, merge: bool = True, **kwargs: Any) -> nn.Module:
        if merge:
            self._check_merge_allowed()
        self.layer.detach()
        delattr(self.model, NAME)
        del self.model.peft_config
        return self.model

    # ---- checkpoints -------------------------------------------------------------------------------------------

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """base_model.model.mpt4lm.mpt4lm_instruction.default -> mpt4lm.mpt4lm_instruction"""
        return re.sub(rf"^(?:.*\.)?({NAME}\.{cls.prefix}[^.]+)\.{re.escape(adapter_name)}(?=\.|$)", r"\1", key)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: MPT4LMConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Also checks that the adapter fits, since PEFT would drop what it has no place for.

        Raises:
            ValueError: the checkpoint was made for a backbone of another depth or width.
        """
        # transformers' save_pretrained writes the keys with the path that PEFT's own wrapper would give them.
        state_dict = {k.removeprefix("base_model.model."): v for k, v in state_dict.items()}
        remapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        own = {
            k: v.shape
            for k, v in model.state_dict().items()
            if re.search(rf"\b{NAME}\.{cls.prefix}\w+\.{re.escape(adapter_name)}(\.|$)", k)
        }
        given = {k: v.shape for k, v in remapped.items()}
        wrong = sorted(k for k in own.keys() | given.keys() if own.get(k) != given.get(k))
        if wrong:
            key = wrong[0]
            raise ValueError(
                f"The adapter was made for another backbone ({config.base_model_name_or_path!r}): "
                f"{cls._remove_adapter_name_from_key(key, adapter_name)} is {_shape(given.get(key))} in the file and "
                f"{_shape(own.get(key))} in this model; load it onto the model it was tuned on."
            )
        return remapped


def _shape(shape: torch.Size | None) -> str:
    return "absent" if shape is None else " x ".join(map(str, shape))
