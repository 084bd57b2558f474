"""The PEFT tuner of M²PT (arXiv 2409.15657): puts one `M2PTLayer` on a multimodal LLM and keeps its checkpoints."""

from typing import Any

import torch
from torch import Tensor

from mmpt.m2pt.backbone import find_backbone
from mmpt.m2pt.config import M2PTConfig
from mmpt.m2pt.layer import M2PTLayer
from mmpt.tuner import RootTuner


class M2PTModel(RootTuner):
    """M²PT on a model of one of the families of hosts.py; made by `peft.get_peft_model(model, M2PTConfig(...))`.

    Inputs stay those of the base model and its processor: logits, labels and last hidden states have the caller's
    length. `hidden_states`, `attentions` and the KV cache contain the slots; `segments` says which columns those are.
    In training mode textual prompts may be keys and values without columns (folded.py), which a cache has in front.
    Checkpoints hold prompts and projector only, under keys that name no module of the host:
    m2pt.m2pt_visual_prompts.3, m2pt.m2pt_textual_prompts.0, m2pt.m2pt_projector.linear_1.weight.

    The prompts act in a forward of the host (a LlavaModel, say), hence in `generate`; its language model called alone
    is the base's.
    Not possible: merging (prompts are tokens, not weights), a static cache, pictures that come after a cache was
    begun or in chunks of a prefill, several adapters active at once.
    """

    NAME = "m2pt"
    prefix = "m2pt_"
    tuner_layer_cls = M2PTLayer
    layer: M2PTLayer

    @torch.no_grad()
    def segments(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, pixel_values: Tensor | None = None, **rest: Any
    ) -> Tensor:
        """What each column of `hidden_states` and `attentions` holds, for the inputs of a call.

        The keys in `attentions` of layers with prompts inside their attention have `num_kv_prompts` more in front.

        Returns:
            (B, S) of `mmpt.m2pt.layout` PAD, TEXTUAL, VISUAL, IMAGE, TEXT (0 to 4).
        """
        layer = self.layer
        is_image = layer.backbone.image_mask(input_ids, None) & (pixel_values is not None)
        lengths = layer.hooks.lengths(rest | {"pixel_values": pixel_values})
        return layer.layout(layer.active, is_image, lengths, attention_mask).segments(is_image, attention_mask)

    # ---- injection ---------------------------------------------------------------------------------------------

    def _prepare_adapter_config(self, peft_config: M2PTConfig, model_config: dict) -> M2PTConfig:
        # PEFT looks for modules to replace; the projector stands for the one place per model.
        projector = find_backbone(self.model).projector
        self._place = next(name for name, module in self.model.named_modules() if module is projector)
        return peft_config

    def _check_target_module_exists(self, peft_config: M2PTConfig, key: str) -> bool:
        return key == self._place

    def _new_layer(self) -> M2PTLayer:
        return M2PTLayer(find_backbone(self.model))
