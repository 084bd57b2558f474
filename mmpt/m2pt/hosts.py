"""The multimodal LLMs of transformers that M²PT works on, and what differs between them.

All have a vision tower, a projector and an LLM, and `get_image_features` of the pictures for the placeholders in the
text. What the papers leave open where a tower's rows are not yet the LLM's tokens is read here as follows.

- **Cells.** Where several patches become one token (pooled, or laid side by side by a pixel shuffle), a visual prompt
  counts as a whole cell of itself: P prompts are P tokens everywhere.
- **Crops.** Every crop of a picture passes the tower with the prompts. Where crops have placeholders of their own,
  each has its P tokens before them. Where the crops of a picture are packed into one run of placeholders, the picture
  has P tokens, those of its first crop, which is the view of the whole; in the others prompts act in the tower only.

Shapes: B pictures or crops, P prompts, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import Gemma3ForConditionalGeneration, PaliGemmaForConditionalGeneration
from transformers.masking_utils import create_masks_for_generate
from transformers.models.gemma3.modeling_gemma3 import Gemma3Model
from transformers.models.idefics3.modeling_idefics3 import Idefics3Model
from transformers.models.internvl.modeling_internvl import InternVLModel
from transformers.models.llava.modeling_llava import LlavaModel
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel, image_size_to_num_patches
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel
from transformers.models.paligemma.modeling_paligemma import PaliGemmaModel
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMModel


def _as_patches(projector: nn.Module, slots: Tensor) -> Tensor:
    """(B, P, D_vision) -> (B, P, D_text): each slot like a patch."""
    return projector(slots)


def _as_shuffled_cells(projector: nn.Module, slots: Tensor) -> Tensor:
    """InternVL shuffles before its projector: r · r patches side by side."""
    return projector(slots.repeat(1, 1, projector.layer_norm.normalized_shape[0] // slots.shape[-1]))


def _as_connected_cells(connector: nn.Module, slots: Tensor) -> Tensor:
    """Idefics3 shuffles inside its connector."""
    return connector.modality_projection(slots.repeat(1, 1, connector.scale_factor**2))


def _as_pooled_cells(projector: nn.Module, slots: Tensor) -> Tensor:
    """Gemma 3 averages a square of patches inside its projector; the average of a slot with itself is the slot."""
    return projector.mm_soft_emb_norm(slots) @ projector.mm_input_projection_weight


def _as_merged_cells(merger: nn.Module, slots: Tensor) -> Tensor:
    """Qwen2-VL and 2.5-VL lay a square of patches side by side inside their merger."""
    cells = slots.repeat_interleave(merger.hidden_size // slots.shape[-1], 1)
    return merger(cells.flatten(0, 1)).unflatten(0, (len(slots), -1))


def _one_each(host: nn.Module, given: dict) -> list[int]:
    """Pictures in one piece, each with a run of features of its own length."""
    return [1] * len(given["image_grid_thw"])


def _packed_crops(host: nn.Module, given: dict) -> list[int]:
    """How many rows of the tower belong to each picture, from the arguments of `get_image_features`."""
    config, sizes, alone = host.config, given["image_sizes"], given.get("batch_num_images")
    cropped = [True] * len(sizes) if alone is None else [n == 1 for n in map(int, alone) for _ in range(n)]
    of = (config.image_grid_pinpoints, config.vision_config.image_size)
    return [image_size_to_num_patches(size, *of) if many else 1 for size, many in zip(sizes, cropped)]


@dataclass(frozen=True)
class Family:
    """How one kind of host is built.

    Attributes:
        name: what people call it.
        model: the class of the host, the model inside the one with a head.
        tower, projector, llm: the host's attributes, with dots where one is inside another.
        width: of the tower, in its configuration.
        packed: whether the tower reads all pictures as one sequence (packed.py).
        project: how slots pass its projector.
        crops: tower rows of each picture, where they are packed into one run of features; else None: a run a row.
        normed: whether features come after the tower's last norm (where no other layer is chosen).
        masks: makes the attention mask as the host does.
        image_type: token_type_ids of image placeholders, where the host has such.
        first_position: of a row's first token.
        since: the version of transformers from which it takes pictures of more tokens than its configuration says.
        float16: whether its activations stay within that (of Gemma 3: transformers' issues 36822 and 39972).
    """

    name: str
    model: type[nn.Module]
    tower: str = "vision_tower"
    projector: str = "multi_modal_projector"
    llm: str = "language_model"
    width: str = "hidden_size"
    packed: bool = False
    project: Callable[[nn.Module, Tensor], Tensor] = _as_patches
    crops: Callable[[nn.Module, dict], list[int]] | None = None
    normed: bool = False
    masks: Callable = create_masks_for_generate
    image_type: int = 0
    first_position: int = 0
    since: str = "5.20"
    float16: bool = True


_QWEN = {
    "tower": "visual",
    "projector": "visual.merger",
    "packed": True,
    "project": _as_merged_cells,
    "crops": _one_each,
    "normed": True,
}
_IDEFICS = {"tower": "vision_model", "projector": "connector", "llm": "text_model", "project": _as_connected_cells}

FAMILIES = (
    Family("LLaVA", LlavaModel),
    Family("LLaVA-NeXT", LlavaNextModel, crops=_packed_crops),
    Family("LLaVA-OneVision", LlavaOnevisionModel, crops=_packed_crops),
    Family("InternVL", InternVLModel, project=_as_shuffled_cells, normed=True),
    Family("SmolVLM", SmolVLMModel, **_IDEFICS, normed=True, since="5.21"),
    Family("Idefics3", Idefics3Model, **_IDEFICS, normed=True),
    Family(
        "PaliGemma",
        PaliGemmaModel,
        normed=True,
        masks=PaliGemmaForConditionalGeneration.create_masks_for_generate,
        first_position=1,
    ),
    Family(
        "Gemma 3",
        Gemma3Model,
        project=_as_pooled_cells,
        normed=True,
        masks=Gemma3ForConditionalGeneration.create_masks_for_generate,
        image_type=1,
        float16=False,
    ),
    Family("Qwen2-VL", Qwen2VLModel, **_QWEN, width="embed_dim"),
    Family("Qwen2.5-VL", Qwen2_5_VLModel, **_QWEN),
)

PROJECTORS = frozenset(family.projector for family in FAMILIES)

REFUSED = {  # model_type: why
    "qwen3_vl": "inner layers of its vision tower feed layers of the LLM past the projector",
    "pixtral": "its vision tower packs the patches of all pictures into one sequence under one mask",
}
