"""What the tabs that look inside show: the library's numbers, on the last question, and one sentence for a mistake."""

import re
from types import SimpleNamespace

import gradio as gr
import plotly.graph_objects as go
import pytest
import torch
from helpers import score

from app import attention, attribution, interaction, prompts
from app.export import save_figure
from app.whose import about, answer_of, picker
from mmpt.backbones import Backbone
from mmpt.errors import InputError
from mmpt.explain.attention import PREDICTING
from mmpt.explain.targets import Case, Target


class Click:
    def __init__(self, index):
        self.index = index


class Shown:
    """What a page hands over of a figure."""

    def __init__(self, figure):
        self.plot = figure.to_json()


def test_the_last_question_in_words(asked):
    assert about(None) == ("Nothing has been asked yet: ask a question in the tab *Ask*, then come back.", None)
    text, first = about(asked)
    assert text == "On “What?” the untouched model answered “a cat”; one answered “a dog”." and first == "one"
    assert about(asked, "none")[1] == "none" and answer_of(asked, "one") == "a dog"
    with pytest.raises(InputError, match="Nothing has been asked yet"):
        answer_of(None, "one")


def test_another_question_or_model_clears_what_was_said_of_the_last(asked):
    with gr.Blocks() as page:
        figure = gr.Plot()
        whose, message, _ = picker(gr.State(), [figure])
    renew, clear = page.fns.values()
    assert renew.outputs[1:] == [whose, message, figure] and clear.targets == [(whose._id, "input")]
    _, models, *cleared = renew.fn(asked, "one")
    assert models.value == "one" and cleared == [None, None]
    assert clear.outputs == [message, figure] and clear.fn() == (None, None)


def test_every_figure_of_a_look_is_of_the_model_that_is_chosen(studio):
    for look in (attention, attribution, interaction, prompts):
        with gr.Blocks() as page, gr.Tab() as item:
            look.tab(studio, gr.State(), item, *[gr.State()] * (look in (attention, attribution)))
        cleared = {
            part
            for event in page.fns.values()
            if event.fn and event.fn.__module__ == "app.whose"
            for part in event.outputs
        }
        assert {part for part in page.blocks.values() if isinstance(part, gr.Plot)} <= cleared


@pytest.mark.parametrize("tower", [attention.LLM, attention.TOWER])
def test_attention(studio, asked, tower):
    message, source, target, strip, picture, sentence = attention.offer(studio, asked, "one", tower)
    assert message == "" and picture.size == (336, 336) and sentence
    found = attention.seen(studio, asked, "one", tower)
    assert len(strip) == len(found.segments) - 16
    for view in attention.VIEWS[: -1 if tower == attention.TOWER else None]:
        place = "patch" if tower == attention.TOWER else PREDICTING
        message, figure = attention.draw(studio, asked, "one", tower, view, place, "patch", 1, 2, True)
        assert message == "" and figure.layout.title.text
    values = attention.draw(studio, asked, "one", tower, attention.PICTURE, "visual", "patch", 1, 2, True)[1].data[0].z
    torch.testing.assert_close(torch.tensor(values), found.on_picture("visual", 0, 1))


def test_a_click_chooses_a_patch_or_a_token(studio, asked):
    found = attention.seen(studio, asked, "one", attention.LLM).segments
    last = studio, asked, "one", attention.LLM
    _, source = attention.click_patch(*last, Click([100, 10]))  # four patches of 84 pixels a row
    assert source.value == found.where("patch")[1] and source.choices[-1] == ("patch: row 1 column 2", source.value)
    strip = attention.offer(*last)[3]
    at = [text for text, _ in strip].index("T2")
    _, source = attention.click_token(*last, Click(at))
    assert found.labels[source.value] == "T2"


@pytest.mark.parametrize("name", attribution.METHODS)
def test_attribution(studio, asked, progress, name):
    given = studio, asked, "one", name, attribution.ANSWER, "mean"
    message, figure, views, words, _ = attribution.draw(*given, attribution.PICTURE, progress)
    assert message == "" and figure.layout.title.text and "log-probability of the answer “a dog” is -" in words
    assert progress.seen[0] == 0 and 0.2 < progress.seen[-1] <= 1  # the bar gets somewhere
    found, _ = attribution.explain(*given, progress)
    note = figure.layout.title.subtitle.text.replace("-<br>", "-").replace("<br>", " ")
    whole = f"one, {found.method}: what each adds to the {found.target}, from" in note
    gone = "a square that it is in, on average" if name == "Occlusion" else "it"
    apart = f"one, {found.method}: by how much the {found.target} falls without {gone}." in note
    assert (whole, apart) == (bool(found.totals), found.base is None)
    for view in attribution.views_of(found):
        assert attribution.draw(*given, view, progress)[0] == ""
    with studio.looking.use("one") as backbone:
        value = score(backbone, [asked.image()], [asked.question], [Target("a dog")]).item()
    assert found.score == pytest.approx(value, rel=1e-4)


def test_targets(studio, asked):
    _, targets, tokens = attribution.offer(studio, asked, "one")
    assert [value for _, value in targets.choices] == [attribution.ANSWER, 0, 1, 2, 3, 4, 5, attribution.DIFFERENCE]
    assert [text for text, _ in tokens] == [*"a␣dog", "(end)"]
    assert attribution.target_of(asked, "one", 2) == Target("a dog", token=2)
    assert attribution.target_of(asked, "one", attribution.DIFFERENCE) == Target("a dog", other="a cat")


def test_a_map_is_checked(studio, asked, progress):
    given = studio, asked, "one", "Integrated gradients", attribution.ANSWER, "mean", attribution.PICTURE
    *_, drawn = attribution.draw(*given, progress)
    message, figure, words = attribution.check(studio, asked, drawn, progress)
    assert message == "" and len(figure.data) == 6 and figure.layout.yaxis.title.text == "probability"
    assert "most in favour first" in figure.layout.title.subtitle.text.replace("<br>", " ")
    assert re.fullmatch(r"\*\*The map .* chance\*\*: deletion area .*; insertion area .* of them\.", words)
    message, *_ = attribution.check(studio, asked, ("one", "Shapley values", attribution.ANSWER, "mean"), progress)
    assert "Shapley values gives no map over the picture" in message


def test_what_is_shown_and_checked_is_what_was_drawn(studio, asked, progress):
    _, figure, _, words, drawn = attribution.draw(
        studio, asked, "one", "Ablation one by one", 1, "grey", attribution.PICTURE, progress
    )
    assert drawn == ("one", "Ablation one by one", 1, "grey")
    again = attribution.show(studio, asked, drawn, attribution.PICTURE, progress)
    assert again[1].to_json() == figure.to_json() and again[3:] == (words, drawn)
    for message, *_ in (
        attribution.show(studio, asked, None, attribution.PICTURE, progress),
        attribution.check(studio, asked, None, progress),
    ):
        assert "Nothing is drawn yet" in message


def test_interaction(studio, asked, progress):
    message, figure, words = interaction.draw(studio, asked, "one", attribution.ANSWER, progress)
    values = torch.tensor(figure.data[0].z)
    i, j = map(int, re.search(r"strongest pair is T(\d) and V(\d)", words).groups())
    assert 0.4 < progress.seen[-1] <= 1
    note = figure.layout.title.subtitle.text.replace("-<br>", "-").replace("<br>", " ")
    assert note.startswith("one, log-probability of the answer “a dog”. Blue")
    assert message == "" and values.shape == (3, 2) and values.abs().max() == values[i - 1, j - 1].abs()
    message, *_ = interaction.draw(studio, asked, "none", attribution.ANSWER, progress)
    assert "the active adapter has none" in message


def test_prompts_on_and_off(studio, asked):
    _, textual, visual, *rest = prompts.offer(studio, "one")
    assert rest == [1, 1, None, None]
    assert (textual.value, visual.value) == (["T1", "T2", "T3"], ["V1", "V2"])
    image, question = asked.image(), asked.question
    with studio.looking.use("one") as backbone:
        tuned = backbone.answer([image], [question])[0]
        case = Case(backbone, image, question, Target("a dog"))
        off = case(textual=torch.tensor([[2.0, 0, 2]]), visual=torch.zeros(1, 2)).exp().item()
    assert prompts.change(studio, asked, "one", textual.value, visual.value, 1, 1)[1] == tuned
    message, answer, words = prompts.change(studio, asked, "one", ["T1", "T3"], [], 2, 1)
    assert message == "" and answer != tuned and f"and has {off:.1%} now" in words
    assert prompts.offer(studio, "none")[1].choices == []


def test_an_answer_without_words_is_told(studio, asked, monkeypatch):
    monkeypatch.setattr(Backbone, "answer", lambda *args: [""])
    message, answer, _ = prompts.change(studio, asked, "one", ["T1"], [], 1, 1)
    assert message == "" and answer == prompts.SILENT


def test_each_prompts_effect(studio, asked, progress):
    message, figure, words = prompts.effects(studio, asked, "one", progress)
    assert message == "" and [len(bars.y) for bars in figure.data] == [3, 2] and words.startswith("The answer changes")
    answers = re.findall("“(.*?)”", words.replace("\\", ""))
    assert max(map(len, answers)) <= 8  # as many tokens, of a byte each, as the app answers with
    message, *_ = prompts.effects(studio, asked, "none", progress)
    assert "has no prompts" in message


def test_nearest_words(studio):
    for space in prompts.SPACES:
        message, figure = prompts.words(studio, "two", space)
        assert message == "" and torch.tensor(figure.data[0].z).shape == (2, 3)
    assert "The untouched model has no prompts" in prompts.words(studio, "none", space)[0]


def test_nothing_asked(studio, progress):
    for message, *_ in (
        attention.offer(studio, None, None, attention.LLM),
        attribution.draw(studio, None, None, "Occlusion", attribution.ANSWER, "mean", attribution.PICTURE, progress),
        interaction.draw(studio, None, None, attribution.ANSWER, progress),
        prompts.effects(studio, None, None, progress),
    ):
        assert "Nothing has been asked yet" in message


def test_figures_are_saved(studio):
    figure = prompts.words(studio, "one", "through the output head")[1]
    message, path = save_figure("html", "words", Shown(figure))
    assert message == "" and path.endswith("words.html") and "textual prompt" in open(path).read()
    assert "There is no figure yet to save." in save_figure("html", "words", None)[0]


def test_a_figure_that_names_foreign_files_is_not_drawn():
    shown = go.Figure(layout={"title": {"text": "a"}})
    shown.add_heatmap(z=[[1]])
    assert save_figure("html", "mine", SimpleNamespace(plot=shown.to_json()))[1].endswith("mine.html")
    shown.add_layout_image(source="http://127.0.0.1/inside")
    for text in (shown.to_json(), "{}", "no figure", '{"data": [{"type": "scattermapbox"}]}'):
        message, file = save_figure("html", "mine", SimpleNamespace(plot=text))
        assert file is None and "This is no figure of this page" in message
