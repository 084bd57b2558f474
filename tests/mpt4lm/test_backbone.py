"""A text-only LLM with a tower beside it is asked and tuned like any other backbone."""

import json
import math
from copy import deepcopy

import pytest
import torch
from helpers import tiny_backbone
from peft import get_peft_model
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPVisionModel, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from mmpt.errors import InputError
from mmpt.evaluate import evaluate
from mmpt.likelihood import likeliest
from mmpt.mpt4lm import MPT4LMConfig, VisionBesideLM
from mmpt.mpt4lm.backbone import PLAIN_TEMPLATE, TextBackbone, load, without_projector
from mmpt.reading import read
from mmpt.train import AnswerLoss, TrainConfig, train

SMALL = dict(
    num_visual_prompts=3,
    cross_attention_width=16,
    cross_attention_heads=2,
    num_instruction_tokens=2,
    adapter_rank=4,
)
IMAGES = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
TURNS = [[("What is it?", "red"), ("Is it?", "yes, it is")], [("Why?", "no")]]


@pytest.fixture
def llama():
    return without_projector(tiny_backbone())


@pytest.fixture
def t5(llama):
    """The same tower and tokenizer with a tiny T5."""
    config = T5Config(
        d_model=48, d_ff=64, d_kv=12, num_heads=4, num_layers=2, vocab_size=len(llama.processor.tokenizer),
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=2, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    model = VisionBesideLM.of(llama.model.vision_tower, T5ForConditionalGeneration(config).eval())
    return TextBackbone("tiny-t5", model, llama.processor)


def text(backbone, ids):
    return backbone.processor.tokenizer.decode(ids)


def test_without_projector_is_the_same_llm(llama):
    llava = tiny_backbone()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(llama.model(input_ids=ids).logits, llava.model(input_ids=ids).logits)
        pixels = torch.randn(1, 3, 32, 32)
        features = llava.model.get_image_features(pixels, return_dict=True).pooler_output[0]
        projected = llava.model.model.multi_modal_projector(llama.model.get_image_features(pixels))[0]
        torch.testing.assert_close(projected, features)
    assert isinstance(llama.model.language_model, LlamaForCausalLM) and llama.name == "tiny-random-text"


def test_inputs(llama):
    batch = llama.inputs(IMAGES, ["What is it?", "Why?"])
    assert text(llama, batch["input_ids"][0]) == "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    assert batch["attention_mask"][:, -1].all() and not batch["attention_mask"][1, 0]  # left padded
    llama.processor.chat_template = PLAIN_TEMPLATE
    batch = llama.inputs(IMAGES[:1], ["Why?"])
    assert text(llama, batch["input_ids"][0]) == "Question: Why?\nAnswer:"


def test_training_inputs(llama):
    batch = llama.training_inputs(IMAGES, TURNS)
    assert len(batch["pixel_values"]) == 3 and torch.equal(*batch["pixel_values"][:2])
    answers = [answer for turns in TURNS for _, answer in turns]
    for r, answer in enumerate(answers):
        labels = batch["labels"][r]
        assert text(llama, labels[labels != -100]) == f"{answer}<|im_end|>"
        seen = batch["input_ids"][r][batch["attention_mask"][r].bool()]
        assert text(llama, seen).endswith(f"assistant\n{answer}<|im_end|>")
        question = batch["question_mask"][r].bool()
        assert text(llama, batch["input_ids"][r, : len(question)][question]).endswith("<|im_start|>assistant\n")


def test_t5_training_inputs(t5):
    batch = t5.training_inputs(IMAGES, TURNS)
    for r, answer in enumerate(("red", "yes, it is", "no")):
        labels = batch["labels"][r]
        assert text(t5, labels[labels != -100]) == f"{answer}<|im_end|>"
        assert batch["decoder_input_ids"][r, 0] == 0
        assert torch.equal(batch["decoder_input_ids"][r, 1:], labels[:-1].masked_fill(labels[:-1] == -100, 0))
    model = get_peft_model(t5.model, MPT4LMConfig(**SMALL))
    assert math.isfinite(model(**batch).loss.item())


def test_a_rows_loss_knows_nothing_of_other_turns(llama):
    """Each answer is as likely as if its question had been asked alone, and its own words tell the prompts nothing."""
    torch.manual_seed(0)
    model = llama.model = get_peft_model(llama.model, MPT4LMConfig(**SMALL)).eval()
    with torch.no_grad():
        batch = llama.training_inputs(IMAGES, TURNS)
        together, start = model(**batch).logits, batch["question_mask"].shape[1] - 1
        for r, turn in enumerate([turn for turns in TURNS for turn in turns]):
            image = IMAGES[0 if r < 2 else 1]
            batch = llama.training_inputs([image], [[turn]])
            alone = model(**batch).logits[0]
            labels = (batch["labels"][0] != -100).nonzero()[:, 0]
            torch.testing.assert_close(
                together[r, start : start + len(labels)], alone[labels - 1], atol=1e-5, rtol=1e-5
            )
            asked = model(**llama.inputs([image], [turn[0]])).logits[0, -1]
            torch.testing.assert_close(alone[labels[0] - 1], asked, atol=1e-5, rtol=1e-5)


def test_answers(llama, t5):
    for backbone in (llama, t5):
        backbone.model.generation_config.eos_token_id = None
        backbone.model = get_peft_model(backbone.model, MPT4LMConfig(**SMALL)).eval()
        found = backbone.answer(IMAGES, ["What is it?", "Why?"], max_new_tokens=6)
        for image, question, answer in zip(IMAGES, ("What is it?", "Why?"), found):
            assert backbone.answer([image], [question], max_new_tokens=6) == [answer]
            assert question not in answer
        with backbone.use(None):
            plain = backbone.answer(IMAGES[:1], ["What is it?"], max_new_tokens=6)
            assert backbone.answer(IMAGES[1:], ["What is it?"], max_new_tokens=6) == plain  # blind


def test_the_training_loops_loss_is_the_models_own(llama, t5):
    for backbone in (llama, t5):
        model = get_peft_model(backbone.model, MPT4LMConfig(**SMALL)).eval()
        batch = backbone.training_inputs(IMAGES, TURNS)
        n = (batch["labels"] != -100).sum()
        torch.testing.assert_close(AnswerLoss(model)(batch) / n, model(**batch).loss)


@torch.no_grad()
@pytest.mark.parametrize("lm", ["llama", "t5"])
def test_choices_and_answers_from_one_reading(request, lm):
    """Equal to those of each question asked alone."""
    backbone = request.getfixturevalue(lm)
    backbone.model = get_peft_model(backbone.model, MPT4LMConfig(**SMALL)).eval()
    questions, images = ["What is it?", "Which of all these?", "Why?"], [*IMAGES, IMAGES[0]]
    options = [("yes it is", "yes", "no", "it is"), ("red", "reddish", "blue"), ("at the top", "at", "left")]
    reading = read(backbone, images, questions)
    chosen = likeliest(reading, options)

    def in_full(image, question, option):
        batch = backbone.training_inputs([image], [[(question, option)]])
        return -backbone.model(**batch).loss.item() * (batch["labels"] != -100).sum().item()

    expected = [backbone.answer([i], [q], max_new_tokens=5)[0] for i, q in zip(images, questions)]
    for i, q, texts, choice in zip(images, questions, options, chosen):
        assert choice == max(texts, key=lambda option: in_full(i, q, option))
    for _ in range(2):  # nothing of the first answer stays
        assert reading.answer(max_new_tokens=5) == expected
    assert likeliest(reading, options) == chosen


@pytest.mark.parametrize("lm", ["llama", "t5"])
def test_two_steps_and_an_evaluation(request, tmp_path, lm):
    """`mmpt.train.train` and `mmpt.evaluate.evaluate`, as for any backbone."""
    backbone = request.getfixturevalue(lm)
    fresh = TextBackbone(backbone.name, deepcopy(backbone.model), backbone.processor)
    config = TrainConfig(out=tmp_path / "run", steps=2, pictures=2, turns=2, log_every=1)
    folder = train(backbone, MPT4LMConfig(**SMALL), config)
    record = json.loads((folder / "training.json").read_text())
    assert record["backbone"] == backbone.name and math.isfinite(record["final_loss"])
    tensors = load_file(folder / "adapter_model.safetensors")
    assert record["tuned_parameters"] == sum(t.numel() for t in tensors.values())
    moved = [value.abs().max() > 0 for key, value in tensors.items() if key.endswith("up.weight")]
    assert len(moved) == (4 if lm == "llama" else 10) and all(moved)
    assert evaluate(backbone, "base", limit=2)["n"] == 2
    assert evaluate(backbone, "mini-vsr", limit=2)["choice"]["figures"]

    fresh.add_adapter(folder)
    batch = fresh.inputs(IMAGES, ["What is it?", "Why?"])
    batch |= {"decoder_input_ids": batch["input_ids"][:, :3]} if lm == "t5" else {}
    with torch.no_grad():
        torch.testing.assert_close(fresh.model(**batch).logits, backbone.model(**batch).logits, atol=1e-5, rtol=1e-5)


def test_loading(tmp_path, t5, llama):
    """From two folders: a tower alone or a whole CLIP, and an LLM of either kind."""
    with pytest.raises(InputError, match="has no eyes; give tower"):
        load("google/flan-t5-xl")
    with pytest.raises(InputError, match="could not be loaded"):
        load(tmp_path / "nothing", tmp_path)
    llama.model.vision_tower.save_pretrained(tmp_path / "tower")
    llama.processor.image_processor.save_pretrained(tmp_path / "tower")
    for name, backbone in (("llama", llama), ("t5", t5)):
        backbone.model.generation_config.update(repetition_penalty=2.0, eos_token_id=5)
        backbone.model.language_model.save_pretrained(tmp_path / name)
        backbone.processor.tokenizer.save_pretrained(tmp_path / name)
        loaded = load(tmp_path / name, tmp_path / "tower", device="cpu")
        assert isinstance(loaded.model.vision_tower, CLIPVisionModel)
        assert loaded.model.config.vision_feature_layer == -2
        batch = loaded.inputs(IMAGES, ["What is it?", "Why?"])
        assert text(loaded, batch["input_ids"][0]).endswith("Question: What is it?\nAnswer:")
        with torch.no_grad():
            kwargs = {"decoder_input_ids": batch["input_ids"][:, :3]} if name == "t5" else {}
            assert torch.equal(loaded.model(**batch, **kwargs).logits, backbone.model(**batch, **kwargs).logits)
        tokenizer, asked = loaded.processor.tokenizer, (IMAGES[:1], ["Why?"])
        assert loaded.end_ids == [tokenizer.eos_token_id, 5]
        reading = read(loaded, *asked)
        assert loaded.answer(*asked, 8) == reading.answer(8)
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(reading.logits[0].argmax().item())
        assert loaded.answer(*asked, 8) == read(loaded, *asked).answer(8)
