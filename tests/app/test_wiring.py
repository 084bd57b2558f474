"""What starts and ends what on the page: nothing said of another picture, question or model stays, or follows."""

import inspect

import gradio as gr
import pytest

from app.page import build

WHOSE = "Look into the answer of"


@pytest.fixture
def page(studio):
    return build(studio)


def starting(page, is_it, what):
    """Events that `what` ("click", "change") of a component starts, in their order."""
    return [
        e for e in page.fns.values() for b, w in e.targets if w == what and b in page.blocks and is_it(page.blocks[b])
    ]


def named(label):
    return lambda block: (
        label in (getattr(block, "label", None), block.value if isinstance(block, gr.Button) else None)
    )


def name_of(event):
    function = getattr(event.fn, "func", event.fn)
    return function and function.__qualname__


def ended_by(page, events):
    return {name_of(page.fns[i]) for e in events for i in e.cancels}


@pytest.mark.parametrize(
    "label, what",
    [("Examples", "select"), ("Draw this scene", "click"), ("Picture", "input"), ("Question", "change"),
     ("Model A", "change"), ("Model B", "change")],
)  # fmt: skip
def test_what_is_asked_about_takes_the_answers_along(page, label, what):
    events = starting(page, named(label), what)
    cleared = {block.label for e in events for block in e.outputs if e.js}
    sides = {f"{thing} model {side}" for side in "AB" for thing in ("Answer of", "How probable to")}
    assert cleared >= sides and ended_by(page, events) >= {"ask", "rate"}


@pytest.mark.parametrize(
    "label, what",
    [("Examples", "select"), ("Draw this scene", "click"), ("Picture", "input"), ("Question", "input"),
     ("Model A", "input"), ("Model B", "input"), ("Try one of these", "click")],
)  # fmt: skip
def test_a_visitor_who_turns_to_something_else_ends_what_the_link_asked(page, label, what):
    assert any("ask_again" in str(name_of(page.fns[i])) for e in starting(page, named(label), what) for i in e.cancels)


def test_looks_end_with_another_answer_and_with_another_model(page):
    looks = {
        i for i, e in page.fns.items()
        if e.concurrency_id == "looking" and any(isinstance(block, gr.Plot) for block in e.outputs)
    }  # fmt: skip
    assert len(looks) > 10
    again = {i for i in looks if "when_open" in str(name_of(page.fns[i]))}  # which follow another answer
    for is_it, what in ((lambda b: isinstance(b, gr.State), "change"), (named(WHOSE), "input")):
        spared = again if what == "change" else set()
        assert looks - spared <= {i for e in starting(page, is_it, what) for i in e.cancels}


def test_what_is_written_first(page):
    """The link is there before what takes a while."""
    for tab in (block for block in page.blocks.values() if isinstance(block, gr.Tab)):
        assert "mmptLink" in starting(page, lambda block, tab=tab: block is tab, "select")[0].js
    assert "mmptLink" in starting(page, named("Ask"), "click")[0].js


def test_clicks_on_a_place_are_not_deferred(page):
    reading = [
        e for e in page.fns.values()
        if callable(e.fn) and any(p.annotation is gr.SelectData for p in inspect.signature(e.fn).parameters.values())
    ]  # fmt: skip
    assert len(reading) == 4 and {e.trigger_mode for e in reading} == {"multiple"}
