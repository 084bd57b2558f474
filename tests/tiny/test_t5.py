import shutil

import pytest
import torch
from safetensors.torch import load_file

import mmpt
from mmpt.errors import InputError
from mmpt.mpt4lm.backbone import load
from mmpt.scenes import make_scene
from mmpt.tiny.describe import describe
from mmpt.tiny.t5 import SceneTexts, evaluate, make_model, make_tokenizer, pretrain, question_on


def test_texts():
    texts = SceneTexts(4, 7, 2)
    assert [texts.text(i) for i in range(4)] == [SceneTexts(4, 7, 2).text(i) for i in range(4)]
    for i in range(4):
        read, said = texts.text(i)
        description = describe(make_scene(7 + i))
        assert read.startswith(f"{description}\nQuestion: ") and read.endswith("\nAnswer:")
        assert said and (said == description) == (i < 2)
    tokenizer = make_tokenizer(" ".join(texts.text(i)) for i in range(4))
    assert make_model().get_input_embeddings().num_embeddings >= len(tokenizer)
    for text in (read, said, "ünheard-of"):
        ids = tokenizer(text)["input_ids"]
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text
    assert set(tokenizer(read)) == {"input_ids", "attention_mask"}


def test_a_run_that_was_interrupted_ends_like_an_unbroken_one(tmp_path):
    pretrain(tmp_path, steps=4, batch=2, save_every=2)
    whole = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    shutil.rmtree(tmp_path / "checkpoint-4")
    pretrain(tmp_path, steps=4, batch=2, save_every=2)
    again = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert 0 <= evaluate(tmp_path, n=1)["mean"] <= 100


@pytest.fixture(scope="module")
def shipped():
    return load("tiny-t5", device="cpu")


def test_the_shipped_one_answers_from_a_description(shipped):
    """It is the text-only LLM while nothing is tuned: what it is told it knows, and pictures it does not look at."""
    scenes, tokenizer = [make_scene(seed) for seed in range(3 << 32, (3 << 32) + 8)], shipped.processor.tokenizer
    told = [question_on(describe(scene), "What colour is the background?") for scene in scenes]
    batch = tokenizer(told, padding=True, return_tensors="pt")
    with torch.inference_mode():
        answers = tokenizer.batch_decode(shipped.model.generate(**batch, max_new_tokens=8), skip_special_tokens=True)
    assert [answer.strip() for answer in answers] == [scene.background for scene in scenes]
    images = [scene.image for scene in scenes]
    assert len(set(shipped.answer(images, ["What colour is the background?"] * len(images)))) == 1


def test_it_needs_an_adapter_to_see():
    with pytest.raises(InputError, match='reads words only; give an adapter of MPT4LM, such as "mpt4lm-t5"'):
        mmpt.load("tiny-t5")
    assert mmpt.load("tiny-t5", adapter="mpt4lm-t5").name == "tiny-t5"
