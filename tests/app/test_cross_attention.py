"""An adapter of MPT4LM in the app: asked like the others, looked into by its cross-attention, refused elsewhere."""

import helpers
import pytest
import torch
from peft import get_peft_model

from app import attention, interaction, prompts
from app.ask import ask, rate
from app.attention import LLM, PICTURE, SEGMENTS, TOKENS
from app.cross_attention import ALL
from app.state import Asked, Studio, open_upload
from mmpt.explain.cross_attention import cross_attention


@pytest.fixture(scope="module")
def text_adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters") / "text"
    torch.manual_seed(0)
    backbone = helpers.backbone_for("mpt4lm")
    model = get_peft_model(backbone.model, helpers.config_for("mpt4lm", backbone))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def both(adapters, text_adapter, monkeypatch):
    monkeypatch.setattr("app.ask.MAX_NEW_TOKENS", 8)
    return Studio(helpers.tiny_backbone(), [*adapters, text_adapter])


@pytest.fixture
def asked(picture):
    return Asked(picture, "What?", {"one": "a cat", "text": "a dog"})


@pytest.fixture
def alone(text_adapter):
    backbone = helpers.backbone_for("mpt4lm")
    backbone.add_adapter(text_adapter)
    return backbone


class Click:
    index = 3


def test_it_answers_as_if_it_were_alone(both, alone, picture):
    *_, (message, left, right, asked, _) = ask(both, picture, "What?", "one", "text")
    assert message == "" and right == alone.answer([open_upload(picture)], ["What?"], 8)[0]
    assert ("text (MPT4LM)", "text") in both.choices()
    message, *shown, rated = rate(both, asked, picture, "What?", "one", "text")
    assert message == "" and list(rated) == ["one", "text"] and shown == list(rated.values())
    *_, (_, again, *_) = ask(both, picture, "What?", "one", "none")
    assert again == left  # the LLaVA is as it was


def test_from_words_to_patches(both, asked, alone):
    message, source, target, strip, picture, sentence = attention.offer(both, asked, "text", LLM)
    maps = cross_attention(alone, asked.image(), "What?")
    assert message == "" and source.value == ALL and target.choices == [] and picture.size == (336, 336)
    assert len(strip) == len(maps.words) and "MPT4LM" in sentence
    assert [text for text, kind in strip if kind == "question"] == list("What?")
    assert ("<|im_start|>", "template") in strip

    def drawn(view, source):
        message, figure = attention.draw(both, asked, "text", LLM, view, source, None, 0, 0, True)
        assert message == ""
        return torch.tensor(figure.data[0].z)

    torch.testing.assert_close(drawn(PICTURE, ALL), maps.on_picture())
    torch.testing.assert_close(drawn(PICTURE, "V2"), maps.on_picture([1]))
    torch.testing.assert_close(drawn(PICTURE, 3), maps.of_word(3))
    torch.testing.assert_close(drawn(TOKENS, ALL), maps.read_words())
    torch.testing.assert_close(drawn(PICTURE, "patch"), maps.on_picture())  # left over from another model
    message, source = attention.click_token(both, asked, "text", LLM, Click)
    assert message == "" and source.value == 3


def test_other_views_say_that_they_are_not_there(both, asked, progress):
    last = both, asked, "text"
    for message, *_ in (
        attention.draw(*last, LLM, SEGMENTS, ALL, None, 0, 0, True),
        attention.click_patch(*last, LLM, Click),
    ):
        assert "is not there for a model tuned with MPT4LM; choose “Over the picture”" in message
    for message, *_ in (
        prompts.offer(both, "text"),
        prompts.words(both, "text", next(iter(prompts.SPACES))),
        interaction.draw(*last, interaction.ANSWER, progress),
    ):
        assert "text was tuned with MPT4LM, for which this view is not there" in message


def test_without_such_an_adapter_there_is_no_second_model(studio):
    assert studio.asking.text is None and studio.looking.text is None
