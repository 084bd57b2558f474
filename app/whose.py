"""What every look inside begins with: which of the last answers is meant."""

from collections.abc import Callable

import gradio as gr

from app.state import NONE, Asked, plain
from mmpt.errors import InputError


def about(asked: Asked | None, wish: str | None = None) -> tuple[str, str | None]:
    """(the last question and its answers in words, the adapter that is looked at first: `wish` if it answered)."""
    if asked is None:
        return "Nothing has been asked yet: ask a question in the tab *Ask*, then come back.", None
    said = ((plain(name_of(adapter)), plain(answer)) for adapter, answer in asked.answers.items())
    answers = "; ".join(f"{name} answered “{answer}”" for name, answer in said)
    adapters = list(asked.answers)
    first = wish if wish in adapters else next((a for a in adapters if a != NONE), adapters[0])
    return f"On “{plain(asked.question)}” {answers}.", first


def answer_of(asked: Asked | None, adapter: str | None) -> str:
    """What that model answered last.

    Raises:
        InputError: nothing was asked, the model was not asked, or it said nothing.
    """
    if asked is None or adapter not in asked.answers:
        raise InputError("Nothing has been asked yet: ask a question in the tab “Ask”, then come back.")
    if not asked.answers[adapter]:
        raise InputError(f"The answer of {name_of(adapter)} is empty; ask another question to have one explained.")
    return asked.answers[adapter]


def picker(asked: gr.State, cleared: list):
    """The last question in words, then a choice of the model and a place for messages.

    The place and `cleared` are emptied when another question is answered or another model is chosen.

    Returns (choice, place, event that another question was answered).
    """
    words = gr.Markdown(about(None)[0], elem_classes="about")
    whose = gr.Radio([], label="Look into the answer of")
    message = gr.HTML(elem_classes="message")

    def renew(asked, wish):
        text, first = about(asked, wish)
        choices = [] if asked is None else [(name_of(adapter), adapter) for adapter in asked.answers]
        return text, gr.Radio(choices=choices, value=first), None, *[None] * len(cleared)

    renewed = asked.change(renew, [asked, whose], [words, whose, message, *cleared], show_progress="hidden")
    whose.input(lambda: (None, *[None] * len(cleared)), None, [message, *cleared], show_progress="hidden", queue=False)
    return whose, message, renewed


def when_open(tab: str, function: Callable, outputs: int) -> Callable:
    """`function` of all arguments but the first, the open tab's name; where that is another, all outputs stay."""
    return lambda opened, *given: function(*given) if opened == tab else [gr.skip()] * outputs


def name_of(adapter: str) -> str:
    """The model in words."""
    return "the untouched model" if adapter == NONE else adapter
