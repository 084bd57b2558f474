"""A progress bar for what calls a model again and again."""

from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from mmpt.explain.targets import Case
from mmpt.m2pt.backbone import find_backbone


@contextmanager
def watched(case: Case, progress: gr.Progress, calls: float, words: str = "asking the model again") -> Iterator[None]:
    """Within the context every call of the case's language model moves the bar on; `calls` are expected."""
    done = 0

    def count(*_):
        nonlocal done
        done += 1
        progress(min(done / calls, 1), desc=words)

    llm = find_backbone(case.backbone.model).llm
    hook = llm.register_forward_hook(count)
    try:
        progress(0, desc=words)
        yield
    finally:
        hook.remove()
