"""The PEFT tuner of M²PT (arXiv 2409.15657): puts one `M2PTLayer` on a LLaVA model and keeps its checkpoints."""

import re
from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from mmpt.m2pt.backbone import find_backbone
from mmpt.m2pt.config import M2PTConfig
from mmpt.m2pt.layer import NO_MERGE, M2PTLayer

NAME = "m2pt"  # of the layer at the root of the host, hence the first part of every key in a checkpoint


class M2PTModel(BaseTuner):
    """M²PT on a LLaVA model; made by `peft.get_peft_model(model, M2PTConfig(...))`.

    Inputs stay those of the base model and its processor: logits, labels and last hidden states have the caller's
    length. `hidden_states`, `attentions` and the KV cache contain the slots; `segments` says which columns those are.
    Checkpoints hold prompts and projector only, under keys that name no module of the host:
    m2pt.m2pt_visual_prompts.3, m2pt.m2pt_textual_prompts.0, m2pt.m2pt_projector.linear_1.weight.

    The prompts act in a forward of the LlavaModel, hence in `generate`; its language model called alone is the base's.
    Not possible: merging (prompts are tokens, not weights), a static cache, pictures that come after a cache was
    begun, several adapters active at once.
    """

    prefix = "m2pt_"
    tuner_layer_cls = M2PTLayer
    target_module_mapping: ClassVar[dict] = {}

    @property
    def layer(self) -> M2PTLayer:
        """The module that holds the adapters."""
        return getattr(self.model, NAME)

    @torch.no_grad()
    def segments(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, pixel_values: Tensor | None = None, **_: Any
    ) -> Tensor:
        """What each column of `hidden_states` and `attentions` holds, for the inputs of a call.

        Returns:
            (B, S) of `mmpt.m2pt.layout` PAD, TEXTUAL, VISUAL, IMAGE, TEXT (0 to 4).
        """
        layer = self.layer
        is_image = layer.backbone.image_mask(input_ids, None)
        images = 0 if pixel_values is None else len(pixel_values)
        is_image = is_image & (images > 0)
        lengths = [int(is_image.sum()) // images] * images if images else []
        return layer.layout(layer.active, is_image, lengths, attention_mask).segments(is_image, attention_mask)

    # ---- injection ---------------------------------------------------------------------------------------------

    def _prepare_adapter_config(self, peft_config: M2PTConfig, model_config: dict) -> M2PTConfig:
        # PEFT looks for modules to replace; the projector stands for the one place per model.
        host = find_backbone(self.model).host
        self._place = next(name for name, module in self.model.named_modules() if module is host.multi_modal_projector)
        return peft_config

    def _check_target_module_exists(self, peft_config: M2PTConfig, key: str) -> bool:
        return key == self._place

    def _create_and_replace(
        self,
        peft_config: M2PTConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = getattr(self.model, NAME, None)
        if layer is None:
            layer = M2PTLayer(find_backbone(self.model))
            layer.update_layer(adapter_name, peft_config)
            setattr(self.model, NAME, layer)
        else:
            layer.update_layer(adapter_name, peft_config)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        if not isinstance(adapter_name, str) and len(adapter_name) > 1:
            raise ValueError(f"M2PT runs one adapter at a time, but got {list(adapter_name)}: set one of them.")
        super().set_adapter(adapter_name, inference_mode=inference_mode)

    # ---- removal -----------------------------------------------------------------------------------------------

    def _check_merge_allowed(self) -> None:
        raise NotImplementedError(NO_MERGE)

    def _unload_and_optionally_merge(self, merge: bool = True, **kwargs: Any) -> nn.Module:
        if merge:
            self._check_merge_allowed()
        self.layer.hooks.detach()
        delattr(self.model, NAME)
        del self.model.peft_config
        return self.model

    # ---- checkpoints -------------------------------------------------------------------------------------------

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """base_model.model.m2pt.m2pt_projector.default.linear_1.bias -> m2pt.m2pt_projector.linear_1.bias"""
        return re.sub(rf"^(?:.*\.)?({NAME}\.{cls.prefix}[^.]+)\.{re.escape(adapter_name)}\.", r"\1.", key)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: M2PTConfig, adapter_name: str, state_dict: dict[str, Tensor]
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
            if re.search(rf"\b{NAME}\.{cls.prefix}\w+\.{re.escape(adapter_name)}\.", k)
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
