"""Experiments: every row can be tuned, nothing is measured twice, learning rates are chosen on the tuning tasks."""

import json
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import pytest
import torch
from helpers import backbone_for, tiny_backbone
from peft import get_peft_model

import mmpt.evaluate
import mmpt.experiments
from mmpt.errors import InputError
from mmpt.experiments import _measure, run, run_table, tune
from mmpt.methods import METHODS
from mmpt.rows import ABLATIONS, BUDGETS, MAIN, QUICK, Budget, Experiment, configuration, rows_of
from mmpt.suites import VERSION
from mmpt.tasks import TASKS, questions_of

SMALL = Budget("small", 2, 2, 2, (0,), (1.0,), 2, 2)
GRID = replace(SMALL, grid=(0.5, 1.0, 2.0))
EVERY = {row.name: row for rows in (MAIN, QUICK, *ABLATIONS.values()) for row in rows if row.method}


def test_tables_are_those_of_the_paper_and_ours():
    assert {row.method for row in MAIN} == {None, *METHODS}
    assert set(ABLATIONS) == {"components", "lengths", "location", "initialisation", "data", "order", "mpt4lm"}
    assert rows_of("quick") == QUICK and [row.name for row in QUICK] == ["align", "m2pt", "lora"]
    for rows in (MAIN, *ABLATIONS.values()):
        assert len({row.name for row in rows}) == len({row.row for row in rows}) == len(rows)
    with pytest.raises(InputError, match="There is no table 'length'; choose one of main, quick, components, lengths"):
        rows_of("length")


@pytest.mark.parametrize("name", EVERY)
def test_every_row_can_be_configured(name):
    row, backbone = EVERY[name], backbone_for(EVERY[name].method)
    if row.method == "mpt4lm":
        row = replace(row, fields=row.fields | {"cross_attention_width": 18})
    changed = configuration(row, backbone.processor.tokenizer)
    if changed is None:
        return
    model = get_peft_model(backbone.model, changed)
    assert any(p.requires_grad for p in model.parameters())
    assert all(getattr(changed, key) == value for key, value in row.fields.items())


def test_lengths_are_those_of_written_instructions(tiny):
    found = [configuration(row, tiny.processor.tokenizer) for row in ABLATIONS["lengths"]]
    assert [(c.num_textual_prompts, c.num_visual_prompts) for c in found] == list(product((0, 5, 10, 20), repeat=2))
    assert [row.row for row in ABLATIONS["lengths"]][6] == "5 textual 10 visual"
    assert {c.init for c in found[:4]} == {"xavier_uniform"} and {c.init for c in found[4:]} == {"instruction"}


def test_one_file_is_one_setting():
    """Rows of different tables that share a file share all that is measured."""
    for rows in (MAIN, *ABLATIONS.values()):
        for row in rows:
            if row.method:
                same = EVERY[row.name]
                assert replace(row, row="") == replace(same, row="")


def test_tuning_follows_the_budget(tmp_path):
    row = Experiment("data-0.5", "half", "lora", share=0.5)
    torch.set_num_threads(1)
    record = tune(tiny_backbone(), row, 3, 0.5, SMALL, tmp_path / "run")
    config = record["config"]
    assert (config["steps"], config["pictures"], config["turns"], config["seed"]) == (2, 2, 2, 3)
    assert config["scenes"] == 2 and config["lr"] == 0.5 * METHODS["lora"].rates["lr"]
    assert record["questions"] == 8 and record["peak_mib"] > 100
    assert record["losses"] == [record["final_loss"]]  # logged every ten steps, and at the end
    assert tune(tiny_backbone(), row, 3, 0.5, SMALL, tmp_path / "run") == record  # finished: not tuned again


def test_a_row_of_mpt4lm_is_tuned(tmp_path):
    row = ABLATIONS["mpt4lm"][4]
    small = replace(row, fields=row.fields | {"cross_attention_width": 18})
    record = tune(backbone_for("mpt4lm"), small, 0, 1.0, SMALL, tmp_path / "run")
    assert row.row == "no adapters" and record["method"]["adapter_rank"] == 0
    assert record["config"]["tasks"] == ["background"] and record["questions"] == 4  # of one kind, one on a picture


def test_what_was_tuned_is_asked_as_it_is_loaded(monkeypatch, tmp_path):
    """Fresh questions of the tasks that were tuned, then the suites, by the files that tuning wrote."""
    loaded = []

    def load(name, adapter):
        loaded.append((name, adapter))
        backbone = tiny_backbone()
        backbone.add_adapter(adapter)
        return backbone

    monkeypatch.setattr(mmpt, "load", load)
    monkeypatch.setitem(METHODS, "lora", replace(METHODS["lora"], load=lambda name: tiny_backbone()))
    row = Experiment("lora", "LoRA", "lora", suites="mpt4lm", tasks=("count", "parity"))
    small = replace(SMALL, limit=1, validation=1)
    found = _measure(row, 0, 1.0, small, tmp_path, row.suites)
    assert loaded == [("tiny", tmp_path / "lora-s0-x1")] and found["tuning"]["config"]["tasks"] == ["count", "parity"]
    assert list(found["tasks"]["chance"]) == ["count", "parity", "mean"] and found["tasks"]["n"] == 2 * (
        len(TASKS) // 2
    )
    assert list(found["suites"]["suites"]) == ["mini-vqa", "mini-gqa", "mini-snli-ve"]
    asked = []
    monkeypatch.setattr(mmpt.evaluate, "questions_of", lambda *args: asked.append(args) or questions_of(*args))
    trial = _measure(row, 0, 1.0, small, tmp_path, None)  # of the grid; tuned already
    assert "suites" not in trial and trial["tasks"]["n"] == found["tasks"]["n"]
    assert [n for _, n, _ in asked] == [len(TASKS) // 2] * 2
    _measure(row, 0, 1.0, small, tmp_path, "mpt4lm")  # a row is asked what comes after
    assert [n for _, n, _ in asked[2:]] == [2 * (len(TASKS) // 2)] * 2


def test_a_whole_tuned_model_is_asked_itself(monkeypatch, tmp_path):
    loaded = []

    def load(name, adapter):
        loaded.append((name, adapter, (Path(name) / "model.safetensors").exists()))
        return tiny_backbone()

    monkeypatch.setattr(mmpt, "load", load)
    monkeypatch.setitem(METHODS, "full", replace(METHODS["full"], load=lambda name: tiny_backbone()))
    row = Experiment("full", "Full", "full", suites="mpt4lm", tasks=("count",))
    found = _measure(row, 0, 1.0, replace(SMALL, steps=1, limit=1, validation=1), tmp_path, "mpt4lm")
    assert loaded == [(tmp_path / "full-s0-x1", None, True)] and found["suites"]["backbone"] == "tiny"
    assert not (tmp_path / "full-s0-x1").exists()  # half a gigabyte


@pytest.fixture
def measured(monkeypatch):
    """Stands in for the measuring process: what was asked of it, and figures that favour twice the rate."""
    asked = []

    def measure(function, row, seed, factor, budget, work, suite):
        asked.append((row.name, seed, factor, suite))
        return {"base_parameters": 1, "tuning": {}, "tasks": {"figures": {"mean": 10 * (factor or 0)}}}

    monkeypatch.setattr(mmpt.experiments, "_in_own_process", measure)
    return asked


def test_nothing_is_measured_twice(measured, monkeypatch, tmp_path):
    first = run(MAIN[1], 0, SMALL, tmp_path / "results", tmp_path / "work")
    assert run(MAIN[1], 0, SMALL, tmp_path / "results", tmp_path / "work") == first
    run(MAIN[0], 0, SMALL, tmp_path / "results", tmp_path / "work")
    assert measured == [("m2pt", 0, 1.0, "mini"), ("align", 0, None, "mini")]
    with pytest.raises(InputError, match="m2pt-s0.json was measured on another budget; remove it"):
        run(MAIN[1], 0, GRID, tmp_path / "results", tmp_path / "work")
    assert sorted(file.name for file in (tmp_path / "results").iterdir()) == ["align-s0.json", "m2pt-s0.json"]
    changed = replace(MAIN[1], fields={"num_visual_prompts": 3})
    with pytest.raises(InputError, match="m2pt-s0.json was measured with other settings; remove it"):
        run(changed, 0, SMALL, tmp_path / "results", tmp_path / "work")
    assert run(replace(MAIN[1], row="another name"), 0, SMALL, tmp_path / "results", tmp_path / "work") == first
    broken = tmp_path / "broken" / "m2pt-s0.json"
    broken.parent.mkdir()
    for text, sentence in (('{"budget": {', "is no JSON"), ("{}", "was measured on another budget")):
        broken.write_text(text)
        with pytest.raises(InputError, match=f"m2pt-s0.json {sentence}.*remove it"):
            run(MAIN[1], 0, SMALL, broken.parent, tmp_path / "work")
    monkeypatch.setattr(mmpt.experiments, "VERSION", "another")
    with pytest.raises(InputError, match="m2pt-s0.json was measured with other questions; remove it"):
        run(MAIN[1], 0, SMALL, tmp_path / "results", tmp_path / "work")


def test_the_rate_is_chosen_on_the_tuning_tasks(measured, tmp_path):
    lora = next(row for row in MAIN if row.name == "lora")
    assert run(lora, 1, GRID, tmp_path, Path("work"))["factor"] == 2.0
    assert measured == [("lora", 0, f, None) for f in GRID.grid] + [("lora", 1, 2.0, "mini")]
    assert json.loads((tmp_path / "grid" / "lora.json").read_text()) ["tried"] == {
        "0.5": 5.0, "1": 10.0, "2": 20.0
    }  # fmt: skip
    measured.clear()
    run(lora, 2, GRID, tmp_path, Path("work"))
    assert measured == [("lora", 2, 2.0, "mini")]


def test_an_ablation_takes_its_methods_rate(measured, tmp_path):
    row = ABLATIONS["components"][1]
    assert run(row, 0, GRID, tmp_path, Path("work"))["factor"] == 2.0
    assert measured == [("m2pt", 0, f, None) for f in GRID.grid] + [(row.name, 0, 2.0, "mini")]


def test_mpt4lms_parts_are_measured_on_its_own_suites(measured, tmp_path):
    run_table("mpt4lm", SMALL, tmp_path, Path("work"))
    assert measured == [(row.name, 0, 1.0, "mpt4lm") for row in ABLATIONS["mpt4lm"]]


def test_an_interrupted_grid_goes_on(measured, tmp_path):
    (tmp_path / "grid").mkdir()
    before = {"tried": {"0.5": 99.0}, "budget": asdict(GRID), "questions": VERSION}
    (tmp_path / "grid" / "m2pt.json").write_text(json.dumps(before))
    with pytest.raises(InputError, match="another budget"):
        run(MAIN[1], 0, replace(GRID, steps=3), tmp_path, Path("work"))
    assert run(MAIN[1], 0, GRID, tmp_path, Path("work"))["factor"] == 0.5
    assert measured == [("m2pt", 0, 1.0, None), ("m2pt", 0, 2.0, None), ("m2pt", 0, 0.5, "mini")]


def test_a_table_goes_seed_by_seed(measured, tmp_path):
    budget = replace(SMALL, seeds=(0, 1))
    found = run_table("quick", budget, tmp_path, Path("work"))
    assert [(row.name, [r["seed"] for r in results]) for row, results in found] == [
        ("align", [0]), ("m2pt", [0, 1]), ("lora", [0, 1]),
    ]  # fmt: skip
    assert [(name, seed) for name, seed, *_ in measured] == [
        ("align", 0), ("m2pt", 0), ("lora", 0), ("m2pt", 1), ("lora", 1),
    ]  # fmt: skip
    measured.clear()
    order = run_table("order", budget, tmp_path, Path("work"))
    assert [len(results) for _, results in order] == [1] * 4
    assert "m2pt" not in {name for name, *_ in measured}  # shared with the main table


def test_budgets():
    for budget in BUDGETS.values():
        assert 1.0 in budget.grid and budget.seeds[0] == 0
