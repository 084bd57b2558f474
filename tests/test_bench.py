"""The benchmark: every row runs, leaves the backbone as it was, and the floor has the tokens that it should have."""

import json
from dataclasses import replace

import pytest
import torch
from helpers import config_for, tiny_backbone
from safetensors import SafetensorError
from tiny_hosts import config_of
from transformers import Idefics3ForConditionalGeneration, LlavaForConditionalGeneration

import mmpt.bench
import mmpt.growth
import mmpt.sized
from mmpt.__main__ import main
from mmpt.backbones import Backbone
from mmpt.bench import ROWS, Work, bench, flops, matmul_rate, ready, render
from mmpt.errors import InputError
from mmpt.fit import search
from mmpt.growth import ALONG, LINES, figure, growth
from mmpt.scenes import make_scene

WORK = Work(pictures=1, turns=1, rounds=2)


@pytest.fixture
def backbone(monkeypatch):
    backbone = tiny_backbone()
    sizes = mmpt.bench._config
    monkeypatch.setattr(
        mmpt.bench,
        "_config",
        lambda name, *rest: config_for(name, backbone) if name == "mpt4lm" else sizes(name, *rest),
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


@pytest.mark.parametrize("name", ROWS)
def test_rows_run_in_16_bits(backbone, name):
    """What a method tunes is in fp32 while it is tuned, as by `train`; the naive way tunes the projector as it is."""
    backbone.model.bfloat16()
    with ready(name, backbone, WORK) as runner:
        runner.step()
        runner.answer()
        runner.step()
        tuned = {p.dtype for p in backbone.model.parameters() if p.requires_grad}
        assert tuned <= {torch.float32} or name == "literal"
    assert {p.dtype for p in backbone.model.parameters()} == {torch.bfloat16}


def test_the_floor_reads_what_m2pt_reads_but_its_textual_prompts(backbone):
    """Which are columns in an answer only, where a step's rows are padded."""
    lengths, work = {}, replace(WORK, pictures=3, turns=2)
    llm = backbone.model.model.language_model
    for name in ("floor", "base", "m2pt"):
        with ready(name, backbone, work) as runner:
            seen = lengths.setdefault(name, [])
            handle = llm.layers[1].register_forward_hook(lambda m, a, output, seen=seen: seen.append(output.shape[1]))
            runner.step()
            runner.answer()
            handle.remove()
    steps, answers = ({name: seen[i] for name, seen in lengths.items()} for i in (0, 1))
    assert steps["m2pt"] == steps["floor"] == steps["base"] + WORK.visual
    assert answers["m2pt"] - WORK.textual == answers["floor"] == answers["base"] + WORK.visual


def test_rows_and_command(backbone, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(mmpt.bench, "_peak", lambda *args: 100)
    rows = bench("x", WORK, ("floor", "m2pt"))
    keys = {"method", "step_s", "answer_s", "peak_mib", "tunable", "pictures_s", "of_peak"}
    assert [set(row) for row in rows] == [keys] * 2
    assert all(row["step_s"] > 0 and row["answer_s"] > 0 and 0 < row["of_peak"] < 1 for row in rows)
    assert [row["pictures_s"] for row in rows] == [1 / row["step_s"] for row in rows]
    twice = rows[0] | {"method": "twice", "step_s": 2 * rows[0]["step_s"]}
    assert " 2.00   1.00   1.00" in render([rows[0], twice])

    monkeypatch.setattr(mmpt.bench, "bench", lambda name, work: rows)
    assert main(["bench", "--quick", "--json", str(tmp_path / "b.json")]) == 0
    assert json.loads((tmp_path / "b.json").read_text())["rows"] == rows
    assert "m2pt" in capsys.readouterr().out


def test_operations_of_a_step():
    """Forward, and backward to the inputs alone, as in a frozen model: two products of 2 · 5 · 7 · 3 operations."""
    layer = torch.nn.Linear(7, 3).requires_grad_(False)
    x = torch.randn(5, 7, requires_grad=True)
    assert flops(lambda: layer(x).sum().backward()) == 2 * 2 * 5 * 7 * 3
    assert matmul_rate(torch.device("cpu"), torch.float32) > 1e9


@pytest.mark.parametrize("fitting", [0, 1, 2, 3, 5, 8, 99, 100])
def test_the_largest_step_is_found(fitting):
    tried = []
    assert search(lambda n: tried.append(n) or n <= fitting, 100) == fitting
    assert len(tried) <= 14 and max(tried) <= 100


def test_memory_of_a_cpu_cannot_be_limited(monkeypatch, capsys):
    monkeypatch.setattr("mmpt.backbones.load", lambda name, quantize: tiny_backbone())
    assert main(["bench", "--fit", "16"]) == 2
    assert "this needs a GPU" in capsys.readouterr().err
    assert main(["bench", "--quantize", "4bit"]) == 2
    assert "--quantize goes with --fit GIB only" in capsys.readouterr().err


def test_a_model_of_random_weights_is_timed(monkeypatch, tmp_path, capsys):
    small = dict(intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    monkeypatch.setattr(mmpt.sized, "VISION", mmpt.sized.VISION | small | {"hidden_size": 16, "image_size": 28})
    monkeypatch.setattr(mmpt.sized, "LLM", {"7b": small | {"hidden_size": 24}})
    monkeypatch.setattr(mmpt.bench, "_peak", lambda *args: 100)
    folder = mmpt.sized.write("7b", tmp_path / "random")
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and config["vision_feature_layer"] == -2
    rows = bench(str(folder), Work(1, 1, 1, textual=2, visual=3), ("floor", "m2pt"))
    projector, textual = 16 * 24 + 24 + 24 * 24 + 24, 2 * 2 * 24
    assert rows[1]["tunable"] == projector + textual + 3 * 16  # the last vision layer's output is not read
    with pytest.raises(InputError, match="no size '8b'; choose one of 7b"):
        mmpt.sized.write("8b", tmp_path)
    (tmp_path / "file").touch()
    assert mmpt.sized.main(["7b", str(tmp_path / "file" / "in")]) == 2
    assert "in cannot be written (Not a directory); give another folder." in capsys.readouterr().err

    def full(self, folder):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(LlavaForConditionalGeneration, "save_pretrained", full)
    with pytest.raises(InputError, match="cannot be written .No space left on device.; give another folder"):
        mmpt.sized.write("7b", tmp_path)


def test_what_is_not_timed_is_told_before_the_work(monkeypatch):
    other = Backbone("lab/model", Idefics3ForConditionalGeneration(config_of("idefics3")), None)
    for module in (mmpt.bench, mmpt.growth):
        monkeypatch.setattr(module, "load", lambda name: other)
    for time in (bench, growth):
        with pytest.raises(
            InputError, match="'lab/model' is of Idefics3F.*, and what is timed is a LLaVA with a CLIP"
        ):
            time("lab/model")


def test_growth(backbone, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(mmpt.growth, "load", lambda name: backbone)
    monkeypatch.setattr(mmpt.growth, "ALONG", {name: (field, (1, 2)) for name, (field, _) in ALONG.items()})
    seen = []
    monkeypatch.setattr(mmpt.growth, "ready", lambda name, b, work: seen.append((name, work)) or ready(name, b, work))
    rows = growth("x", WORK)
    assert [(row["along"], row["size"]) for row in rows] == [(name, size) for name in ALONG for size in (1, 2)]
    assert all(row[name] > 0 for row in rows for name in LINES)
    assert seen[:16] == seen[16:] and set(seen) >= {
        ("m2pt", replace(WORK, textual=2)),
        ("floor", replace(WORK, turns=2)),
    }

    fixed = [row | {"floor": 1.0, "m2pt": 1.5} for row in rows]
    drawn = figure(fixed)
    assert "at most 1.50 times" in drawn.layout.title.subtitle.text.replace("<br>", " ")
    assert [list(trace.y) for trace in drawn.data] == [[1.0, 1.0], [1.5, 1.5]] * 4
    monkeypatch.setattr(mmpt.growth, "growth", lambda name: rows)
    paths = [str(tmp_path / "g.json"), str(tmp_path / "g.html")]
    assert main(["bench", "--json", paths[0], "--growth", paths[1]]) == 0
    assert json.loads((tmp_path / "g.json").read_text())["rows"] == rows
    assert (tmp_path / "g.html").exists() and paths[1] in capsys.readouterr().out
