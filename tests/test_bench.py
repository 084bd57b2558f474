"""The benchmark: every row runs, leaves the backbone as it was, and the floor has the tokens that it should have."""

import json

import pytest
import torch
from helpers import config_for, tiny_backbone

import mmpt.bench
from mmpt.__main__ import main
from mmpt.bench import ROWS, VISUAL, Work, bench, ready, render
from mmpt.scenes import make_scene

pytestmark = pytest.mark.unit
WORK = Work(pictures=1, turns=1, rounds=2)


@pytest.fixture
def backbone(monkeypatch):
    backbone = tiny_backbone()
    sizes = mmpt.bench._config
    monkeypatch.setattr(
        mmpt.bench, "_config", lambda name, t: config_for(name, backbone) if name == "mpt4lm" else sizes(name, t)
    )
    monkeypatch.setattr(mmpt.bench, "load", lambda name: backbone)
    return backbone


def state(model):
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    flags = [(p.requires_grad, p.grad is None) for p in model.parameters()]
    return hooks, flags, {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_runs_and_leaves_no_trace(backbone, name):
    backbone.answer([make_scene(0).image], ["?"], 1)  # after which transformers keeps hooks of its own
    before = state(backbone.model)
    with ready(name, backbone, WORK) as runner:
        runner.step()
        runner.answer()
        runner.step()
    after = state(backbone.model)
    assert before[:2] == after[:2] and before[2].keys() == after[2].keys()
    assert all(torch.equal(before[2][key], after[2][key]) for key in before[2])
    assert (runner.tunable == 0) == (name in ("floor", "base"))


def test_the_floor_reads_what_m2pt_reads_but_its_textual_prompts(backbone):
    lengths = {}
    llm = backbone.model.model.language_model
    for name in ("floor", "base", "m2pt"):
        with ready(name, backbone, WORK) as runner:
            seen = lengths.setdefault(name, [])
            handle = llm.layers[1].register_forward_hook(lambda m, a, output, seen=seen: seen.append(output.shape[1]))
            runner.step()
            handle.remove()
    lengths = {name: seen[0] for name, seen in lengths.items()}
    assert lengths["floor"] - lengths["base"] == VISUAL
    assert lengths["m2pt"] - lengths["floor"] == mmpt.bench.TEXTUAL


def test_rows_and_command(backbone, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(mmpt.bench, "_peak", lambda *args: 100)
    rows = bench("x", WORK, ("floor", "m2pt"))
    assert [set(row) for row in rows] == [{"method", "step_s", "answer_s", "peak_mib", "tunable"}] * 2
    assert all(row["step_s"] > 0 and row["answer_s"] > 0 for row in rows)
    twice = rows[0] | {"method": "twice", "step_s": 2 * rows[0]["step_s"]}
    assert " 2.00   1.00   1.00" in render([rows[0], twice])

    monkeypatch.setattr(mmpt.bench, "bench", lambda name, work: rows)
    assert main(["bench", "--quick", "--json", str(tmp_path / "b.json")]) == 0
    assert json.loads((tmp_path / "b.json").read_text())["rows"] == rows
    assert "m2pt" in capsys.readouterr().out
