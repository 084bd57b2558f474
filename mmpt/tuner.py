"""What the PEFT tuners of both methods share: all adapters of a model live in one layer at the root of the host."""

import re
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn


class RootTuner(BaseTuner):
    """A tuner that adds a layer `NAME` to the host instead of replacing modules in it.

    Checkpoints hold the tuned parts only, under keys that name no module of the host: NAME.PART of the layer, without
    the adapter's name. A subclass sets `NAME`, `prefix` (of every PART), `tuner_layer_cls` and `no_merge`, the reason
    why its adapters cannot be merged, and says what layer to make, what stands for it, and how it is taken off.
    """

    NAME: ClassVar[str]
    no_merge: ClassVar[str]
    target_module_mapping: ClassVar[dict] = {}

    @property
    def layer(self) -> nn.Module:
        """The module that holds the adapters."""
        return getattr(self.model, self.NAME)

    def _new_layer(self) -> nn.Module:
        raise NotImplementedError

    def _detach_layer(self) -> None:
        """Leave the host's own modules as they were found."""
        raise NotImplementedError

    # ---- injection ---------------------------------------------------------------------------------------------

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = getattr(self.model, self.NAME, None) or self._new_layer()
        layer.update_layer(adapter_name, peft_config)
        setattr(self.model, self.NAME, layer)

    def _enable_peft_forward_hooks(self, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Any:
        """What PEFT enters around each call; `adapter_names` is its way to ask for another adapter in each row."""
        if adapter_names is not None:
            raise ValueError(
                f"{self.NAME.upper()} runs one adapter for all rows, but got adapter_names={adapter_names}: "
                "leave them out, and set_adapter to one."
            )
        return nullcontext()

    # ---- removal -----------------------------------------------------------------------------------------------

    def _check_merge_allowed(self) -> None:
        raise NotImplementedError(self.no_merge)

    def _unload_and_optionally_merge(self, merge: bool = True, **kwargs: Any) -> nn.Module:
        if merge:
            self._check_merge_allowed()
        self._detach_layer()
        delattr(self.model, self.NAME)
        del self.model.peft_config
        return self.model

    # ---- checkpoints -------------------------------------------------------------------------------------------

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """base_model.model.m2pt.m2pt_projector.default.linear_1.bias -> m2pt.m2pt_projector.linear_1.bias"""
        return re.sub(rf"^(?:.*\.)?({cls.NAME}\.{cls.prefix}[^.]+)\.{re.escape(adapter_name)}(?=\.|$)", r"\1", key)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Also checks that the adapter fits, since PEFT would drop what it has no place for.

        Raises:
            ValueError: the checkpoint was made for a backbone of another depth or width.
        """
        # transformers' save_pretrained writes the keys with the path that PEFT's own wrapper would give them.
        state_dict = {re.sub(rf"^base_model\.model\.(?={cls.NAME}\.)", "", k): v for k, v in state_dict.items()}
        remapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        part = rf"\b{cls.NAME}\.{cls.prefix}\w+\."
        own, given = (
            {k: v.shape for k, v in state.items() if re.search(pattern, k)}  # what else is given are embeddings
            for pattern, state in ((rf"{part}{re.escape(adapter_name)}(\.|$)", model.state_dict()), (part, remapped))
        )
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
