"""The adapter module: prompts of both sides and the tuned projectors, for all adapters of one host.

Shapes: B rows, P prompts, T caller's tokens, D width.
"""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmpt.m2pt.attention_prompts import AttentionPrompts
from mmpt.m2pt.backbone import Backbone, images_by_row
from mmpt.m2pt.config import WORD_INITS, M2PTConfig
from mmpt.m2pt.hooks import Hooks
from mmpt.m2pt.interaction import Interaction
from mmpt.m2pt.layout import Layout, insert_slots
from mmpt.tuner import RootLayer, check_words


@dataclass(frozen=True)
class Settings:
    """An adapter's configuration with its layers resolved against the host."""

    config: M2PTConfig
    visual_layers: tuple[int, ...]
    textual_layers: tuple[int, ...]
    attention_layers: tuple[int, ...]

    @property
    def late(self) -> bool:
        """Whether there are LLM layers before the first one with prompts."""
        return bool(self.textual_layers) and self.textual_layers[0] > 0

    @property
    def extra_tokens(self) -> int:
        """Tokens that each image brings to the LLM beside its patches."""
        return self.config.num_visual_prompts if self.config.visual_readout != "none" else 0

    @property
    def at_pictures(self) -> bool:
        """Whether pictures say where slots go."""
        behind = self.textual_layers and self.config.textual_position == "before_instruction"
        return self.extra_tokens > 0 or bool(behind)


class M2PTLayer(RootLayer):
    """All adapters of one host.

    Parameters are named m2pt_visual_prompts.<adapter>.<layer> (P, D_vision), m2pt_textual_prompts.<adapter>.<layer>
    (P, D_text), m2pt_attention_prompts.<adapter>.<layer>.* and m2pt_projector.<adapter>.*.
    """

    METHOD = "M2PT"
    NO_MERGE = (
        "M2PT cannot be merged into the base weights: prompts are extra tokens, not a change of weights. "
        "Keep the adapter beside the model, or use `unload()` to get the plain base model back."
    )
    adapter_layer_names = ("m2pt_visual_prompts", "m2pt_textual_prompts", "m2pt_attention_prompts", "m2pt_projector")
    settings: dict[str, Settings]

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone
        self.m2pt_visual_prompts = nn.ModuleDict()
        self.m2pt_textual_prompts = nn.ModuleDict()
        self.m2pt_attention_prompts = nn.ModuleDict()
        self.m2pt_projector = nn.ModuleDict()
        self.hooks = Hooks(self)

    # ---- adapters ----------------------------------------------------------------------------------------------

    def attach(self) -> None:
        self.hooks.attach()

    def detach(self) -> None:
        self.hooks.detach()

    def update_layer(self, adapter_name: str, config: M2PTConfig) -> None:
        """Add an adapter. On an error nothing has changed.

        Raises:
            ValueError: the configuration does not fit the host.
        """
        backbone = self.backbone
        settings = Settings(
            config,
            backbone.visual_layers(config),
            backbone.textual_layers(config),
            backbone.attention_layers(config),
        )
        check_words(config.init_token_ids, backbone.host.get_input_embeddings())
        if config.tune_projector and not all(p.is_floating_point() for p in self._host_projector().parameters()):
            raise ValueError(
                "tune_projector=True: the projector is held in few bits; name it in llm_int8_skip_modules, as "
                "mmpt.load does, or set tune_projector=False."
            )
        visual = _prompts(
            settings.visual_layers, config.num_visual_prompts, backbone.visual_width, backbone.visual_blocks
        )
        textual = _prompts(
            settings.textual_layers, config.num_textual_prompts, backbone.textual_width, backbone.textual_blocks
        )
        inside = nn.ModuleDict(
            {
                str(j): AttentionPrompts(
                    backbone.textual_blocks[j].self_attn, config.num_kv_prompts, config.num_feature_prompts
                )
                for j in settings.attention_layers
            }
        )
        projector = copy.deepcopy(self._host_projector()) if config.tune_projector else None
        self._put(adapter_name, settings, visual or None, textual or None, inside or None, projector)

    @torch.no_grad()
    def reset_parameters(self, adapter_name: str) -> None:
        """Start the prompts as `config.init` says.

        xavier_uniform  U(-b, b), b = sqrt(6 / ((P + 1) D)): torch's fan rule on a (1, P, D) tensor
        normal          N(0, init_std)
        vocabulary      embeddings of init_token_ids, cycled to P
        instruction     inputs of each layer when the frozen LLM reads init_token_ids
        (always)        prompts inside attention: N(0, init_std)
        vpt_uniform     visual prompts: U(-b, b), b = sqrt(6 / (3 patch² + D)), as if they were patches to be embedded
        """
        settings = self.settings[adapter_name]
        config = settings.config
        visual = self.m2pt_visual_prompts[adapter_name] if settings.visual_layers else {}
        textual = self.m2pt_textual_prompts[adapter_name] if settings.textual_layers else {}
        patch = 3 * self.backbone.patch_area
        drawn = [(p, patch if config.init == "vpt_uniform" else p.numel()) for p in visual.values()]
        drawn += [(p, p.numel()) for p in textual.values()] if config.init not in WORD_INITS else []
        for prompt, fan in drawn:
            if config.init == "normal":
                nn.init.normal_(prompt, std=config.init_std)
            else:
                bound = math.sqrt(6 / (fan + prompt.shape[1]))
                nn.init.uniform_(prompt, -bound, bound)
        if settings.attention_layers:
            for parameter in self.m2pt_attention_prompts[adapter_name].parameters():
                nn.init.normal_(parameter, std=config.init_std)
        if config.init in WORD_INITS and not any(p.is_meta for p in textual.values()):
            self._start_from_words(config, settings.textual_layers, textual)

    def _start_from_words(self, config: M2PTConfig, layers: tuple[int, ...], textual: nn.ParameterDict) -> None:
        inputs = self.backbone.layer_inputs(config.init_token_ids)
        rows = [i % len(config.init_token_ids) for i in range(config.num_textual_prompts)]
        for j in layers:
            value = inputs[j if config.init == "instruction" and config.textual_update == "replace" else 0][rows]
            if config.textual_update == "carry" and j != layers[0]:
                value = torch.zeros_like(value)
            textual[str(j)].copy_(value)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        for container, blocks in (
            (self.m2pt_visual_prompts, self.backbone.visual_blocks),
            (self.m2pt_textual_prompts, self.backbone.textual_blocks),
        ):
            for key, prompt in container[adapter_name].items() if adapter_name in container else ():
                if not prompt.is_meta:
                    prompt.data = prompt.data.to(device or _placement(blocks[int(key)])[0])
        if adapter_name in self.m2pt_attention_prompts:
            for key, prompts in self.m2pt_attention_prompts[adapter_name].items():
                prompts.to(device or _placement(self.backbone.textual_blocks[int(key)])[0])
        if adapter_name in self.m2pt_projector:
            self.m2pt_projector[adapter_name].to(device or _placement(self._host_projector())[0])

    def _host_projector(self) -> nn.Module:
        current = self.backbone.projector
        return current.base_layer if isinstance(current, Interaction) else current

    def layout(
        self, adapter: str | None, is_image: Tensor, lengths: list[int], mask: Tensor | None, folded: bool = False
    ) -> Layout:
        """Where the slots of `adapter` go.

        Args:
            is_image: (B, T) bool, the placeholders.
            lengths: patch tokens of each image, in order; empty for a text-only call.
            mask: (B, T) attention mask or None.
            folded: whether textual prompts go without slots (folded.py).
        """
        settings = self.settings.get(adapter)
        config = settings.config if settings else None
        return insert_slots(
            is_image,
            images_by_row(is_image.sum(1).tolist(), lengths) if lengths else [range(0)] * len(is_image),
            lengths,
            num_textual=config.num_textual_prompts if config and not folded else 0,
            num_visual=settings.extra_tokens if settings else 0,
            position=config.textual_position if config else "first",
            attention_mask=mask,
        )


def _placement(block: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and floating type of a block; its integer weights, if quantised, say nothing of the hidden states."""
    weight = next(p for p in block.parameters() if p.is_floating_point())
    return weight.device, weight.dtype


def _prompts(layers: tuple[int, ...], count: int, width: int, blocks: list[nn.Module]) -> nn.ParameterDict:
    out = {}
    for i in layers:
        device, dtype = _placement(blocks[i])
        out[str(i)] = nn.Parameter(torch.empty(count, width, device=device, dtype=dtype))
    return nn.ParameterDict(out)  # sorted by name, the order in which a start is drawn
