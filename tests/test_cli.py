import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmpt import console
from mmpt.__main__ import main
from mmpt.tiny.vision import GRID

ROOT = Path(__file__).parent.parent


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    return str(tmp_path / "p.png")


def test_help_needs_no_torch():
    code = "import sys, mmpt.__main__ as m; m.parser().format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["ask"], "Give a picture and a question, or --batch"),
        (["ask", "none.png", "What?"], "There is no file none.png"),
        (["ask", "PICTURE", " "], "The question is empty"),
        (["ask", "PICTURE", "What?", "--adapter", "m3pt"], "There is no adapter 'm3pt'"),
        (["ask", "PICTURE", "What?", "--backbone", "no-such-model"], "'no-such-model' could not be loaded"),
        (["ask", "--batch", "none.jsonl"], "--batch needs --out"),
        (["ask", "--batch", "none.jsonl", "--out", "o"], "none.jsonl cannot be read"),
        (
            ["evaluate", "--suite", "tasks", "--tasks", "counts"],
            "There is no task 'counts'; give all, or some of count",
        ),
        (
            ["evaluate", "--suite", "base", "--tasks", "count"],
            "The suite 'base' has no tasks to choose from; leave --tasks",
        ),
        (["evaluate", "--suite", "maxi", "--adapter", "none"], "There is no suite 'maxi'; choose one of base, tasks"),
        (["evaluate", "--suite", "mini", "--data", "x"], "The suite 'mini' is drawn; leave --data out"),
        (["evaluate", "--suite", "mme", "--data", "none"], "There is no folder none; give one with MME's folders"),
        (["evaluate", "--suite", "mme"], "lmms-lab/MME cannot be read from the hub"),
        (["evaluate", "--suite", "base", "--limit", "0"], "--limit is 0; give a number of at least 1"),
        (["scenes", "--n", "0", "--out", "x"], "--n is 0; give a number"),
        (["scenes", "--seed", "-1", "--out", "x"], "--seed is -1; give one from 0 to 42949672"),
        (["scenes", "--size", "9999", "--out", "x"], "--size is 9999; give one from 56 to 4096"),
        (["ask", "PICTURE", "What?", "--out", "o"], "--out is o; it goes with --batch FILE.jsonl"),
        (["ask", "--batch", "none.jsonl", "--out", "no/o"], "no/o cannot be written"),
        (["evaluate", "--suite", "base", "--adapter", "none", "--json", "no/r"], "no/r cannot be written"),
        (["scenes", "--size", "10", "--out", "x"], "size is 10; a scene needs at least 56 px"),
        (["scenes", "--out", "PICTURE"], "cannot be written"),
        (["train", "--method", "m2pt", "--out", "PICTURE"], "is a file; give a folder"),
        (["train", "--method", "m2pt", "--out", "x", "--steps", "-1"], "steps is -1; give a whole number"),
        (["train", "--method", "m2pt", "--out", "x", "--start", "no"], "There is no adapter 'no'; give one of"),
        (["explain", "none.png", "What?", "--out", "x.html"], "There is no file none.png"),
        (["explain", "PICTURE", "What?", "--out", "x.gif"], "--out is x.gif; end it in .html, .png or .json"),
        (["explain", "PICTURE", "What?", "--out", "no/x.png"], "no/x.png cannot be written"),
        (["bench", "--growth", "x.pdf"], "--growth is x.pdf; end it in .html or .png"),
        (["table", "--quick", "--results", "PICTURE"], "cannot be made"),
        (["table", "nothing"], "There is no table 'nothing'; choose one of main, quick, components"),
    ],
)
def test_mistakes_are_one_sentence(words, sentence, picture, tmp_path, monkeypatch, capsys, tiny):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mmpt.backbones.load_tiny", lambda: tiny)
    assert main([picture if word == "PICTURE" else word for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mmpt: ") and sentence in error and error.count("\n") == 1
    assert not (tmp_path / "x" / "adapter_config.json").exists()


def test_scenes_command(tmp_path, capsys):
    assert main(["scenes", "--n", "3", "--seed", "7", "--out", str(tmp_path)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "scenes.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and Image.open(tmp_path / rows[0]["image"]).size == (112, 112)
    assert len(rows[0]["objects"][0]["box"]) == 4


def test_ask_command_prints_json(picture, monkeypatch, capsys, tiny):
    monkeypatch.setattr("mmpt.backbones.load_tiny", lambda: tiny)
    assert main(["ask", picture, "Describe the picture.", "--adapter", "none", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["question"] == "Describe the picture." and row["answer"] and row["adapter"] == "none"


def test_explain_command_writes_a_file(picture, monkeypatch, tmp_path, capsys, tiny):
    monkeypatch.setattr("mmpt.backbones.load_tiny", lambda: tiny)
    out = tmp_path / "view.json"
    options = ["--adapter", "none", "--view", "attention", "--answer", "a cat", "--out", str(out)]
    assert main(["explain", picture, "What is it?", *options]) == 0
    told = json.loads(out.read_text())
    assert told["answer"] == "a cat" and len(told["data"]["patches"]) == GRID
    assert capsys.readouterr().out.startswith("Answer: a cat\nNo M²PT adapter is active")


def test_interrupt_ends_with_a_sentence():
    code = (
        "import signal, sys, mmpt.__main__ as m\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell ignores it for jobs in the background
        "m.scenes.__code__ = (lambda args: (print('ready', flush=True), __import__('time').sleep(60))).__code__\n"
        "sys.exit(m.main(['scenes', '--out', 'x']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert process.stderr.read() == "mmpt: Stopped.\n"


def test_a_full_gpu_is_told(capsys):
    def fill():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    assert console.run("mmpt", fill) == 2
    error = capsys.readouterr().err
    assert error.startswith("mmpt: The GPU's memory is full.") and "--accumulate" in error and error.count("\n") == 1


def test_without_an_adapter_named_the_shipped_one_is_for_tiny_alone(picture, monkeypatch, capsys, tiny):
    loaded = []
    monkeypatch.setattr("mmpt.load", lambda name, **options: loaded.append((name, options["adapter"])) or tiny)
    for backbone in ("tiny", "lab/model"):
        assert main(["ask", picture, "What?", "--backbone", backbone]) == 0
    assert loaded == [("tiny", "m2pt"), ("lab/model", None)]


def test_train_command_hands_its_options_over(monkeypatch, tmp_path, capsys, tiny):
    seen = {}

    def train(backbone, peft_config, config, on_start):
        seen.update(config=config, peft=peft_config)
        return config.out

    monkeypatch.setattr("mmpt.backbones.load_tiny", lambda: tiny)
    monkeypatch.setattr("mmpt.train.train", train)
    options = "--steps 3 --pictures 4 --accumulate 2 --precision bf16 --gradient-checkpointing --seed 5 --resume"
    options += " --tasks count background"
    assert main(["train", "--method", "m2pt-carry", "--out", str(tmp_path), *options.split()]) == 0
    config = seen["config"]
    assert (config.steps, config.pictures, config.accumulate, config.precision) == (3, 4, 2, "bf16")
    assert config.gradient_checkpointing and config.resume and config.seed == 5 and config.out == tmp_path
    assert config.tasks == ("count", "background")
    assert seen["peft"].textual_update == "carry"
