"""The three views from the command line's side: figure, sentences and data of one answer."""

import json

import pytest
import torch
from helpers import tiny_backbone
from peft import get_peft_model

from mmpt.errors import InputError
from mmpt.explain.attention import Attention, attention
from mmpt.explain.views import VIEWS, view
from mmpt.figures import save
from mmpt.m2pt import M2PTConfig
from mmpt.scenes import make_scene

IMAGE, QUESTION = make_scene(3).image, "What is it?"


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    backbone = tiny_backbone()
    backbone.model = get_peft_model(
        backbone.model, M2PTConfig(num_textual_prompts=3, num_visual_prompts=2, init="normal", init_std=0.3)
    ).eval()
    return backbone


@pytest.mark.parametrize("name", VIEWS)
def test_views(backbone, name, tmp_path):
    seen = view(backbone, IMAGE, QUESTION, name, answer="a cat")
    told = json.loads(seen.json())
    assert (told["view"], told["question"], told["answer"]) == (name, QUESTION, "a cat")
    assert told["data"] and all(told["sentences"])
    save(seen.figure, tmp_path / "figure.html")
    assert "plotly" in (tmp_path / "figure.html").read_text()[:100_000].lower()


def test_what_the_views_say(backbone):
    seen = view(backbone, IMAGE, QUESTION, "attention", answer="a cat")
    assert "no textual prompt looks at a visual prompt" in seen.sentences[0]
    rows = seen.data["between_segments"]
    assert all(sum(row.values()) == pytest.approx(1, abs=1e-4) for row in rows.values())
    seen = view(backbone, IMAGE, QUESTION, "attribution", answer="a cat")
    assert len(seen.data["patches"]) == 4 and set(seen.data["check"]) == {"deletion", "insertion"}
    assert "of the random orders" in seen.sentences[1]
    seen = view(backbone, IMAGE, QUESTION, "interaction", answer="a cat")
    assert len(seen.data["matrix"]) == 3 and len(seen.data["matrix"][0]) == 2


def test_the_data_tell_the_models_own_shares_beside_those_without_sinks(backbone, monkeypatch):
    monkeypatch.setattr(Attention, "sinks", lambda *args: torch.tensor([0]))
    data = view(backbone, IMAGE, QUESTION, "attention", answer="a cat").data
    own = torch.tensor(data["patches"])
    torch.testing.assert_close(own, attention(backbone, IMAGE, QUESTION, "a cat").on_picture("predicting"))
    assert tuple(data["sinks"]) == ("T1",) and (torch.tensor(data["patches_without_sinks"]) > own).all()


def test_the_models_own_answer_is_explained(backbone):
    seen = view(backbone, IMAGE, QUESTION, "interaction")
    assert seen.answer == backbone.answer([IMAGE], [QUESTION])[0]


def test_bad_input(backbone):
    with pytest.raises(InputError, match="There is no view 'magic' of .*; choose one of attention, attribution"):
        view(backbone, IMAGE, QUESTION, "magic")
    with pytest.raises(InputError, match="The view 'attention' is of no single word; leave the word out"):
        view(backbone, IMAGE, QUESTION, "attention", answer="a cat", word="it")
    with pytest.raises(InputError, match="answered nothing"):
        view(backbone, IMAGE, QUESTION, "attention", answer="")
    with pytest.raises(InputError, match="Interaction is between textual and visual prompts"):
        with backbone.use(None):
            view(backbone, IMAGE, QUESTION, "interaction", answer="a cat")
