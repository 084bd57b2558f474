"""Several processes tune to the weights of one, whatever their shares are, and resume to them as well."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from accelerate.commands import launch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, PrepareForLaunch
from accelerate.utils.launch import prepare_multi_gpu_env
from helpers import tiny_backbone
from peft import LoraConfig, PromptTuningConfig
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import ProcessRaisedException, start_processes

import mmpt.train
from mmpt.data import conversation
from mmpt.m2pt import M2PTConfig
from mmpt.train import TrainConfig, train

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(sys.platform == "win32", reason="there is no fork server, which saves imports"),
]
METHODS = {
    "m2pt": M2PTConfig(num_textual_prompts=3, num_visual_prompts=2),
    # Also on the vision encoder's last layer, which the features that the LLM reads come before: no gradient there.
    "lora": LoraConfig(target_modules=["q_proj", "v_proj"], r=4, init_lora_weights=False),
    "prompt tuning": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


def settings(out, **changes):
    return TrainConfig(out, **{"steps": 3, "pictures": 4, "turns": 2, "save_every": 1, "log_every": 1} | changes)


def run(out, method="m2pt", **changes):
    backbone = tiny_backbone()
    if method == "lora":
        backbone.model.config.vision_feature_layer = -2
    train(backbone, METHODS[method], settings(out, **changes))


def two_processes(*args, stop_before=None, sharded=False, **changes):
    """`run` in two processes on one CPU.

    They are forked off a server that has imported everything and computed nothing: a fork of this process, whose
    threads it would lack, could wait for them for ever.
    """
    multiprocessing.set_forkserver_preload(["mmpt.train", "helpers", "torch.distributed.fsdp"])
    with tempfile.NamedTemporaryFile() as meeting:
        start_processes(
            _started, (meeting.name, args, stop_before, sharded, changes), nprocs=2, start_method="forkserver"
        )


def _started(rank, meeting, *given):
    os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}  # accelerate wants to know
    os.environ |= {"ACCELERATE_USE_CPU": "yes", "ACCELERATE_DEBUG_RDV_FILE": meeting}
    torch.set_num_threads(1)
    PrepareForLaunch(_one_of_two, debug=True)(rank, *given)


def _one_of_two(args, stop_before, sharded, changes):
    if sharded:
        _shard()
    step = mmpt.train._step

    def stopping(*given):
        if given[-1] == stop_before:
            raise KeyboardInterrupt
        assert all(isinstance(p, DTensor) == sharded for p in given[1].parameters())
        # The loss as a whole and two layers of each encoder.
        assert sum(isinstance(m, FSDPModule) for m in given[1].modules()) == (5 if sharded else 0)
        return step(*given)

    mmpt.train._step = stopping
    run(*args, **changes)


def _shard():
    """What `accelerate launch --config_file mmpt/fsdp.yaml` brings about on GPUs; on CPUs it takes no notice of it."""
    config = str(Path(mmpt.train.__file__).parent / "fsdp.yaml")
    asked = launch.launch_command_parser().parse_args(["--config_file", config, "--num_processes", "2", "script.py"])
    os.environ |= prepare_multi_gpu_env(launch._validate_launch_command(asked)[0])
    prepare = AcceleratorState.__init__

    def sharding(self, *args, **kwargs):
        prepare(self, *args, **kwargs)
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, FullyShardedDataParallelPlugin()

    AcceleratorState.__init__ = sharding


def assert_same(folder, reference):
    found, expected = (load_file(out / "adapter_model.safetensors") for out in (folder, reference))
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def one(tmp_path_factory, one_thread):
    """The folder of one process's run."""
    out = tmp_path_factory.mktemp("runs") / "one"
    run(out)
    return out


def labels(first, last):
    """How many labels pictures `first` to `last` of step 0 have."""
    pairs = [conversation(settings("x"), 0, i) for i in range(first, last)]
    images, turns = [scene.image for scene, _ in pairs], [turns for _, turns in pairs]
    return (tiny_backbone().training_inputs(images, turns)["labels"] != -100).sum()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_learn_the_same_as_one(one, tmp_path, accumulate):
    assert labels(0, 2) != labels(2, 4)  # a mean of the processes' own means would be another loss
    two_processes(tmp_path / "two", accumulate=accumulate)
    assert_same(tmp_path / "two", one)
    records = [json.loads((out / "training.json").read_text()) for out in (tmp_path / "two", one)]
    assert [record["processes"] for record in records] == [2, 1]
    assert records[0]["final_loss"] == pytest.approx(records[1]["final_loss"], abs=1e-5)
    assert records[0]["questions"] == records[1]["questions"]


def test_parameters_without_a_gradient_stop_no_one(tmp_path):
    run(tmp_path / "one", "lora", steps=2)
    two_processes(tmp_path / "two", "lora", steps=2, accumulate=2, gradient_checkpointing=True)
    assert_same(tmp_path / "two", tmp_path / "one")


def test_what_two_processes_began_two_or_one_go_on_with(one, tmp_path):
    two_processes(tmp_path / "two", stop_before=2)
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"log.jsonl", "checkpoint.pt"}
    shutil.copytree(tmp_path / "two", tmp_path / "alone")
    two_processes(tmp_path / "two", resume=True)
    assert_same(tmp_path / "two", one)
    run(tmp_path / "alone", resume=True)
    assert_same(tmp_path / "alone", one)
    assert len((tmp_path / "alone" / "log.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("method", ["m2pt", "lora"])
def test_sharded_weights_learn_the_same_and_resume(tmp_path, method):
    changes = {"steps": 2, "accumulate": 2, "gradient_checkpointing": True}
    run(tmp_path / "one", method, steps=2)
    two_processes(tmp_path / "two", method, stop_before=1, sharded=True, **changes)
    shutil.copytree(tmp_path / "two", tmp_path / "alone")
    two_processes(tmp_path / "two", method, resume=True, sharded=True, **changes)
    run(tmp_path / "alone", method, resume=True, **changes)
    assert_same(tmp_path / "two", tmp_path / "one")
    assert_same(tmp_path / "alone", tmp_path / "one")


def test_what_cannot_be_sharded_is_told_before_the_work(tmp_path):
    with pytest.raises(
        ProcessRaisedException, match="InputError: PEFT cannot save PROMPT_TUNING under FSDP; start the"
    ):
        two_processes(tmp_path / "out", "prompt tuning", sharded=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_in_two_processes(tmp_path):
    """Started by torchrun: `accelerate launch --cpu` starts one process, whatever the number."""
    backbone = tiny_backbone()
    backbone.model.save_pretrained(tmp_path / "model")
    backbone.processor.save_pretrained(tmp_path / "model")
    command = "-m mmpt train --method m2pt --steps 2 --pictures 2 --backbone model --out".split()
    torchrun = "-m torch.distributed.run --standalone --nproc_per_node 2".split()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    for out, start in (("one", []), ("two", torchrun)):
        subprocess.run([sys.executable, *start, *command, out], check=True, cwd=tmp_path, env=environment, timeout=900)
    assert json.loads((tmp_path / "two" / "training.json").read_text())["processes"] == 2
    assert_same(tmp_path / "two", tmp_path / "one")
