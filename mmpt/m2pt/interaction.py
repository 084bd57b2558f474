"""The interaction layer: from vision to language space, where the two kinds of prompts meet.

Shapes: B pictures, P prompts, N patches.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from mmpt.m2pt.layer import M2PTLayer


class Interaction(nn.Module):
    """f_in, the projector from vision to language space: stands in for the host's, which is its `base_layer`."""

    def __init__(self, base_layer: nn.Module, layer: "M2PTLayer"):
        super().__init__()
        self.base_layer = base_layer
        self._layer = (layer,)  # in a tuple, so that it is not a child

    def forward(self, features: Tensor) -> Tensor:
        """(B, N + P, D_vision) -> (B, P + N, D_text), the prompts first; (B, N, D_text) if they are not read out."""
        layer = self._layer[0]
        adapter = layer.active
        if adapter is None:
            return self.base_layer(features)
        settings = layer.settings[adapter]
        if settings.visual_layers:
            P = settings.config.num_visual_prompts
            patches, prompts = features[:, :-P], features[:, -P:]
            if settings.config.visual_readout == "parameter":
                parameter = layer.m2pt_visual_prompts[adapter][str(settings.visual_layers[-1])]
                prompts = parameter.to(features).expand_as(prompts)
            features = patches if settings.extra_tokens == 0 else torch.cat([prompts, patches], 1)
        if adapter not in layer.m2pt_projector:
            return self.base_layer(features)
        projector = layer.m2pt_projector[adapter]
        dtype = next(projector.parameters()).dtype
        return projector(features.to(dtype)).to(features.dtype)
