"""The interaction layer: from vision to language space, where the two kinds of prompts meet.

Shapes: B pictures or crops, P prompts, N patches, n features of one run of placeholders.
"""

import inspect
from collections.abc import Callable, Sequence
from itertools import accumulate
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from mmpt.m2pt.backbone import feature_depths
from mmpt.m2pt.slots import SLOTS

if TYPE_CHECKING:
    from mmpt.m2pt.layer import M2PTLayer


class Interaction(nn.Module):
    """f_in, the projector from vision to language space: stands in for the host's, which is its `base_layer`."""

    def __init__(self, base_layer: nn.Module, layer: "M2PTLayer"):
        super().__init__()
        self.base_layer = base_layer
        self._layer = (layer,)  # in a tuple, so that it is not a child

    def forward(self, features: Tensor, project: Callable[[nn.Module, Tensor], Tensor] | None = None) -> Tensor:
        """What the active adapter's projector makes of `features`: by its own forward, or by `project`."""
        layer = self._layer[0]
        project = project or (lambda projector, x: projector(x))
        if layer.active not in layer.m2pt_projector:
            return project(self.base_layer, features)
        projector = layer.m2pt_projector[layer.active]
        dtype = next(projector.parameters()).dtype
        return project(projector, features.to(dtype)).to(features.dtype)


class ImageFeatures:
    """Stands in for the host's `get_image_features`: puts the projected slots before each run of features."""

    def __init__(self, layer: "M2PTLayer"):
        self.layer = layer

    @property
    def original(self) -> MethodType:
        host = self.layer.backbone.host
        return MethodType(type(host).get_image_features, host)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.original)  # by which `generate` knows what to pass

    def __call__(self, *args: Any, **kwargs: Any) -> ModelOutput:
        """The host's output with pooler_output of (P + n, D_text) a run."""
        layer, family = self.layer, self.layer.backbone.family
        if layer.active is None:
            return self.original(*args, **kwargs)
        settings, host = layer.settings[layer.active], layer.backbone.host
        given = self.__signature__.bind(*args, **kwargs).arguments
        self._check_layers(given.get("vision_feature_layer"))
        output = self.original(*args, **kwargs | {"return_dict": True})
        runs = features = output.pooler_output
        crops = family.crops and family.crops(host, given)
        if not crops and not isinstance(features, Tensor):  # the host may have joined the runs of a row
            runs = torch.cat(list(features)).unflatten(0, (len(output.last_hidden_state), -1))
        if settings.extra_tokens:
            slots = self._projected(output)
            if crops:
                slots = slots[[0, *accumulate(crops[:-1])]]
            runs = [torch.cat([s.to(run), run]) for s, run in zip(slots, runs, strict=True)]
        output.pooler_output = torch.stack(list(runs)) if isinstance(features, Tensor) else list(runs)
        return output

    def _check_layers(self, layers: int | Sequence[int] | None) -> None:
        backbone = self.layer.backbone
        if layers is not None and feature_depths(layers, len(backbone.visual_blocks)) != backbone.reach:
            raise ValueError(
                f"vision_feature_layer={layers!r} differs from the model's "
                f"{backbone.host.config.vision_feature_layer!r}, for which the adapter was made: leave it out, or "
                "disable the adapter."
            )

    def _projected(self, output: ModelOutput) -> Tensor:
        """(B, P, D_text)"""
        layer, backbone = self.layer, self.layer.backbone
        settings, slots = layer.settings[layer.active], output.__dict__.pop(SLOTS)
        if settings.config.visual_readout == "parameter":
            parameter = layer.m2pt_visual_prompts[layer.active][str(settings.visual_layers[-1])]
            slots = parameter.to(slots).expand_as(slots)
        return backbone.projector(slots, backbone.family.project)
