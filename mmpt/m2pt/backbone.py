"""The parts of a multimodal LLM that M²PT works on; what differs between families is in hosts.py."""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
import transformers
from packaging.version import Version
from peft.tuners.tuners_utils import NoMatchingPeftModuleError
from torch import Tensor, nn
from transformers import GenerationMixin

from mmpt.m2pt.config import M2PTConfig, resolve_layers
from mmpt.m2pt.hosts import FAMILIES, REFUSED, Family


@dataclass
class Backbone:
    """A view of a host model: references only, so it may hang on a module without becoming part of it.

    Attributes:
        host: the model with tower, projector and LLM, such as a `LlavaModel`.
        family: what kind of host it is.
        generator: the model around the host that has `generate`, or None.
        visual_blocks: every layer of the vision encoder.
        textual_blocks: every layer of the LLM.
        feature_layers: the tower's hidden states that become features, or None for its last, normed one.
    """

    host: nn.Module
    family: Family
    generator: GenerationMixin | None
    visual_blocks: list[nn.Module]
    textual_blocks: list[nn.Module]
    feature_layers: tuple[int, ...] | None
    signature: tuple[str, ...] = field(init=False)

    def __post_init__(self):
        self.signature = tuple(inspect.signature(type(self.host).forward).parameters)[1:]

    @property
    def tower(self) -> nn.Module:
        return getattr(self.host, self.family.tower)

    @property
    def projector(self) -> nn.Module:
        return self.host.get_submodule(self.family.projector)

    @property
    def llm(self) -> nn.Module:
        return getattr(self.host, self.family.llm)

    @property
    def visual_width(self) -> int:
        return getattr(self.tower.config, self.family.width)

    @property
    def patch_area(self) -> int:
        """Pixels of a patch."""
        size = self.tower.config.patch_size
        return size**2 if isinstance(size, int) else math.prod(size)

    @property
    def reach(self) -> tuple[int, ...]:
        """How many of the visual blocks come before each feature layer (one number a layer)."""
        depth = len(self.visual_blocks)
        return (depth,) if self.feature_layers is None else feature_depths(self.feature_layers, depth)

    @property
    def textual_width(self) -> int:
        return self.llm.config.hidden_size

    @property
    def image_token_id(self) -> int:
        return self.host.config.image_token_id

    def visual_layers(self, config: M2PTConfig) -> tuple[int, ...]:
        """The vision layers that get prompts under `config`; empty without visual prompts.

        Raises:
            ValueError: a layer that the LLM never sees, or a feature layer that the slots have not reached.
        """
        if config.num_visual_prompts == 0:
            return ()
        depth = max(self.reach)
        if config.visual_readout == "parameter":
            if len(self.reach) > 1:
                raise ValueError(
                    f"visual_readout='parameter': this model concatenates {len(self.reach)} feature layers, and one "
                    "parameter has the width of one; use visual_readout='output'."
                )
            # hidden_states[i] is also the input of block i, whose prompts are then what is read.
            depth = min(depth + 1, len(self.visual_blocks))
        layers = resolve_layers("visual_layers", config.visual_layers, depth)
        if layers[0] >= min(self.reach):
            raise ValueError(
                f"visual_layers={config.visual_layers!r}: the slots begin at layer {layers[0]}, but features are "
                f"taken after {min(self.reach)} layers; list an earlier layer."
            )
        return layers

    def textual_layers(self, config: M2PTConfig) -> tuple[int, ...]:
        """The LLM layers that get prompts under `config`; empty without textual prompts."""
        if config.num_textual_prompts == 0:
            return ()
        return resolve_layers("textual_layers", config.textual_layers, len(self.textual_blocks))

    def attention_layers(self, config: M2PTConfig) -> tuple[int, ...]:
        """The LLM layers that get prompts inside their attention under `config`."""
        if config.num_kv_prompts == 0:
            return ()
        return resolve_layers("textual_layers", config.textual_layers, len(self.textual_blocks))

    def image_mask(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """(B, T) bool: which columns are image placeholders, told as the host tells it."""
        if input_ids is not None:
            return input_ids == self.image_token_id
        return (inputs_embeds == self.image_embedding()).all(-1)

    def image_embedding(self) -> Tensor:
        """(D,) the embedding of the placeholder token."""
        table = self.host.get_input_embeddings()
        return table(torch.tensor(self.image_token_id, device=table.weight.device))

    @torch.no_grad()
    def layer_inputs(self, token_ids: list[int]) -> list[Tensor]:
        """The inputs (P, D) of each LLM layer when the frozen LLM reads `token_ids` alone."""
        table = self.host.get_input_embeddings()
        embeds = table(torch.tensor([token_ids], device=table.weight.device))
        out = self.llm(inputs_embeds=embeds, use_cache=False, output_hidden_states=True)
        return [h[0] for h in out.hidden_states[:-1]]


def feature_depths(layers: int | Sequence[int], num_blocks: int) -> tuple[int, ...]:
    """How many blocks come before each index into the hidden states, of which there is one more than blocks."""
    layers = [layers] if isinstance(layers, int) else layers
    return tuple(i if i >= 0 else num_blocks + 1 + i for i in layers)


def find_backbone(model: nn.Module) -> Backbone:
    """The one multimodal LLM inside `model`.

    Raises:
        NoMatchingPeftModuleError: there is none that M²PT can tune.
    """
    for module in model.modules():
        kind = getattr(getattr(module, "config", None), "model_type", None)
        if kind in REFUSED:
            raise NoMatchingPeftModuleError(f"M2PT cannot tune {type(model).__name__} ({kind}): {REFUSED[kind]}.")
    found = ((m, f) for m in model.modules() for f in FAMILIES if isinstance(m, f.model))
    host, family = next(found, (None, None))
    if host is None:
        names = ", ".join(family.name for family in FAMILIES)
        raise NoMatchingPeftModuleError(
            f"M2PT tunes models of the families {names}, and {type(model).__name__} holds none: pass one of them, "
            "such as a LlavaForConditionalGeneration."
        )
    if Version(transformers.__version__) < Version(family.since):
        raise NoMatchingPeftModuleError(
            f"M2PT tunes {family.name} with transformers {family.since} or newer, which needs Python 3.11, and "
            f"{transformers.__version__} is installed: install it, or take another family."
        )
    tower, layers = getattr(host, family.tower), getattr(host.config, "vision_feature_layer", -1)
    depth = getattr(tower.config, "num_hidden_layers", None) or tower.config.depth
    lists = (m for m in tower.modules() if isinstance(m, nn.ModuleList) and len(m) == depth)
    visual_blocks = next(lists, None)
    if visual_blocks is None:
        raise NoMatchingPeftModuleError(
            f"M2PT needs the layers of the vision encoder in one list, and {type(tower).__name__} has no "
            f"list of {depth}: use a CLIP or SigLIP tower."
        )
    normed = family.normed and layers == -1
    return Backbone(
        host=host,
        family=family,
        generator=next((m for m in model.modules() if isinstance(m, GenerationMixin) and host in m.children()), None),
        visual_blocks=list(visual_blocks),
        textual_blocks=list(getattr(host, family.llm).layers),
        feature_layers=None if normed else (layers,) if isinstance(layers, int) else tuple(layers),
    )


def self_attention(block: nn.Module) -> nn.Module:
    """A layer's attention, which InternVL's tower names in its own way."""
    return getattr(block, "self_attn", None) or block.attention


def images_by_row(counts: list[int], lengths: list[int]) -> list[range]:
    """Which images stand in which row, from placeholders a row and placeholders an image.

    >>> images_by_row([5, 0, 10], [5, 5, 5])
    [range(0, 1), range(1, 1), range(1, 3)]

    Raises:
        ValueError: rows and images do not add up.
    """
    ends = [0, *accumulate(lengths)]
    bounds = [0, *accumulate(counts)]
    if bounds[-1] != ends[-1] or not set(bounds) <= set(ends):
        raise ValueError(
            f"The rows hold {counts} image placeholders, but the {len(lengths)} images want {lengths}: prepare the "
            "text with the processor of the base model, unchanged; M2PT makes room for its prompts itself. Features "
            "passed as mm_encoder_outputs must come from the adapter that is active now, whole: leave "
            "prefill_chunk_size out."
        )
    # An image without placeholders would make `index` ambiguous; the tower never yields one.
    return [range(ends.index(a), ends.index(b)) for a, b in pairwise(bounds)]
