"""What every position of a sequence is: textual prompt, visual prompt, patch, question, answer, or other.

Notation: T positions as the LLM (or the vision tower) sees them inside its layers, N patches.
"""

from collections import Counter
from dataclasses import dataclass
from os.path import commonprefix

import torch
from PIL import Image
from torch import Tensor

from mmpt.backbones import Backbone
from mmpt.errors import InputError
from mmpt.m2pt.backbone import find_backbone
from mmpt.m2pt.layer import M2PTLayer, Settings
from mmpt.m2pt.layout import TEXTUAL, VISUAL

FAMILIES = ("LLaVA", "InternVL", "SmolVLM", "Idefics3", "Gemma 3")  # whose pictures can be one grid of tokens
SEGMENTS = ("textual", "visual", "patch", "question", "answer", "other")  # other: the template's tokens, and CLS


@dataclass
class Segments:
    """The positions of one row.

    Attributes:
        kinds: T names out of `SEGMENTS`. "answer" includes the token that ends it.
        labels: T texts: a token as it is written, "T3", "V7", "row 2 column 5", "CLS".
        input_index: T positions in the caller's input_ids (`encode`); None for a prompt slot.
        grid: (rows, columns) of the patches; in the LLM of the picture's tokens, where several patches make one.
        view: left, top, right, bottom of what the model sees of the picture, in shares of its width and height;
            (0, 0, 1, 1) but where the processor crops the picture.
        written: the layers at whose input the slots of `slots` are overwritten, so that what they held is lost. The
            first of them is the layer from which these slots exist.
        slots: "textual" for the LLM, "visual" for the vision tower.
    """

    kinds: list[str]
    labels: list[str]
    input_index: list[int | None]
    grid: tuple[int, int]
    view: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    written: tuple[int, ...] = ()
    slots: str = "textual"

    def __len__(self) -> int:
        return len(self.kinds)

    def where(self, kind: str) -> Tensor:
        """Positions of a segment, in order; those of "patch" are row by row.

        Raises:
            ValueError: no such segment.
        """
        if kind not in SEGMENTS:
            raise ValueError(f"There is no segment {kind!r}; choose one of {', '.join(SEGMENTS)}.")
        return torch.tensor([i for i, k in enumerate(self.kinds) if k == kind], dtype=torch.long)

    @property
    def present(self) -> list[str]:
        """The segments that have a position, in the order of `SEGMENTS`."""
        return [kind for kind in SEGMENTS if kind in self.kinds]

    def boxes(self, width: float, height: float) -> Tensor:
        """(N, 4) left, top, right, bottom of every patch in a picture of that size, row by row.

        A picture that the processor pads has patches outside of it.
        """
        return patch_boxes(self.grid, self.view, width, height)


def patch_boxes(grid: tuple[int, int], view: tuple[float, float, float, float], width: float, height: float) -> Tensor:
    """(N, 4) what `Segments.boxes` gives, of a grid (rows, columns) that covers the part `view` of the picture."""
    (rows, columns), (left, top, right, bottom) = grid, view
    x = (left + (right - left) * torch.arange(columns + 1) / columns) * width
    y = (top + (bottom - top) * torch.arange(rows + 1) / rows) * height
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    row, column = row.flatten(), column.flatten()
    return torch.stack([x[column], y[row], x[column + 1], y[row + 1]], 1)


def encode(backbone: Backbone, image: Image.Image, question: str, answer: str | None = None) -> dict[str, Tensor]:
    """The model's inputs for one row, without padding: input_ids, attention_mask (1, T), pixel_values.

    With an answer also labels (1, T): -100 but on the answer's tokens and the one that ends it.

    Raises:
        InputError: the backbone does not keep a picture as one grid of tokens.
    """
    if answer is None:
        batch = dict(backbone.inputs([image], [question]))
    else:
        batch = backbone.training_inputs([image], [[(question, answer)]])
    family = find_backbone(backbone.model).family.name
    if family not in FAMILIES:
        raise InputError(
            f"The views explain answers by the patches of a picture, which {family} crops, joins or looks at in its "
            f"own way; explain one of {', '.join(FAMILIES)}."
        )
    if (crops := batch["pixel_values"].flatten(0, -4).shape[0]) > 1:
        raise InputError(
            f"The views explain answers by the patches of one picture, and the processor made {crops} crops of it; "
            "set do_image_splitting or do_pan_and_scan of backbone.processor.image_processor to False (InternVL: "
            "max_patches to 1)."
        )
    return batch


def cells(backbone: Backbone, batch: dict[str, Tensor]) -> tuple[tuple[int, int], int]:
    """(rows, columns) of the picture's tokens in an `encode`d row, and how many pixels wide and high one is.

    A token is a patch, or a square of patches where the projector shuffles or pools them.
    """
    tokens = int((batch["input_ids"] == find_backbone(backbone.model).image_token_id).sum())
    rows, columns = _patches(backbone, batch["pixel_values"])
    square = max(1, round((rows * columns / tokens) ** 0.5))
    return (rows // square, columns // square), square * _patch_side(backbone)


def segments(backbone: Backbone, image: Image.Image, question: str, answer: str | None = None) -> Segments:
    """What stands where inside the LLM, for the inputs of `encode` and the active adapter.

    An adapter that adds no positions (LoRA), and none at all, have no "textual" and no "visual" segment.
    """
    batch = encode(backbone, image, question, answer)
    ids = batch["input_ids"][0].tolist()
    kinds, labels = token_kinds(backbone, ids, question, answer)
    for i in batch["labels"][0].ne(-100).nonzero()[:, 0].tolist() if answer is not None else ():
        kinds[i] = "answer"
    grid, _ = cells(backbone, batch)
    is_image = batch["input_ids"] == find_backbone(backbone.model).image_token_id
    _name_patches(kinds, labels, is_image[0].nonzero()[:, 0].tolist(), grid)

    layer, settings = prompt_layer(backbone)
    view = view_of(backbone.processor.image_processor, *image.size)
    if settings is None:
        return Segments(kinds, labels, list(range(len(ids))), grid, view)
    layout = layer.layout(layer.active, is_image, [int(is_image.sum())], batch["attention_mask"])
    slots = {TEXTUAL: ("textual", "T"), VISUAL: ("visual", "V")}
    tokens, seen, rows = enumerate(zip(kinds, labels)), Counter(), []
    for column in layout.segments(is_image, batch["attention_mask"])[0].tolist():
        if column in slots:
            seen[column] += 1
            kind, letter = slots[column]
            rows.append((kind, f"{letter}{seen[column]}", None))
        else:
            i, (kind, label) = next(tokens)
            rows.append((kind, label, i))
    written = _written(settings.textual_layers, settings.config.textual_update)
    return Segments(*map(list, zip(*rows)), grid, view, written=written)


def vision_segments(backbone: Backbone, image: Image.Image) -> Segments:
    """What stands where inside the vision tower, in its own order: CLS if it has one, patches, visual prompts."""
    grid = _patches(backbone, encode(backbone, image, "?")["pixel_values"])
    names = (name.rpartition(".")[2] for name, _ in find_backbone(backbone.model).tower.named_parameters())
    n = any(name in ("class_embedding", "cls_token") for name in names) + grid[0] * grid[1]
    kinds, labels = ["other"] * n, [""] * n
    _name_patches(kinds, labels, range(n), grid)
    _, settings = prompt_layer(backbone)
    written = ()
    if settings is not None and settings.visual_layers:
        P = settings.config.num_visual_prompts
        kinds += ["visual"] * P
        labels += [f"V{i + 1}" for i in range(P)]
        written = _written(settings.visual_layers, settings.config.visual_update)
    view = view_of(backbone.processor.image_processor, *image.size)
    return Segments(kinds, labels, [None] * len(kinds), grid, view, written=written, slots="visual")


def prompt_layer(backbone: Backbone) -> tuple[M2PTLayer | None, Settings | None]:
    """The model's M²PT module, and the settings of its active adapter; None where there is none."""
    layer = next((m for m in backbone.model.modules() if isinstance(m, M2PTLayer)), None)
    return layer, None if layer is None or layer.active is None else layer.settings[layer.active]


def view_of(processor, width: int, height: int) -> tuple[float, float, float, float]:
    """`Segments.view` of a picture of that size under an image processor."""
    w, h = width, height  # of what is seen, in the picture's pixels; its middle is the picture's
    if hasattr(processor, "pad_to_square") and processor.do_pad:  # LLaVA's own
        w = h = max(width, height)
    if processor.do_center_crop:
        size, crop = processor.size, processor.crop_size
        if edge := size.get("shortest_edge"):
            w, h = (crop[side] / edge * min(w, h) for side in ("width", "height"))
        else:
            w, h = w * crop["width"] / size["width"], h * crop["height"] / size["height"]
    x, y = (1 - w / width) / 2, (1 - h / height) / 2
    return (x, y, 1 - x, 1 - y)


def _written(layers, update):
    return layers if update == "replace" else layers[:1]


def token_kinds(
    backbone: Backbone, ids: list[int], question: str, answer: str | None = None
) -> tuple[list[str], list[str]]:
    """Kinds ("question", "other") and texts of the tokens; the question's are told by their place in what is written.

    In the place of the picture's mark the processor puts many tokens; those after it are moved by as many.
    """
    tokenizer = backbone.processor.tokenizer
    text = backbone.conversation([(question, answer)], answer is None)
    other = backbone.conversation([("\0", answer)], answer is None)  # which begins no question
    start = len(commonprefix([text, other]))
    written = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    added = len(ids) - len(written)
    kinds, labels = ["other"] * len(ids), [tokenizer.decode([i]) for i in ids]
    for i, (a, b) in enumerate(written, added):
        if a < start + len(question) and b > start:
            kinds[i], labels[i] = "question", text[a:b]
        elif b > start:
            labels[i] = text[a:b] or labels[i]
    return kinds, labels


def _name_patches(kinds, labels, positions, grid):
    """The last rows · columns of `positions` are patches, one before them is CLS."""
    rows, columns = grid
    for n, i in enumerate(positions, rows * columns - len(positions)):
        kinds[i] = "patch" if n >= 0 else "other"
        labels[i] = f"row {n // columns + 1} column {n % columns + 1}" if n >= 0 else "CLS"


def _patch_side(backbone):
    size = find_backbone(backbone.model).tower.config.patch_size
    return size if isinstance(size, int) else size[0]


def _patches(backbone, pixel_values):
    side = _patch_side(backbone)
    return pixel_values.shape[-2] // side, pixel_values.shape[-1] // side
