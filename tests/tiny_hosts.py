"""Tiny random models of every family that M²PT tunes, and batches as processors make them: `import tiny_hosts`."""

from copy import deepcopy
from dataclasses import dataclass
from functools import cache

import pytest
import torch
import transformers
from helpers import byte_tokenizer
from packaging.version import Version
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Gemma3TextConfig,
    GemmaConfig,
    GotOcr2ImageProcessorPil,
    Idefics3Config,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    InternVLConfig,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PaliGemmaConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMImageProcessorPil,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from mmpt.backbones import CHAT_TEMPLATE, Backbone

IMAGE, VOCAB = 90, 97
PACKED, IDEFICS = ("llava_next", "llava_onevision"), ("smolvlm", "idefics3")
PALIGEMMA = ("paligemma", "paligemma2")
QWEN = ("qwen2_vl", "qwen2_5_vl")
FAMILIES = (*PACKED, "internvl", *IDEFICS, *PALIGEMMA, "gemma3", *QWEN)
SIZES = [(20, 44), (46, 22)]  # height, width of pictures: a wide one and a high one
CELLS = [(2, 5), (3, 2)]  # the same as Qwen's grids of tokens, 2 · 2 patches each


def config_of(family, vocab=VOCAB, image=IMAGE):
    """Two vision layers or more, three of the LLM, uneven widths, weights far from uniform attention."""
    size = dict(intermediate_size=40, num_attention_heads=4)
    vision = dict(size, hidden_size=32, num_hidden_layers=3, patch_size=8, image_size=32, initializer_range=0.2)
    text = dict(size, hidden_size=48, num_hidden_layers=3, num_key_value_heads=2, vocab_size=vocab)
    text |= dict(initializer_range=0.2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    gemma = dict(text, head_dim=12, query_pre_attn_scalar=12, sliding_window=9)
    gemma |= dict(layer_types=["sliding_attention", "full_attention", "sliding_attention"])
    pinpoints = {"image_grid_pinpoints": [[24, 48], [48, 24], [48, 48]], "image_token_index": image}
    siglip = SiglipVisionConfig(**vision, vision_use_head=False)
    if family == "llava_next":
        tower = CLIPVisionConfig(**vision | {"image_size": 24}, initializer_factor=4.0)
        return LlavaNextConfig(vision_config=tower, text_config=LlamaConfig(**text), **pinpoints)
    if family == "llava_onevision":
        tower = SiglipVisionConfig(**vision | {"image_size": 24}, vision_use_head=False)
        inner = {"vision_config": tower, "text_config": Qwen2Config(**text), "video_token_index": 91}
        return LlavaOnevisionConfig(**inner, **pinpoints, vision_aspect_ratio="anyres_max_1")
    if family == "internvl":
        square = {"patch_size": (8, 8), "image_size": (32, 32), "layer_scale_init_value": 1.0}
        inner = {"vision_config": vision | square, "text_config": Qwen2Config(**text)}
        return InternVLConfig(**inner, image_token_id=image, image_seq_length=4)
    if family in IDEFICS:
        kind = SmolVLMConfig if family == "smolvlm" else Idefics3Config
        return kind(vision_config=vision, text_config=LlamaConfig(**text).to_dict(), image_token_id=image)
    if family in QWEN:
        inner = dict(depth=3, num_heads=4, patch_size=8, initializer_range=0.2)
        if family == "qwen2_vl":
            inner |= dict(embed_dim=32, hidden_size=48, mlp_ratio=2)
        else:  # the middle layer sees whole pictures, the others windows of 2 · 2 tokens
            inner |= dict(hidden_size=32, out_hidden_size=48, intermediate_size=40, window_size=32)
            inner |= dict(fullatt_block_indexes=[1])
        text |= dict(rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]})
        kind = Qwen2VLConfig if family == "qwen2_vl" else Qwen2_5_VLConfig
        marks = dict(vision_start_token_id=6, vision_end_token_id=7, video_token_id=91)
        return kind(vision_config=inner, text_config=text, image_token_id=image, **marks)
    if family in PALIGEMMA:
        text = GemmaConfig(**text, head_dim=12) if family == "paligemma" else Gemma2Config(**gemma)
        inner = {"vision_config": siglip, "text_config": text}
        return PaliGemmaConfig(**inner, image_token_index=image, projection_dim=48, hidden_size=48)
    inner = {"vision_config": siglip, "text_config": Gemma3TextConfig(**gemma)}
    return Gemma3Config(**inner, mm_tokens_per_image=4, image_token_index=image)


@cache
def _host(family):
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config_of(family))
    for parameter in projector_of(model).parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.eos_token_id = None
    return model.eval()


def projector_of(model):
    host = model.model
    return getattr(host, "connector", None) or getattr(host, "multi_modal_projector", None) or host.visual.merger


def make_host(family):
    """A fresh copy."""
    if family == "smolvlm" and Version(transformers.__version__) < Version("5.21"):
        pytest.skip("before, transformers counted SmolVLM's tokens by its configuration")
    return deepcopy(_host(family))


@dataclass
class Row:
    """One row: tokens and types, crops (n, 3, H, W), and for packed ones the pictures' sizes and numbers of crops.

    Qwen's crops are pictures' patches (N, 3 · 2 · 8 · 8), their sizes in tokens.
    """

    tokens: list[int]
    types: list[int]
    crops: list[torch.Tensor]
    sizes: list[tuple[int, int]]
    counts: list[int]
    family: str

    def blocks(self):
        """(T,) equal numbers for tokens that see each other both ways, -1 for the others."""
        if self.family in PALIGEMMA:
            return torch.tensor([0 if t == 0 else -1 for t in self.types])
        if self.family != "gemma3":
            return torch.full((len(self.tokens),), -1)
        starts = torch.tensor([t and not before for t, before in zip(self.types, [0, *self.types])]).cumsum(0)
        return torch.where(torch.tensor(self.types) == 1, starts, -1)


def make_rows(family, pictures=((), (0,), (1, 0)), seed=0, after=3):
    """Rows with the named pictures each (0 wide, 1 high), with words before, between and after them."""
    generator = torch.Generator().manual_seed(seed)
    side = 24 if family in PACKED else 32

    def words(n):
        return torch.randint(8, IMAGE, (n,), generator=generator).tolist()

    rows = []
    for r, chosen in enumerate(pictures):
        row = Row([1], [], [], [], [], family)
        row.tokens += words(1 + r) if family not in PALIGEMMA else []
        for picture in chosen:
            alone = family in PALIGEMMA or family == "llava_onevision" and len(chosen) > 1
            count = 1 if alone else 3
            crops = list(torch.randn(count, 3, side, side, generator=generator))
            size = (CELLS if family in QWEN else SIZES)[picture]
            if family in QWEN:
                count, crops = 1, [torch.randn(4 * size[0] * size[1], 3 * 2 * 8 * 8, generator=generator)]
            row.crops += crops
            row.sizes.append(size)
            row.counts.append(count)
            row.tokens += _placeholders(family, crops, size, len(chosen))
            row.tokens += words(2)
        row.tokens += words(after)
        image = [int(t == IMAGE) for t in row.tokens]
        row.types = image if family in ("gemma3", *QWEN) else [0] * (len(image) - after + 1) + [1] * (after - 1)
        rows.append(row)
    return rows


def _placeholders(family, crops, size, pictures):
    if family in PACKED:
        host, several = _host(family).model, family == "llava_onevision" and pictures > 1
        alone = {"batch_num_images": torch.tensor([2])} if several else {}
        with torch.no_grad():
            sizes = torch.tensor([size] * (1 + several))
            given = torch.stack([torch.stack(crops)] * (1 + several))
            return [IMAGE] * len(host.get_image_features(given, sizes, **alone).pooler_output[0])
    if family == "internvl":
        return [6, *[IMAGE] * 4 * len(crops), 7]
    if family in QWEN:
        return [6, *[IMAGE] * (size[0] * size[1]), 7]
    if family in PALIGEMMA:
        return [IMAGE] * 16
    return [token for _ in crops for token in (6, *[IMAGE] * 4, 7)]


def collate(rows, padding="left"):
    """What the family's processor makes of the rows."""
    family, width = rows[0].family, max(len(r.tokens) for r in rows)

    def padded(values, fill):
        pads = [[fill] * (width - len(v)) for v in values]
        return torch.tensor([p + v if padding == "left" else v + p for p, v in zip(pads, values)])

    batch = {
        "input_ids": padded([r.tokens for r in rows], 0),
        "attention_mask": padded([[1] * len(r.tokens) for r in rows], 0),
    }
    if family in ("paligemma", "paligemma2", "gemma3"):
        batch["token_type_ids"] = padded([r.types for r in rows], 0)
    if family in QWEN:
        batch["mm_token_type_ids"] = padded([r.types for r in rows], 0)
    if not any(r.crops for r in rows):
        return batch
    if family in PACKED:
        most = max(n for r in rows for n in r.counts)
        pictures = [p for r in rows if r.crops for p in torch.stack(r.crops).split(r.counts)]
        batch["pixel_values"] = torch.stack([_filled(p, most) for p in pictures])
        batch["image_sizes"] = torch.tensor([s for r in rows for s in r.sizes])
        if family == "llava_onevision":
            batch["batch_num_images"] = torch.tensor([len(r.sizes) for r in rows])
    elif family in QWEN:
        batch["pixel_values"] = torch.cat([c for r in rows for c in r.crops])
        batch["image_grid_thw"] = torch.tensor([(1, 2 * h, 2 * w) for r in rows for h, w in r.sizes])
    elif family in IDEFICS:
        most = max(len(r.crops) for r in rows)
        empty = torch.zeros(0, 3, 32, 32)
        batch["pixel_values"] = torch.stack([_filled(torch.stack(r.crops) if r.crops else empty, most) for r in rows])
    else:
        batch["pixel_values"] = torch.stack([c for r in rows for c in r.crops])
    return batch


def _filled(crops, count):
    return torch.cat([crops, crops.new_zeros(count - len(crops), *crops.shape[1:])])


MARKS = {  # what stands for a picture in a chat, and further tokens that the family's processor writes
    "llava_next": ("<image>",),
    "idefics3": ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<row_1_col_1>"),
    "gemma3": ("<start_of_image>", "<image>", "<end_of_image>"),
    "llava_onevision": ("<image>", "<video>"),
    "internvl": ("<IMG_CONTEXT>", "<img>", "</img>", "<video>"),
}
MARKS["smolvlm"] = (*MARKS["idefics3"], "<video>")
_MARKED = "<|vision_start|><|image_pad|><|vision_end|>"
MARKS |= dict.fromkeys(QWEN, (_MARKED, "<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"))
NEEDED = {  # by processors that read videos too
    "llava_onevision": ("torchvision",),
    "internvl": ("torchvision",),
    "smolvlm": ("torchvision", "num2words"),
} | dict.fromkeys(QWEN, ("torchvision",))


def backbone_of(family):
    """The tiny model with a processor of its family, one token a byte; skips the test where that cannot be made."""
    make_host(family)
    for package in NEEDED.get(family, ()):
        pytest.importorskip(package, reason="this family's processor needs it")
    marks = MARKS[family][family in QWEN :]
    tokenizer = byte_tokenizer("<pad>", "<|im_start|>", "<|im_end|>", *marks)
    ends = {"pad_token": tokenizer.pad_token, "eos_token": tokenizer.eos_token}
    template = {"chat_template": CHAT_TEMPLATE.replace("<image>", MARKS[family][0])}
    square, crops = {"height": 24, "width": 24}, [[24, 48], [48, 24], [48, 48]]

    def naming(**names):  # the tokenizer, with attributes for the family's own tokens
        return type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, **ends, extra_special_tokens=names)

    if family == "llava_next":
        images = LlavaNextImageProcessorPil(size=square, crop_size=square, image_grid_pinpoints=crops)
        options = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
        processor = LlavaNextProcessor(images, tokenizer, **options, **template)
    elif family == "llava_onevision":
        images = LlavaOnevisionImageProcessorPil(size=square, image_grid_pinpoints=crops)
        options = {
            "num_image_tokens": 9,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_1",
        }
        processor = LlavaOnevisionProcessor(images, tokenizer, LlavaOnevisionVideoProcessor(), **options, **template)
    elif family == "internvl":
        images = GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=4)
        names = zip(("context_image_token", "start_image_token", "end_image_token", "video_token"), MARKS[family])
        processor = InternVLProcessor(images, naming(**dict(names)), InternVLVideoProcessor(), 4, **template)
    elif family in IDEFICS:
        kind = SmolVLMImageProcessorPil if family == "smolvlm" else Idefics3ImageProcessorPil
        images = kind(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
        tokenizer.add_tokens([f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2)], special_tokens=True)
        if family == "smolvlm":
            processor = SmolVLMProcessor(images, tokenizer, SmolVLMVideoProcessor(), image_seq_len=4, **template)
        else:
            processor = Idefics3Processor(images, tokenizer, image_seq_len=4, **template)
    elif family in QWEN:
        images = Qwen2VLImageProcessorPil(patch_size=8, size={"shortest_edge": 32 * 32, "longest_edge": 64 * 64})
        kind = Qwen2VLProcessor if family == "qwen2_vl" else Qwen2_5_VLProcessor
        processor = kind(images, tokenizer, Qwen2VLVideoProcessor(), **template)
    else:
        images = Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
        names = zip(("boi_token", "image_token", "eoi_token"), MARKS[family])
        processor = Gemma3Processor(images, naming(**dict(names)), image_seq_length=4, **template)
    torch.manual_seed(0)
    image = {"internvl": "<IMG_CONTEXT>"} | dict.fromkeys(QWEN, "<|image_pad|>")
    image = processor.tokenizer.convert_tokens_to_ids(image.get(family, "<image>"))
    model = AutoModelForImageTextToText.from_config(config_of(family, len(tokenizer), image))
    return Backbone(f"tiny-{family}", model.eval(), processor)
