"""Every notebook runs from top to bottom, its exercises can be solved, and its links lead somewhere."""

import os
import re
from pathlib import Path

import nbformat
import pytest
import torch
from helpers import config_for, tiny_backbone, tuned_backbone
from peft import get_peft_model

from mmpt.exercises import EXERCISES, check
from mmpt.m2pt import M2PTConfig
from mmpt.notebooks import execute, put_on, unload

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path, kind):
    return [cell["source"] for cell in nbformat.read(path, 4)["cells"] if cell["cell_type"] == kind]


def stubs(path):
    """Name of an exercise → the cell that a learner fills in."""
    return {name: source for source in cells(path, "code") for name in re.findall(r'^check\("(\w+)"', source, re.M)}


def solution(path, name):
    """The folded solution that defines the function `name`."""
    folded = re.findall(r"<summary>Solution</summary>\s+```python\n(.*?)```", "\n".join(cells(path, "markdown")), re.S)
    return next(source for source in folded if f"def {name}(" in source)


@every_notebook
def test_runs(path, monkeypatch):
    monkeypatch.setenv("MMPT_FAST", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    book = nbformat.read(path, 4)
    execute(book, timeout=300)
    boxes = re.findall(r"✗ (\w+): not written yet", str(book))
    assert set(boxes) == set(stubs(path))


@every_notebook
def test_exercises(path):
    names = stubs(path)
    assert len(names) >= 2
    for name, stub in names.items():
        space = {"torch": torch, "check": check}
        exec(stub, space)
        assert check(name, space[name]).message.startswith(f"{name}: not written yet.")
        exec(solution(path, name), space)
        verdict = check(name, space[name])
        assert verdict.passed, verdict.message


def test_every_exercise_has_its_notebook():
    assert {name for path in NOTEBOOKS for name in stubs(path)} == set(EXERCISES)


@every_notebook
def test_opening(path):
    """Badge with this very file's path, difficulty, minutes, prerequisites; one set-up cell, the same everywhere."""
    first, code = cells(path, "markdown")[0], cells(path, "code")[0]
    repository = re.search(r'REPOSITORY = "https://github\.com/([\w-]+/[\w-]+)"', code)[1]
    assert f"colab.research.google.com/github/{repository}/blob/main/notebooks/{path.name})" in first
    assert nbformat.read(path, 4)["cells"][0]["cell_type"] == "markdown" and first.startswith("[![Open in Colab]")
    assert re.search(rf"^# {int(path.stem[:2])} · ", first, re.M)
    assert re.search(r"Difficulty [1-5] of 5 · about \d+ minutes · (no )?prerequisites", first)
    assert "**What you will learn**" in first
    assert code == cells(NOTEBOOKS[0], "code")[0]


@every_notebook
def test_parts(path):
    text = "\n".join(cells(path, "markdown"))
    for part in ("**Predict, then run.**", "## Summary", "**Next:**", "**To read:**", "$$"):
        assert part in text
    code = "\n".join(cells(path, "code"))
    assert "interact" in code and ".show()" in code


@every_notebook
def test_local_links_exist(path):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", "\n".join(cells(path, "markdown")))
    assert links
    for link in links:
        assert (path.parent / link).exists(), link


@every_notebook
def test_cells_are_short_and_name_no_absolute_path(path):
    for source in cells(path, "code"):
        assert len(source.splitlines()) <= 30, source
        assert not re.search(r"""["'](/|~/|[A-Z]:\\)""", source), source


@every_notebook
def test_is_stored_without_outputs(path):
    book = nbformat.read(path, 4)
    assert "widgets" not in book["metadata"]
    for cell in book["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None


def test_an_adapter_is_put_on_anew_when_its_cell_runs_again():
    model = tuned_backbone().model
    for prompts in (2, 4):
        put_on(model, "mine", M2PTConfig(num_textual_prompts=prompts))
    assert model.peft_config["mine"].num_textual_prompts == 4
    assert set(model.peft_config) == {"default", "mine"}


@pytest.mark.parametrize("method", ["m2pt", "lora"])
def test_unload_leaves_the_untouched_model(method):
    backbone = tiny_backbone()
    unload(backbone)  # which may carry nothing yet
    plain, before = backbone.model, {name: p.clone() for name, p in backbone.model.named_parameters()}
    backbone.model = get_peft_model(plain, config_for(method, backbone))
    for parameter in backbone.model.parameters():
        if parameter.requires_grad:
            torch.nn.init.ones_(parameter)
    unload(backbone)
    after = dict(backbone.model.named_parameters())
    assert backbone.model is plain and after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
