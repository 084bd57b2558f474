"""The model answers by a table (colour, question) → answer: a question that is asked on the wrong picture or in other
words is a KeyError."""

from types import SimpleNamespace

import pytest
import torch
from copies import colour_of

from mmpt import evaluate as module
from mmpt.benchmarks.vqa import BRIEFLY

BACKBONE = SimpleNamespace(name="table", model=SimpleNamespace(device=torch.device("cpu")))


@pytest.fixture
def answer(monkeypatch):
    """`answer(suite, folder, said)`: what `evaluate` returns for a model that says `said`, and chooses likewise."""

    def run(suite, folder, said, **options):
        class Known:
            def __init__(self, backbone, images, questions):
                asked = [(colour_of(i), q.removesuffix(BRIEFLY)) for i, q in zip(images, questions)]
                self.said = [said[key] for key in asked]

            def answer(self, max_new_tokens):
                return self.said

        monkeypatch.setattr(module, "read", Known)
        monkeypatch.setattr(module, "likeliest", lambda reading, options: [row[0] for row in options])
        return module.evaluate(BACKBONE, suite, data=folder, **options)

    return run
