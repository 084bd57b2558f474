"""One model for everybody: no mix-up of adapters, no growth."""

import gc
import html
import shutil
import weakref
from concurrent.futures import ThreadPoolExecutor

import helpers
import psutil
import pytest
import torch
from markdown_it import MarkdownIt

import mmpt
from app.ask import ask
from app.state import MAX_KEPT, MAX_TUNED, Studio, alert, open_upload, plain, told, twin
from mmpt.errors import InputError


def final(*args):
    return list(ask(*args))[-1][1:3]


def test_twin_shares_the_weights_and_nothing_else(adapters):
    backbone = helpers.tiny_backbone()
    other = twin(backbone)
    assert all(a is b for a, b in zip(backbone.model.parameters(), other.model.parameters()))
    other.add_adapter(adapters[0])
    assert not hasattr(backbone.model, "peft_config")


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_twins_of_a_model_in_few_bits_are_equal(tmp_path, picture, quantize):
    pytest.importorskip("bitsandbytes")
    made = helpers.tiny_backbone(width=64)
    made.model.save_pretrained(tmp_path)
    made.processor.save_pretrained(tmp_path)
    backbone = mmpt.load(tmp_path, quantize=quantize)
    twins = [backbone, twin(backbone), twin(backbone)]
    batch = backbone.inputs([open_upload(picture)], ["What?"])
    with torch.no_grad():
        logits = [one.model(**batch).logits for one in twins]
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])


def test_dropping_the_only_adapter_leaves_a_lane_that_works(adapters, picture):
    studio, image = Studio(helpers.tiny_backbone(), adapters), open_upload(picture)
    expected = {}
    for name in ("none", "two"):
        with Studio(helpers.tiny_backbone(), adapters).asking.use(name) as backbone:
            expected[name] = backbone.answer([image], ["What?"], 8)
    with studio.asking.use("one"):
        pass
    studio.asking.drop("one")
    for name in ("none", "two", "none"):
        with studio.asking.use(name) as backbone:
            assert backbone.answer([image], ["What?"], 8) == expected[name]


def test_adapters_of_one_name_are_told_apart(adapters, tmp_path):
    other = tmp_path / "one"
    shutil.copytree(adapters[1], other)
    studio = Studio(helpers.tiny_backbone(), [adapters[0], other])
    assert list(studio.folders) == ["one", "one-2"] and studio.folders["one-2"] == other
    with studio.asking.use("one-2") as backbone:
        assert backbone.model.active_peft_config.textual_update == "carry"


def test_what_is_said_is_no_formatting():
    said = "![x](http://a.b/c.png) *2* <b> `y` [z](w)"
    shown = MarkdownIt().render(plain(said))
    assert "<img" not in shown and "<a" not in shown and "<em>" not in shown and "<b>" not in shown
    assert html.unescape(shown) == f"<p>{said}</p>\n"


def test_an_adapter_answers_as_if_it_were_alone(studio, adapters, picture):
    image = open_upload(picture)
    for folder in adapters:
        alone = helpers.tiny_backbone()
        alone.add_adapter(folder)
        with studio.asking.use(folder.name) as backbone:
            assert backbone.answer([image], ["What?"]) == alone.answer([image], ["What?"])
    with studio.asking.use("none") as backbone:
        assert backbone.answer([image], ["What?"]) == helpers.tiny_backbone().answer([image], ["What?"])


def test_eight_people_at_once_get_their_own_answers(studio, picture):
    pairs = [("none", "one"), ("two", "none"), ("one", "two"), ("two", "one")]
    jobs = [(studio, picture, f"What is thing {i}?", *pairs[i % 4]) for i in range(16)]
    wanted = [final(*job) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda job: final(*job), jobs)) == wanted
    assert len(set(wanted)) > 8


def test_unknown_adapter(studio):
    with pytest.raises(InputError, match="The adapter 'three' is not there, or not any more; choose one of none, one"):
        with studio.looking.use("three"):
            pass
    with studio.looking.use("one"):  # the lock is free again
        pass


def test_shipped_adapters_are_offered_on_their_own_backbone_only():
    backbone = helpers.tiny_backbone()
    backbone.name = "tiny"
    offered = [name for _, name in Studio(backbone).choices()]
    assert offered == ["none", "m2pt", "m2pt-carry", "mpt4lm", "mpt4lm-background"]
    backbone.name = "another"
    assert Studio(backbone).choices() == [("untouched model", "none")]


def test_adapters_of_visitors_come_and_go(studio, adapters, tmp_path):
    for i in range(MAX_TUNED + 2):
        folder = tmp_path / f"tuned-{i}"
        folder.mkdir()
        for file in adapters[0].iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        with studio.asking.use(studio.add_tuned(folder)):
            pass
    assert studio.tuned == [f"tuned-{i}" for i in range(2, MAX_TUNED + 2)]
    assert set(studio.asking.backbone.model.peft_config) == {*studio.tuned}
    assert not (tmp_path / "tuned-0").exists() and (tmp_path / "tuned-2").exists()
    with studio.asking.use("one") as backbone:
        assert backbone.model.active_adapter == "one"


def test_results_are_kept_for_a_while(studio):
    calls = []
    for _ in range(2):
        assert studio.keep(("a",), lambda: calls.append(1) or torch.ones(1)).item() == 1
    assert calls == [1]
    gone = weakref.ref(studio.keep(("a",), None))
    for i in range(MAX_KEPT):
        studio.keep((i,), lambda: torch.zeros(1))
    gc.collect()
    assert gone() is None


def test_mistakes_are_one_sentence(tmp_path):
    @told(2)
    def wrong(text):
        raise InputError(f"No <{text}>.")

    message, *rest = wrong("b")
    assert message == alert("No <b>.") == '<p role="alert">No &lt;b&gt;.</p>' and len(rest) == 2
    broken = tmp_path / "notes.png"
    broken.write_text("not a picture")
    with pytest.raises(InputError, match="^The file cannot be read as a picture; give"):
        open_upload(str(broken))
    with pytest.raises(InputError, match="There is no picture yet: choose an example"):
        open_upload(None)


def grown(studio, picture, n):
    """MiB that the process grows by over `n` questions, after some to warm up."""
    for i in range(n + 10):
        if i == 10:
            gc.collect()
            before = psutil.Process().memory_info().rss
        final(studio, picture, f"What is {i}?", "none", ("one", "two")[i % 2])
    gc.collect()
    return (psutil.Process().memory_info().rss - before) / 2**20


def test_memory_stays(studio, picture):
    assert grown(studio, picture, 20) < 20


@pytest.mark.slow
def test_memory_stays_over_200_questions(tiny, picture):
    studio = Studio(twin(tiny), ["m2pt"])
    studio.folders |= {name: studio.folders["m2pt"] for name in ("one", "two")}
    assert grown(studio, picture, 200) < 100
