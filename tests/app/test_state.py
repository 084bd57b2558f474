"""One model for everybody: no mix-up of adapters, no growth."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import helpers
import psutil
import pytest
import torch

from app.ask import ask
from app.state import MAX_KEPT, MAX_TUNED, Studio, alert, open_upload, told, twin
from mmpt.errors import InputError


def final(*args):
    return list(ask(*args))[-1][1:3]


def test_twin_shares_the_weights_and_nothing_else(adapters):
    backbone = helpers.tiny_backbone()
    other = twin(backbone)
    assert all(a is b for a, b in zip(backbone.model.parameters(), other.model.parameters()))
    other.add_adapter(adapters[0])
    assert not hasattr(backbone.model, "peft_config")


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
