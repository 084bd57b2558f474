"""How the prompts act: every hook on the host, put on and taken off in one place.

    vision tower   block i   append the slots at the first listed layer, overwrite (or add to) them at later ones
                   after     take them out of its output, which carries them along   tower.py, packed.py
    projector      f_in      patches to language space                               `Interaction`
    host           features  project the slots, and put them before the patches      `ImageFeatures`
                   before    make room in ids, mask and positions                    `_before_host`
    LLM            block j   overwrite (or add to) the textual slots, or
                             take the textual prompts as keys and values             folded.py
    its attention            learned keys and values before the sequence's own
    host           after     strip the slots                                         `_after_host`

The host is the model inside the one with a head, such as a LlavaModel (hosts.py); the caller's inputs are those of
the base model. Slots stand at the end of the vision sequence: attention there knows no order, and the host never sees
them, so that it may drop, shuffle, pool and pack the patches as it is used to. What one call needs travels with the
call, as a keyword argument down to the blocks or on the tower's output, and what decoding needs travels with the KV
cache; nothing is kept here between calls, so exceptions, threads and interleaved requests cannot mix up pictures.

Shapes: B rows, P prompts, T caller's tokens, S columns with slots, D width.
"""

import inspect
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache

from mmpt.m2pt import packed, tower
from mmpt.m2pt.backbone import images_by_row
from mmpt.m2pt.folded import fold, folds
from mmpt.m2pt.interaction import ImageFeatures, Interaction
from mmpt.m2pt.slots import CALL, SLOTS, CacheSlots, Call

if TYPE_CHECKING:
    from mmpt.m2pt.layer import M2PTLayer


class Hooks:
    """The hooks of one `M2PTLayer` on its host."""

    def __init__(self, layer: "M2PTLayer"):
        self.layer = layer
        self._handles = []

    def attach(self) -> None:
        """Put the hooks on the host, once."""
        if self._handles:
            return
        b = self.layer.backbone
        add = self._handles.append
        kind = packed if b.family.packed else tower
        if b.family.packed:
            add(b.tower.register_forward_pre_hook(partial(packed.before_tower, self.layer), with_kwargs=True))
        add(b.tower.register_forward_hook(partial(kind.after_tower, self.layer), with_kwargs=True))
        for i, block in enumerate(b.visual_blocks):
            add(block.register_forward_pre_hook(partial(kind.before_block, self.layer, i), with_kwargs=True))
            if b.family.packed:
                add(block.register_forward_hook(partial(packed.after_block, self.layer, i), with_kwargs=True))
        for j, block in enumerate(b.textual_blocks):
            add(block.register_forward_pre_hook(partial(self._before_textual_block, j), with_kwargs=True))
            add(block.self_attn.register_forward_pre_hook(partial(self._before_attention, j), with_kwargs=True))
        add(b.host.register_forward_pre_hook(self._before_host, with_kwargs=True))
        add(b.host.register_forward_hook(self._after_host, with_kwargs=True))
        b.host.set_submodule(b.family.projector, Interaction(b.projector, self.layer))
        b.host.get_image_features = ImageFeatures(self.layer)
        if b.generator is not None:
            b.generator._expand_multimodal_outputs = self._expand_multimodal_outputs
            b.generator.prepare_inputs_for_generation = self._prepare_inputs_for_generation

    def detach(self) -> None:
        """Leave the host as it was found."""
        if not self._handles:
            return
        b = self.layer.backbone
        while self._handles:
            self._handles.pop().remove()
        b.host.set_submodule(b.family.projector, b.projector.base_layer)
        del b.host.get_image_features
        if b.generator is not None:
            del b.generator._expand_multimodal_outputs
            del b.generator.prepare_inputs_for_generation

    def _before_textual_block(self, j: int, block: nn.Module, args: tuple, kwargs: dict) -> tuple | None:
        # T¹ = M₁(Pt¹, f_in(Zᴺ), X);  Tʲ = Mⱼ(Ptʲ, Tʲ⁻¹)
        call = kwargs.pop(CALL, None)
        if call is None:
            return None
        settings = self.layer.settings[call.adapter]
        if call.early_mask is not None and j < settings.textual_layers[0]:
            mask = call.early_mask
            kinds = getattr(self.layer.backbone.llm.config, "layer_types", None)
            kwargs["attention_mask"] = mask[kinds[j]] if isinstance(mask, dict) else mask
        if call.folded is None and call.layout is not None and j in settings.textual_layers:
            hidden = args[0]
            prompts = self.layer.m2pt_textual_prompts[call.adapter][str(j)].to(hidden).expand(len(hidden), -1, -1)
            columns = call.layout.textual.to(hidden.device)[..., None].expand_as(prompts)  # (B, P, D)
            if settings.config.textual_update == "carry" and j != settings.textual_layers[0]:
                prompts = prompts + hidden.gather(1, columns)
            args = (hidden.scatter(1, columns, prompts), *args[1:])
            call.prompted += 1
        if call.folded is not None or j in settings.attention_layers:
            kwargs[CALL] = call
        return args, kwargs

    def _before_attention(self, j: int, attention: nn.Module, args: tuple, kwargs: dict) -> tuple | None:
        call = kwargs.pop(CALL, None)
        if call is None:
            return None
        call.prompted += 1
        if call.folded is not None:
            prompts = self.layer.m2pt_textual_prompts[call.adapter][str(j)]
            return args, call.folded.enter(self.layer.backbone.textual_blocks[j], prompts, kwargs)
        return args, self.layer.m2pt_attention_prompts[call.adapter][str(j)].enter(attention, kwargs)

    def _before_host(self, host: nn.Module, args: tuple, kwargs: dict) -> tuple | None:
        kwargs = dict(zip(self.layer.backbone.signature, args)) | kwargs
        cache, adapter = kwargs.get("past_key_values"), self.layer.active
        known: CacheSlots | None = getattr(cache, SLOTS, None)
        seen = 0 if cache is None else cache.get_seq_length()
        self.layer.check_inputs(cache, known, kwargs.get("attention_mask"))
        if adapter is None:
            return None
        if kwargs.get("pixel_values_videos") is not None or (kwargs.get("mm_encoder_outputs") or {}).get("video"):
            raise ValueError("M2PT makes room for its prompts at pictures: leave videos out, or disable the adapter.")
        kwargs = self._encode_images(host, kwargs)
        if seen == 0:
            call = self._make_room(adapter, kwargs)
        elif (kwargs.get("mm_encoder_outputs") or {}).get("image") and self.layer.settings[adapter].at_pictures:
            raise ValueError(
                f"The cache already holds {seen} columns: M2PT makes room for pictures in the first call of a cache "
                "only; start from an empty cache with the whole conversation, and leave prefill_chunk_size out."
            )
        else:
            call = self._continue(kwargs, known, seen)
        return (), kwargs if call is None else kwargs | {CALL: call}

    def _encode_images(self, host: nn.Module, kwargs: dict) -> dict:
        """Do what the host would do with pixel_values, so that features are known before the text is laid out."""
        pixels = kwargs.get("pixel_values")
        if pixels is None:
            return kwargs
        if kwargs.get("mm_encoder_outputs"):
            raise ValueError("You cannot specify both pixel_values and mm_encoder_outputs at the same time")
        options = inspect.signature(host.get_image_features).parameters
        options = {k: kwargs[k] for k in options if kwargs.get(k) is not None}
        features = host.get_image_features(**options, return_dict=True)
        return kwargs | {"pixel_values": None, "mm_encoder_outputs": {"image": features}}

    def lengths(self, kwargs: dict) -> list[int]:
        """How many placeholders each run of features of a call has in the caller's text."""
        features = (self._encode_images(self.layer.backbone.host, kwargs).get("mm_encoder_outputs") or {}).get("image")
        extra = self.layer.settings[self.layer.active].extra_tokens if self.layer.active else 0
        return [] if features is None else [len(f) - extra for f in features.pooler_output]

    def _make_room(self, adapter: str, kwargs: dict) -> Call:
        """Lay out the first tokens of a sequence, in place in `kwargs`."""
        settings, b = self.layer.settings[adapter], self.layer.backbone
        ids, embeds, mask = kwargs.get("input_ids"), kwargs.get("inputs_embeds"), kwargs.get("attention_mask")
        is_image = b.image_mask(ids, embeds)
        if kwargs.get("position_ids") is None:
            kwargs["position_ids"] = self._positions(kwargs)
        P = settings.config.num_textual_prompts if folds(b, settings, kwargs, is_image.shape[1]) else 0
        layout = self.layer.layout(adapter, is_image, self.lengths(kwargs), mask, folded=P > 0)

        if ids is not None:
            kwargs["input_ids"] = layout.ids(ids, b.image_token_id)
        else:
            kwargs["inputs_embeds"] = layout.embeds(embeds, b.image_embedding())
        mask = kwargs["attention_mask"] = layout.mask(mask)
        if P:
            mask = F.pad(mask, (P, 0), value=1)
            slots = CacheSlots(adapter, layout.tokens + P, layout.added + P, layout.shift + P, mask, None)
            return Call(adapter, layout, None, slots, fold(b, layout, P, kwargs))
        if kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = layout.positions(kwargs["position_ids"])
        elif settings.attention_layers and mask is not None:
            kwargs["position_ids"] = self._unpadded(mask)
        if kwargs.get("token_type_ids") is not None:
            kwargs["token_type_ids"] = layout.types(kwargs["token_type_ids"], b.family.image_type)
        early = layout.hide_textual(mask) if settings.late else None
        slots = CacheSlots(adapter, layout.tokens, layout.added, layout.shift, mask, early)
        return Call(adapter, layout, self._early(early, kwargs, layout.shape), slots)

    def _continue(self, kwargs: dict, known: CacheSlots, seen: int) -> Call | None:
        """A decoding step: nothing to insert, but mask and positions must count the slots in the cache."""
        inputs = kwargs.get("input_ids")
        inputs = kwargs["inputs_embeds"] if inputs is None else inputs
        B, T = inputs.shape[:2]
        known = known.crop(seen)
        setattr(kwargs["past_key_values"], SLOTS, known)
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.shape[1] != seen - known.added + T:
            raise ValueError(
                f"attention_mask has {mask.shape[1]} columns, but the cache holds {seen - known.added} tokens and "
                f"{T} are given: pass the mask of all {seen - known.added + T}."
            )
        kwargs["attention_mask"] = known.extend(known.mask, mask, seen + T)
        prompted = self.layer.settings[known.adapter].attention_layers
        if kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = kwargs["position_ids"] + known.shift
        elif (counted := self._positions(kwargs)) is not None:
            kwargs["position_ids"] = counted[..., -T:]
        elif prompted and kwargs["attention_mask"] is not None:
            kwargs["position_ids"] = self._unpadded(kwargs["attention_mask"])[:, -T:]
        if known.early_mask is None and not prompted:
            return None
        early = None if known.early_mask is None else known.extend(known.early_mask, mask, seen + T)
        return Call(known.adapter, None, self._early(early, kwargs, (B, T)), known)

    def _positions(self, kwargs: dict) -> Tensor | None:
        """(3, B, columns) as a host counts them that gives pictures rows and columns (Qwen); None from the others."""
        host, ids = self.layer.backbone.host, kwargs.get("input_ids")
        if not hasattr(host, "compute_3d_position_ids"):
            return None
        given = {name: kwargs.get(name) for name in inspect.signature(host.compute_3d_position_ids).parameters}
        if ids is not None:
            given["inputs_embeds"] = torch.empty(*ids.shape, 0, device=ids.device)  # of which it takes the shape
        return host.compute_3d_position_ids(**given)

    def _unpadded(self, mask: Tensor) -> Tensor:
        """(B, columns) positions that padding does not advance.

        Keys of prompts inside attention have no position, so a token's must not depend on its row's padding.
        """
        return (mask.cumsum(1) - 1).clamp(min=0) + self.layer.backbone.family.first_position

    def _early(self, mask: Tensor | None, kwargs: dict, shape: tuple[int, int]) -> Any:
        """The attention mask, as the host's attention wants it, of blocks for which the slots are not there yet."""
        if mask is None:
            return None
        b = self.layer.backbone
        return b.family.masks(
            config=b.llm.config,
            inputs_embeds=torch.empty(*shape, 0, dtype=b.llm.dtype, device=mask.device),
            attention_mask=mask,
            past_key_values=kwargs.get("past_key_values"),
            position_ids=None,
            token_type_ids=kwargs.get("token_type_ids"),
        )

    def _after_host(self, host: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        call = kwargs.get(CALL)
        if call is None or call.layout is None:
            return None
        settings = self.layer.settings[call.adapter]
        expected = len(settings.textual_layers) + len(settings.attention_layers)
        if call.prompted != expected:
            raise RuntimeError(
                f"{type(self.layer.backbone.llm).__name__} let {call.prompted} of {expected} layers see their "
                "prompts: it does not hand keyword arguments on to its layers, so M2PT cannot tune it."
            )
        as_tuple = isinstance(output, tuple)
        for cache in output if as_tuple else (output.past_key_values,):
            if isinstance(cache, Cache):
                setattr(cache, SLOTS, call.slots)
        if as_tuple:
            return call.layout.strip(output[0]), *output[1:]
        output.last_hidden_state = call.layout.strip(output.last_hidden_state)
        return output

    # ---- generate ----------------------------------------------------------------------------------------------

    def _expand_multimodal_outputs(
        self,
        input_ids: Tensor | None,
        mm_encoder_output: dict,
        expand_size: int = 1,
        inputs_embeds: Tensor | None = None,
    ) -> dict:
        """Repeat each row's images for its beams. The host's own version takes rows of features for placeholders."""
        b, adapter = self.layer.backbone, self.layer.active
        features = mm_encoder_output.get("image")
        if adapter is None or features is None:
            return type(b.generator)._expand_multimodal_outputs(
                b.generator, input_ids, mm_encoder_output, expand_size, inputs_embeds
            )
        counts = b.image_mask(input_ids if input_ids is not None and input_ids.numel() else None, inputs_embeds).sum(1)
        extra = self.layer.settings[adapter].extra_tokens
        images = features.pooler_output
        rows = images_by_row(counts.tolist(), [len(f) - extra for f in images])
        expanded = [images[i] for row in rows for i in [*row] * expand_size]
        features.pooler_output = torch.stack(expanded) if isinstance(images, Tensor) else expanded
        return mm_encoder_output

    def _prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,  # by this name `generate` knows that they may be passed
        **kwargs: Any,
    ) -> dict:
        """Going on from a cache, the host takes its columns for tokens; slots are columns that are none."""
        known: CacheSlots | None = getattr(past_key_values, SLOTS, None)
        if known is not None and next_sequence_length is not None and kwargs.get("is_first_iteration"):
            next_sequence_length += known.added
        generator = self.layer.backbone.generator
        return type(generator).prepare_inputs_for_generation(
            generator,
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
