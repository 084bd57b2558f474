"""What the PEFT tuners of both methods share: all adapters of a model live in one layer at the root of the host.

Shapes: B rows, T columns.
"""

import re
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn
from transformers import Cache


class RootTuner(BaseTuner):
    """A tuner that adds a layer `NAME` to the host instead of replacing modules in it.

    Checkpoints hold the tuned parts only, under keys that name no module of the host: NAME.PART of the layer, without
    the adapter's name. A subclass sets `NAME`, `prefix` (of every PART) and `tuner_layer_cls`, a `RootLayer`, and says
    what layer to make and what stands for it.
    """

    NAME: ClassVar[str]
    target_module_mapping: ClassVar[dict] = {}

    @property
    def layer(self) -> "RootLayer":
        """The module that holds the adapters."""
        return getattr(self.model, self.NAME)

    def _new_layer(self) -> "RootLayer":
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
                f"{self.tuner_layer_cls.METHOD} runs one adapter for all rows, but got adapter_names={adapter_names}: "
                "leave them out, and set_adapter to one."
            )
        return nullcontext()

    # ---- removal -----------------------------------------------------------------------------------------------

    def _check_merge_allowed(self) -> None:
        raise NotImplementedError(self.tuner_layer_cls.NO_MERGE)

    def _unload_and_optionally_merge(self, merge: bool = True, **kwargs: Any) -> nn.Module:
        if merge:
            self._check_merge_allowed()
        self.layer.detach()
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


class RootLayer(nn.Module, BaseTunerLayer):
    """All adapters of one host.

    A subclass sets `METHOD`, its name, `NO_MERGE`, why its adapters cannot be merged, and `adapter_layer_names`, its
    containers of parts by adapter. It defines `update_layer`, `reset_parameters`, `attach`, which puts its hooks on
    the host, once, and `detach`, which leaves the host as it was found.
    """

    METHOD: ClassVar[str]
    NO_MERGE: ClassVar[str]
    other_param_names = ("settings",)
    # There is no one base weight: PEFT's properties would look for it on `base_layer`.
    weight = bias = None

    def __init__(self):
        super().__init__()
        self.settings: dict[str, Any] = {}
        self.merged_adapters = []
        self._disable_adapters = False
        self._active_adapter = []

    @property
    def active(self) -> str | None:
        """The adapter in force, or None if there is none or they are disabled."""
        if self.disable_adapters:
            return None
        return next((name for name in self.active_adapters if name in self.settings), None)

    def _put(self, adapter_name: str, settings: Any, *parts: nn.Module | nn.Parameter | None) -> None:
        """Hold an adapter and start it; `parts` are in the order of `adapter_layer_names`, None where it has none."""
        for name, part in zip(self.adapter_layer_names, parts, strict=True):
            container = getattr(self, name)
            if adapter_name in container:  # an earlier adapter of this name may have had other parts
                del container[adapter_name]
            if part is not None:
                container[adapter_name] = part
        self.settings[adapter_name] = settings
        self.reset_parameters(adapter_name)
        self.attach()
        self.set_adapter(self.active_adapters)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        if len(names) > 1:
            raise ValueError(f"{self.METHOD} runs one adapter at a time, but got {names}: set one of them.")
        super().set_adapter(names, inference_mode=inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        if not self.settings:
            self.detach()

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise NotImplementedError(self.NO_MERGE)

    def unmerge(self) -> None:
        raise NotImplementedError(f"{self.METHOD} is never merged, so there is nothing to unmerge.")

    def check_inputs(self, cache: Cache | None, known: Any, mask: Any) -> None:
        """Refuse what cannot be right under the active adapter.

        Args:
            cache: the KV cache of a call.
            known: what the cache remembers of the adapter's prompts, or None.
            mask: the attention mask of a call.

        Raises:
            ValueError: a cache of another adapter, a static cache, a mask that is not (B, T).
        """
        filled = known.adapter if known else None
        if cache is not None and cache.get_seq_length() > 0 and filled != self.active:
            raise ValueError(
                f"past_key_values was filled under adapter {filled!r}, but {self.active!r} is active now: start from "
                "an empty cache."
            )
        if self.active is None:
            return
        if getattr(cache, "is_compileable", False):
            raise ValueError(
                f"{self.METHOD} makes room for its prompts in the cache, which a static cache cannot give: "
                "leave cache_implementation out."
            )
        if isinstance(mask, dict) or (mask is not None and mask.ndim != 2):
            raise ValueError(
                f"attention_mask: {self.METHOD} needs the (batch, length) mask to make room for its prompts."
            )


def check_words(ids: list[int] | None, table: nn.Embedding) -> None:
    """Refuse token ids that are not in the embedding table."""
    if ids and max(ids) >= table.num_embeddings:
        raise ValueError(
            f"init_token_ids goes up to {max(ids)}, but the model knows {table.num_embeddings} tokens: use the "
            "model's own tokenizer."
        )


def _shape(shape: torch.Size | None) -> str:
    return "absent" if shape is None else " x ".join(map(str, shape))
