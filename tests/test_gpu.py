"""What only a GPU shows: `python -m pytest -m gpu`. The model of 7B parameters has random weights (14 GB on disk)."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState

import mmpt
from mmpt.bench import Work, bench
from mmpt.fit import largest_step
from mmpt.scenes import make_scene
from mmpt.sized import write
from mmpt.train import TrainConfig, train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]


@pytest.fixture(scope="module")
def llava_7b(tmp_path_factory):
    return str(write("7b", tmp_path_factory.mktemp("7b"), "cuda"))


def test_answers_as_on_a_cpu():
    images, questions = [make_scene(seed).image for seed in range(4)], ["Describe the picture."] * 4
    answers = [
        mmpt.load("tiny", adapter="m2pt", device=device, dtype=torch.float32).answer(images, questions)
        for device in ("cpu", "cuda")
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("dtype, near", [(torch.float32, 1e-3), (torch.bfloat16, 0.05), (torch.float16, 0.05)])
def test_tunes_as_on_a_cpu(tmp_path, dtype, near):
    losses = []
    for device, weights in (("cpu", torch.float32), ("cuda", dtype)):
        AcceleratorState._reset_state(reset_partial_state=True)  # a process has one device otherwise
        out = tmp_path / device
        config = TrainConfig(out, steps=3, pictures=2, log_every=1)
        train(mmpt.load("tiny", device=device, dtype=weights), mmpt.M2PTConfig(init="normal"), config)
        losses.append([json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()])
    assert losses[1] == pytest.approx(losses[0], rel=near)


def test_speed_at_7b(llava_7b):
    floor, m2pt, lora = bench(llava_7b, Work(4, 2, 5), ("floor", "m2pt", "lora"))
    print([floor, m2pt, lora])
    assert m2pt["step_s"] <= min(1.10 * floor["step_s"], lora["step_s"])
    assert m2pt["answer_s"] <= 1.03 * floor["answer_s"] and m2pt["peak_mib"] <= 1.05 * floor["peak_mib"]


def test_a_step_in_4_bits_fits_into_16_gib(llava_7b):
    assert largest_step(mmpt.load(llava_7b, quantize="4bit"), 16) >= 1
