"""Segments against the sequence that the LLM's layers really see, and against the words that were asked."""

import helpers
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from tiny_hosts import make_host
from transformers import LlavaImageProcessorPil

import mmpt
from mmpt.errors import InputError
from mmpt.explain.segments import SEGMENTS, Segments, encode, patch_boxes, segments, view_of, vision_segments
from mmpt.scenes import make_scene

QUESTION, ANSWER = "user: how many?", "two"
CONFIGS = [
    dict(textual_position="first"),
    dict(textual_position="before_instruction"),
    dict(textual_position="first", visual_readout="parameter"),
    dict(textual_position="before_instruction", visual_readout="none"),
    dict(num_textual_prompts=0),
    dict(num_visual_prompts=0),
    dict(textual_layers="last", visual_layers="last", textual_position="before_instruction"),
    dict(textual_layers=[1], textual_update="carry"),
]


def tuned(**fields):
    backbone = helpers.tiny_backbone()
    config = mmpt.M2PTConfig(**{"num_textual_prompts": 3, "num_visual_prompts": 2} | fields)
    backbone.model = get_peft_model(backbone.model, config).eval()
    return backbone


def picture(size=64):
    return make_scene(0, size).image


def inner_inputs(backbone, batch):
    """Inputs of the first LLM layer (T, D), features of the picture (n, D), output of the last tower layer (N, D)."""
    seen = {}
    host = backbone.model.model if not hasattr(backbone.model, "base_model") else backbone.model.get_base_model().model
    handles = [
        host.language_model.layers[0].register_forward_pre_hook(lambda m, args: seen.update(llm=args[0][0])),
        host.vision_tower.encoder.layers[-1].register_forward_hook(lambda m, args, out: seen.update(tower=out[0])),
    ]
    with torch.no_grad():
        backbone.model(**{k: v for k, v in batch.items() if k != "labels"})
        seen["features"] = host.get_image_features(pixel_values=batch["pixel_values"]).pooler_output[0]
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("fields", CONFIGS, ids=str)
@pytest.mark.parametrize("answer", [None, ANSWER])
def test_every_position_holds_what_it_is_said_to_hold(fields, answer):
    backbone = tuned(**fields)
    batch = encode(backbone, picture(), QUESTION, answer)
    found = segments(backbone, picture(), QUESTION, answer)
    seen = inner_inputs(backbone, batch)
    layer = backbone.model.base_model.layer
    settings = layer.settings["default"]
    assert len(found) == len(found.labels) == len(found.input_index) == len(seen["llm"])

    in_llm = torch.cat([found.where("visual"), found.where("patch")])  # prompts come first
    torch.testing.assert_close(seen["llm"][in_llm], seen["features"])
    assert len(found.where("visual")) == settings.extra_tokens
    assert len(found.where("textual")) == settings.config.num_textual_prompts
    if 0 in settings.textual_layers:
        prompts = layer.m2pt_textual_prompts["default"]["0"]
        torch.testing.assert_close(seen["llm"][found.where("textual")], prompts.detach())
    table = layer.backbone.host.get_input_embeddings()
    for i, (kind, label, column) in enumerate(zip(found.kinds, found.labels, found.input_index)):
        assert (column is None) == (kind in ("textual", "visual"))
        if kind in ("question", "answer", "other"):
            token = batch["input_ids"][0, column]
            torch.testing.assert_close(seen["llm"][i], table(token))
            assert label == backbone.processor.tokenizer.decode([token])
    columns = [c for c in found.input_index if c is not None]
    assert columns == list(range(batch["input_ids"].shape[1]))


@pytest.mark.parametrize("answer", [None, ANSWER])
def test_question_and_answer_are_the_words_that_were_given(answer):
    found = segments(tuned(), picture(), QUESTION, answer)
    written = {kind: "".join(found.labels[i] for i in found.where(kind)) for kind in SEGMENTS}
    assert written["question"] == QUESTION
    assert written["answer"] == ("" if answer is None else ANSWER + "<|im_end|>")
    assert written["textual"] == "T1T2T3" and written["visual"] == "V1V2"
    assert written["patch"].startswith("row 1 column 1row 1 column 2") and written["patch"].endswith("row 4 column 4")


def test_a_word_of_several_bytes_a_token_is_labelled_whole():
    found = segments(helpers.tiny_backbone(), picture(), "<|i?")  # begins as what follows a question does
    assert [found.labels[i] for i in found.where("question")] == ["<", "|", "i", "?"]
    found = segments(helpers.tiny_backbone(), picture(), "Größe?")
    assert [found.labels[i] for i in found.where("question")] == ["G", "r", "ö", "ö", "ß", "ß", "e", "?"]


def without_slots(method):
    """A backbone and the adapter to use, where no position is a prompt's."""
    backbone = tuned() if method == "disabled" else helpers.tiny_backbone()
    if method == "lora":
        backbone.model = get_peft_model(backbone.model, LoraConfig(target_modules=["q_proj"]))
    return backbone, "default" if method == "lora" else None


@pytest.mark.parametrize("method", ["none", "lora", "disabled"])
def test_without_prompts_there_are_no_slots(method):
    backbone, adapter = without_slots(method)
    with backbone.use(adapter):
        found = segments(backbone, picture(), QUESTION)
        tower = vision_segments(backbone, picture())
    assert found.present == ["patch", "question", "other"] and found.written == ()
    assert found.input_index == list(range(len(found)))
    assert tower.present == ["patch", "other"] and len(tower) == 17


@pytest.mark.parametrize(
    "fields, textual, visual",
    [
        (dict(), (0, 1), (0, 1)),
        (dict(textual_update="carry", visual_update="carry"), (0,), (0,)),
        (dict(textual_layers=[1], visual_layers=[1], textual_update="carry"), (1,), (1,)),
        (dict(num_textual_prompts=0), (), (0, 1)),
    ],
)
def test_the_layers_that_overwrite_the_slots(fields, textual, visual):
    backbone = tuned(**fields)
    assert segments(backbone, picture(), QUESTION).written == textual
    assert vision_segments(backbone, picture()).written == visual


@pytest.mark.parametrize("family, name", [("llava_next", "LLaVA-NeXT"), ("qwen2_5_vl", "Qwen2.5-VL")])
def test_other_families_are_refused(family, name):
    backbone = helpers.tiny_backbone()
    backbone.model = make_host(family)
    for view in (lambda: segments(backbone, picture(), QUESTION), lambda: vision_segments(backbone, picture())):
        with pytest.raises(InputError, match=f"which {name} crops, joins or looks at in its own way"):
            view()


def test_the_tower_ends_with_its_slots():
    backbone = tuned()
    found = vision_segments(backbone, picture())
    seen = inner_inputs(backbone, encode(backbone, picture(), QUESTION))
    assert found.kinds == ["other"] + ["patch"] * 16 + ["visual"] * 2
    assert found.labels[0] == "CLS" and found.labels[-2:] == ["V1", "V2"]
    assert len(found) == len(seen["tower"])


def test_boxes_tile_the_picture_row_by_row():
    boxes = segments(tuned(), picture(), QUESTION).boxes(200, 100)
    assert boxes.shape == (16, 4)
    assert boxes[1].tolist() == [50, 0, 100, 25] and boxes[-1].tolist() == [150, 75, 200, 100]


def test_boxes_leave_out_what_the_processor_crops():
    """Shortest edge to 32, then the middle 32 × 32, as LLaVA-1.5's processor does it."""
    backbone = tuned()
    images = backbone.processor.image_processor
    images = type(images)(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_center_crop=True)
    backbone.processor.image_processor = images
    wide = Image.new("RGB", (128, 64))
    found = segments(backbone, wide, QUESTION)
    boxes = found.boxes(*wide.size)
    assert boxes[0].tolist() == [32, 0, 48, 16] and boxes[-1].tolist() == [80, 48, 96, 64]
    # Only what lies in the boxes reaches the model.
    wide.paste((255, 0, 0), (0, 0, 31, 64))
    inside = Image.new("RGB", (128, 64))
    inside.paste((255, 0, 0), (32, 0, 48, 16))
    plain, margin, patch = (
        encode(backbone, p, QUESTION)["pixel_values"] for p in (Image.new("RGB", (128, 64)), wide, inside)
    )
    assert torch.equal(margin[..., 2:], plain[..., 2:])  # resampling blurs the border
    assert (patch - plain)[..., :8, :8].abs().mean() > 0.5


@pytest.mark.parametrize("size, view", [((400, 200), (0, -0.5, 1, 1.5)), ((50, 100), (-0.5, 0, 1.5, 1))])
def test_a_picture_that_is_padded_to_a_square_is_seen_whole(size, view):
    crop = {"height": 32, "width": 32}
    images = LlavaImageProcessorPil(size={"shortest_edge": 32}, crop_size=crop, do_pad=True, do_normalize=False)
    assert view_of(images, *size) == view
    left, top, right, bottom = patch_boxes((2, 2), view, *size)[0].int().tolist()  # of four patches the first
    image = Image.new("RGB", size)
    image.paste((255, 0, 0), (left, top, right, bottom))
    red = images(image, return_tensors="pt")["pixel_values"][0, 0] > 0.75
    assert red[:15, :15].any() and not red[17:].any() and not red[:, 17:].any()


def test_an_unknown_segment_is_refused():
    with pytest.raises(ValueError, match="no segment 'image'; choose one of textual"):
        Segments(["patch"], ["row 1 column 1"], [0], (1, 1)).where("image")


def test_on_the_embedded_model(tiny):
    image = make_scene(3).image
    found = segments(tiny, image, "How many objects are in the picture?", "There are two.")
    assert "".join(found.labels[i] for i in found.where("question")) == "How many objects are in the picture?"
    assert "".join(found.labels[i] for i in found.where("answer")) == "There are two.<|im_end|>"
    assert len(found.where("patch")) == found.grid[0] * found.grid[1]
