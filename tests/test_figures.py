"""Figures hold the numbers they were given, say in words what they are, and can be read on light and dark pages."""

import os
import re
import shutil
from base64 import b64decode
from dataclasses import replace
from io import BytesIO

import helpers
import pytest
import torch
from PIL import Image
from plotly.colors import unlabel_rgb

from mmpt import figures
from mmpt.errors import InputError
from mmpt.explain.attention import Attention, attention, vision_attention
from mmpt.explain.nearest import Nearest
from mmpt.explain.order import Order
from mmpt.explain.rollout import rollout
from mmpt.explain.segments import SEGMENTS, Segments
from mmpt.figures.style import INK, _page, ink_on, luminance, see_through, shown


def heat(figure):
    return next(trace for trace in figure.data if trace.type == "heatmap")


def grey_of(figure):
    png = b64decode(figure.layout.images[0].source.partition(",")[2])
    return Image.open(BytesIO(png)).getpixel((0, 0))


@pytest.fixture
def made_up():
    """Two layers of three heads over T1, a word, four patches (2 × 2), a question and an answer."""
    kinds = ["textual", "other", *["patch"] * 4, "question", "question", "answer", "answer"]
    weights = torch.rand(2, 3, 10, 10).tril()
    weights = weights / weights.sum(-1, keepdim=True)
    labels = ["T1", "<|im_start|>", "a", "b", "c", "d", " is", "\n", " red", "<|im_end|>"]
    order = Order((), (), "No textual prompt looks at a visual prompt.")
    return Attention(weights, Segments(kinds, labels, [None, *range(9)], (2, 2)), "is?", "red", order)


# ---- the look ------------------------------------------------------------------------------------------------------


def contrast(a, b):
    bright, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_text_contrasts_with_light_and_dark_pages():
    ink = tuple(bytes.fromhex(INK[1:]))
    assert contrast(ink, (255, 255, 255)) >= 4.5
    assert contrast(ink, (11, 15, 25)) >= 4.2  # Gradio's dark page
    assert contrast((255, 255, 255), (0, 0, 0)) == pytest.approx(21)


@pytest.mark.parametrize("scale", ["Viridis", "RdBu"])
def test_text_in_cells_contrasts_with_every_colour(scale):
    from plotly.colors import sample_colorscale

    for place in torch.linspace(0, 1, 21).tolist():
        ink = {"black": (0, 0, 0), "white": (255, 255, 255)}[ink_on(place, scale)]
        assert contrast(ink, unlabel_rgb(sample_colorscale(scale, [place])[0])) >= 4.5


def test_every_segment_has_a_colour_and_a_name_of_its_own():
    assert set(figures.COLOURS) == set(SEGMENTS) <= set(figures.NAMES)
    assert len(set(figures.COLOURS.values())) == len(SEGMENTS)


def test_what_lies_over_a_picture_lets_it_through_where_there_is_little():
    def strengths(scale):
        return [float(colour.split(",")[-1].strip(" )")) for _, colour in see_through(scale)]

    amounts, signed = strengths("Viridis"), strengths("RdBu")
    assert amounts[0] == 0 and amounts == sorted(amounts) and amounts[-1] == 0.85
    assert signed[0] == signed[-1] == 0.85 and signed[len(signed) // 2] == 0


def test_tokens_are_shown_as_text():
    found = [shown(t) for t in (" red", "\n", " ", "<|im_end|>", "<b>", "\x00", "\t")]
    assert found == ["red", "↵", "␣", "&lt;|im_end|&gt;", "&lt;b&gt;", "·", "⇥"]


def test_long_titles_are_wrapped_and_get_room():
    short = figures.loss([1, 2], [3.0, 2.0], "Loss")
    long = figures.titled(figures.loss([1, 2], [3.0, 2.0]), "What is lost " * 12, "a < b " * 30)
    lines = long.layout.title.text.split("<br>")
    assert max(map(len, lines)) <= 42 and " ".join(lines).count("What is lost") == 12
    assert "a &lt; b" in long.layout.title.subtitle.text
    assert long.layout.margin.t > short.layout.margin.t + 20 * (len(lines) - 1)


# ---- plain figures -------------------------------------------------------------------------------------------------


def test_overlay_puts_each_value_on_its_patch():
    values = torch.tensor([[0.1, -0.4], [0.2, 0.3]])
    boxes = Segments(["patch"] * 4, ["", "", "", ""], [0, 1, 2, 3], (2, 2), (0.25, 0.0, 0.75, 1.0)).boxes(200, 100)
    figure = figures.overlay(Image.new("RGB", (200, 100), "white"), values, boxes, "Here", signed=True)
    cells = heat(figure)
    assert list(cells.x) == [50, 100, 150] and list(cells.y) == [0, 50, 100]
    assert torch.tensor(cells.z).tolist() == values.tolist()
    assert (cells.zmin, cells.zmax) == pytest.approx((-0.4, 0.4))
    assert list(figure.layout.yaxis.range) == [100, 0]  # row 1 at the top
    (picture,) = figure.layout.images
    assert grey_of(figure) == 255  # under amounts the picture is dark
    assert grey_of(figures.overlay(Image.new("RGB", (200, 100), "white"), values, boxes, "Here")) == 127
    assert (picture.x, picture.y, picture.sizex, picture.sizey) == (0, 0, 200, 100)


def test_bars_are_coloured_by_segment_and_stand_where_their_tokens_do():
    values = torch.tensor([1.0, -2.0, 3.0])
    figure = figures.bars(values, ["a", "T1", "b"], ["question", "textual", "question"], "Worth")
    found = {trace.name: trace for trace in figure.data}
    assert list(found["question"].x) == [0, 2] and list(found["question"].y) == [1, 3]
    assert list(found["textual prompts"].y) == [-2]
    assert found["question"].marker.color == figures.COLOURS["question"]
    assert list(figure.layout.xaxis.ticktext) == ["a", "T1", "b"]


def test_a_matrix_has_its_first_row_at_the_top_and_its_words_in_their_cells():
    values = torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, float("nan")]])
    text = [["a", "b", "c"], ["d", "e", "f"]]
    figure = figures.matrix(values, ["r1", "r2"], ["x", "x", "y"], "Words", text=text)
    assert heat(figure).zmin == 0 and heat(figure).zmax == 4
    low, high = figure.layout.yaxis.range
    assert low > high
    (words,) = (trace for trace in figure.data if trace.type == "scatter")
    assert dict(zip(zip(words.x, words.y), words.text))[(2, 1)] == "f"
    assert words.textfont.color[0] == "white" and words.textfont.color[4] == "black"  # on violet, on yellow
    assert list(figure.layout.xaxis.ticktext) == ["x", "x", "y"]  # two tokens of one text stay two


def test_interaction_is_symmetric_around_nothing():
    values = torch.tensor([[0.5, -0.1, 0.0]])
    figure = figures.interaction(values, "Together", "Of “red”.")
    assert "Of “red”. Blue: T does more for the answer (or less" in figure.layout.title.subtitle.text.replace(
        "<br>", " "
    )
    assert heat(figure).colorbar.title.text == "nats"
    assert (heat(figure).zmin, heat(figure).zmax) == (-0.5, 0.5)
    assert list(figure.layout.xaxis.ticktext) == ["V1", "V2", "V3"] and list(figure.layout.yaxis.ticktext) == ["T1"]


def test_curves_are_drawn_against_mean_and_spread_of_random_orders():
    shares = torch.tensor([0.0, 0.5, 1.0])
    curve, random = torch.tensor([0.0, -3.0, -4.0]), torch.tensor([[0.0, -1.0, -4.0], [0.0, -2.0, -4.0]])
    figure = figures.against_random(shares, {"deletion": curve}, {"deletion": random}, "Deletion")
    assert figure.layout.yaxis.title.text == "nats"
    band, mean, line = figure.data
    assert list(line.y) == curve.tolist() and list(mean.y) == [0, -1.5, -4]
    spread = 0.5**0.5
    assert list(band.y) == pytest.approx([0, -1.5 + spread, -4, -4, -1.5 - spread, 0])
    assert list(band.x) == [0, 0.5, 1, 1, 0.5, 0]


def test_the_running_mean_of_the_loss():
    losses = torch.rand(40).tolist()
    each, mean = figures.loss(list(range(1, 41)), losses).data
    assert list(each.y) == losses
    assert mean.x[0] == 4 and mean.x[-1] == 40
    assert mean.y[10] == pytest.approx(sum(losses[10:14]) / 4)


# ---- attention -----------------------------------------------------------------------------------------------------


def test_overview(made_up):
    figure = figures.attention.overview(made_up, "answer", "patch")
    torch.testing.assert_close(torch.tensor(heat(figure).z), made_up.share("answer", "patch"))
    assert list(figure.layout.yaxis.ticktext) == ["1", "2"] and list(figure.layout.xaxis.ticktext) == ["1", "2", "3"]
    assert figure.layout.title.text.replace("<br>", " ").startswith(
        "Share of attention from the answer to the patches"
    )


def test_segments_carry_the_sentence_on_order(made_up):
    figure = figures.attention.between_segments(made_up, 1)
    torch.testing.assert_close(torch.tensor(heat(figure).z), made_up.matrix(1))
    assert "No textual prompt looks at" in figure.layout.title.subtitle.text
    assert "layer 2, mean over heads" in figure.layout.title.text.replace("<br>", " ")
    assert next(t for t in figure.data if t.type == "scatter").text[1] == "0"  # T1 sees itself alone


def test_positions_leave_empty_what_cannot_be_seen(made_up):
    cells = heat(figures.attention.between_positions(made_up, 0, 2))
    z = torch.tensor(cells.z)
    assert torch.equal(z.isnan(), torch.ones(10, 10, dtype=torch.bool).triu(1))
    torch.testing.assert_close(z.nan_to_num(0), made_up.weights[0, 2])
    assert cells.customdata[8][6] == "red → is"


def test_on_picture_and_seen_from(made_up):
    image = Image.new("RGB", (64, 64))
    cells = heat(figures.attention.on_picture(made_up, image, 8, 1, 0))
    torch.testing.assert_close(torch.tensor(cells.z), made_up.weights[1, 0, 8, 2:6].view(2, 2))
    figure = figures.attention.seen_from(made_up, 8, 1, 0)
    assert "position “red” goes" in figure.layout.title.text.replace("<br>", " ")
    assert "“&lt;|im_end|&gt;”" in figures.attention.flow(made_up, 9).layout.title.text
    bars = {t.name: t for t in figure.data}
    assert bars["patches"].y[0] == pytest.approx(made_up.weights[1, 0, 8, 2:6].sum().item(), rel=1e-5)
    assert list(bars["question"].x) == [3, 4]
    assert bars["question"].y[0] == pytest.approx(made_up.weights[1, 0, 8, 6].item(), rel=1e-5)


def test_shares_without_sinks_are_said_to_be_of_the_rest(made_up):
    rest, image = replace(made_up, left_out=("T1",)), Image.new("RGB", (64, 64))
    for seen, said in (made_up, "of the attention"), (rest, "of the attention that is not on T1"):
        figure = figures.attention.on_picture(seen, image)
        assert f"% {said};" in figure.layout.title.subtitle.text.replace("<br>", " ")
        assert heat(figure).colorbar.title.text == f"share {said}"
    assert "T1 is left out" in figures.attention.flow(rest).layout.title.subtitle.text.replace("<br>", " ")


def test_flow_adds_up_by_segment(made_up):
    figure = figures.attention.flow(made_up)
    rows = rollout(made_up)
    found = {trace.name: trace for trace in figure.data}
    assert list(found["patches"].y) == pytest.approx(rows[:, 2:6].sum(1).tolist())
    assert [sum(layer) for layer in zip(*(trace.y for trace in figure.data))] == pytest.approx([1, 1])


def test_words_are_written_in_their_cells_and_coloured_by_how_far_they_beat_chance():
    words = [[[" a", "b"], ["<s>", "d"]], [["e", "f"], ["g", "h"]]]
    nearest = Nearest("layer", (0, 4), words, torch.rand(2, 2, 2), 2000, torch.full((2, 2), 0.25))
    figure = figures.attention.words(nearest)
    assert list(figure.layout.yaxis.ticktext) == ["1", "5"]
    assert list(next(t for t in figure.data if t.type == "scatter").text) == ["a", "&lt;s&gt;", "e", "g"]
    torch.testing.assert_close(torch.tensor(heat(figure).z), nearest.values[..., 0] - 0.25)
    value = nearest.values[1, 0, 0]
    said = f"layer 5, T1: e, f<br>cosine {value:.2f}, 19 of 20 random vectors up to 0.25"
    assert heat(figure).customdata[1][0] == said
    assert "Only the vocabulary's first 2,000 tokens" in figure.layout.title.subtitle.text.replace("<br>", " ")
    figure = figures.attention.words(Nearest("head", (0, 4), words, nearest.values, 2000, None))
    assert torch.tensor(heat(figure).z).tolist() == nearest.values[..., 0].tolist()


def test_all_of_a_real_model():
    backbone, image = helpers.tiny_backbone(), Image.new("RGB", (64, 64), "red")
    look = figures.attention
    for seen, source in (
        (attention(backbone, image, "what?", "red"), "predicting"),
        (vision_attention(backbone, image), 0),
    ):
        made = [
            look.overview(seen, source), look.between_segments(seen), look.between_positions(seen),
            look.flow(seen, source), look.on_picture(seen, image, source), look.seen_from(seen, source),
        ]  # fmt: skip
        assert all(figure.layout.title.text for figure in made)


# ---- files ---------------------------------------------------------------------------------------------------------


def test_html_is_one_file_that_needs_no_network(tmp_path):
    figures.save(figures.loss([1, 2], [3.0, 2.0]), tmp_path / "loss.html")
    page = (tmp_path / "loss.html").read_text()
    assert page.startswith("<!doctype html>") and "<title>The loss while tuning</title>" in page
    assert 'name="color-scheme" content="light dark"' in page
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page)
    assert "Plotly.newPlot" in page and len(page) > 1 << 20
    assert [p.name for p in tmp_path.iterdir()] == ["loss.html"]


def test_the_page_of_a_title_with_signs():
    assert "<title>a &lt;b&gt; c</title>" in _page(figures.loss([1, 2], [1.0, 1.0], "a <b> c"))


def test_png(tmp_path):
    if not any(map(shutil.which, ("chromium", "google-chrome", "google-chrome-stable", "chrome"))):
        assert not os.environ.get("CI"), "no browser, though .ci/run installs one"
        pytest.skip("There is no Chrome or Chromium here to draw a PNG with.")
    figure = figures.loss([1, 2], [3.0, 2.0])
    figures.save(figure, tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as png:
        assert png.size == (1800, 2 * figure.layout.height)
        assert png.convert("RGBA").getpixel((5, png.height - 5))[3] == 0  # nothing is painted behind it
        assert len(png.convert("RGB").getcolors(1 << 24)) > 20


def test_what_cannot_be_saved_leaves_no_file(tmp_path, monkeypatch):
    figure = figures.loss([1, 2], [3.0, 2.0])
    with pytest.raises(InputError, match="cannot be saved as loss.gif; end the name in .html or .png"):
        figures.save(figure, tmp_path / "loss.gif")
    with pytest.raises(InputError, match="cannot be written; give a file in a folder that exists"):
        figures.save(figure, tmp_path / "nowhere" / "loss.html")

    def no_browser(*args, **kwargs):
        raise RuntimeError("\nKaleido requires Google Chrome to be installed.\n")

    monkeypatch.setattr(type(figure), "to_image", no_browser)
    with pytest.raises(
        InputError, match="cannot be drawn without Chrome or Chromium; install one, or save .* as .html"
    ):
        figures.save(figure, tmp_path / "loss.png")
    assert list(tmp_path.iterdir()) == []
