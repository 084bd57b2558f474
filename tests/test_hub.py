"""The model card that a run leaves, and what goes to the hub."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
from helpers import tiny_backbone
from huggingface_hub import ModelCard
from huggingface_hub.errors import HTTPError

import mmpt.hub
import mmpt.train
from mmpt.__main__ import main
from mmpt.errors import InputError
from mmpt.evaluate import render
from mmpt.files import ASSETS
from mmpt.hub import card, push
from mmpt.m2pt import M2PTConfig
from mmpt.train import TrainConfig, train


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    config = TrainConfig(folder, steps=2, pictures=1, turns=1, tasks=["background"])
    return train(tiny_backbone(), M2PTConfig(num_textual_prompts=2, num_visual_prompts=1), config)


@pytest.fixture
def hub(monkeypatch):
    """Takes the place of the hub; what was uploaded stands in `files`."""
    seen = SimpleNamespace(repos=[], files={}, message=None)

    class Api:
        def create_repo(self, repo, exist_ok):
            seen.repos.append((repo, exist_ok))

        def create_commit(self, repo, operations, commit_message):
            seen.message = commit_message
            for operation in operations:
                with operation.as_file() as file:
                    seen.files[operation.path_in_repo] = file.read()
            return SimpleNamespace(commit_url=f"https://hub/{repo}/commit/1")

    monkeypatch.setattr(mmpt.hub, "HfApi", Api)
    return seen


@pytest.fixture
def record():
    """What `training.json` says of the shipped adapter."""
    return json.loads((ASSETS / "adapters" / "m2pt" / "training.json").read_text())


def test_a_run_leaves_a_filled_card(out):
    found, record = ModelCard.load(out / "README.md"), json.loads((out / "training.json").read_text())
    assert found.data.library_name == "peft" and found.data.pipeline_tag == "image-text-to-text"
    assert found.data.tags == ["mmpt", "m2pt"] and found.data.base_model is None and found.data.license is None
    for told in (
        "# M2PT on tiny-random",
        f"| loss at the end | {record['final_loss']:.3f}, the mean of the last 2 steps |",
        f"| tuned parameters | {record['tuned_parameters']:,} |",
        "scenes drawn from OpenMoji 17 (CC BY-SA 4.0), background |",
        "@inproceedings{wang2024m2pt",
        'mmpt.load("tiny-random", adapter="FOLDER")',
        "Nothing but the loss.",
    ):
        assert told in found.text, told
    settings = json.loads(re.search(r"```json\n(.*?)```", found.text, re.S)[1])
    assert settings["num_textual_prompts"] == 2 and settings["steps"] == 2
    assert not re.search(r"\{\w*\}", re.sub(r"```.*?```", "", found.text, flags=re.S))  # no field is left open


def test_the_embedded_models_adapter(record):
    data = ModelCard(card(record, "me/it")).data
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct" and data.license == "apache-2.0"
    assert data.tags == ["mmpt", "m2pt", f"base_model:adapter:{data.base_model}"]


@pytest.mark.parametrize(
    "backbone, method, loading",
    [
        ("some/llava", "LORA", 'mmpt.load("some/llava", adapter=snapshot_download("me/it"))'),
        ("tiny-text", "MPT4LM", 'mmpt.load("tiny", adapter=snapshot_download("me/it"))'),
        ("google/flan-t5-xl", "MPT4LM", 'load("google/flan-t5-xl", "TOWER", adapter=snapshot_download("me/it"))'),
        ("tiny", None, 'mmpt.load(snapshot_download("me/it"))'),
    ],
)
def test_how_to_load(record, backbone, method, loading):
    record |= {"backbone": backbone, "method": {"peft_type": method} if method else {}}
    text = card(record, "me/it")
    assert f"backbone = {loading}\n" in text
    assert ModelCard(text).data.library_name == ("peft" if method else "transformers")
    code = re.search(r"```python\n(.*?)```", text, re.S)[1]
    compile(code, "card", "exec")


def test_in_how_few_bits_the_backbone_was_tells_the_card(record):
    text = card(record | {"backbone": "some/llava", "loaded": {"dtype": "bfloat16", "quantize": "4bit"}})
    assert 'adapter="FOLDER", quantize="4bit")' in text and '"quantize": "4bit"' in text


def test_folders_of_this_machine_stay_out_of_the_card(record, tmp_path):
    record["backbone"] = str(tmp_path / "llava")
    record["config"] |= {"data": str(tmp_path / "pictures"), "start": str(tmp_path / "first")}
    text = card(record)
    assert str(tmp_path) not in text and "# M2PT on llava" in text and "one's own (`pictures`)" in text
    assert ModelCard(text).data.base_model is None


def test_what_is_uploaded(out, hub, tmp_path):
    for name in ("checkpoint.pt", "checkpoint.pt.tmp", "annotations.json", "notes.txt", "mmpt"):
        (out / name).mkdir() if name == "mmpt" else (out / name).write_text("x")
    result = (ASSETS / "results" / "tasks-m2pt.json").read_text()
    (tmp_path / "result.json").write_text(result)
    address = push(out, "me/it", [tmp_path / "result.json"], licence="mit")
    assert address == "https://hub/me/it/commit/1" and hub.repos == [("me/it", True)]
    assert set(hub.files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert hub.files["adapter_model.safetensors"] == (out / "adapter_model.safetensors").read_bytes()
    found = ModelCard(hub.files["README.md"].decode())
    assert found.data.license == "mit" and render(json.loads(result)) in found.text
    assert 'snapshot_download("me/it")' in found.text and "FOLDER" not in found.text


def test_folders_of_this_machine_stay_out_of_what_is_uploaded(out, hub, tmp_path):
    folder = shutil.copytree(out, tmp_path / "out")
    settings = json.loads((folder / "adapter_config.json").read_text())
    home = {"base_model_name_or_path": str(tmp_path / "llava")}
    (folder / "adapter_config.json").write_text(json.dumps(settings | home))
    push(folder, "me/it")
    found = json.loads(hub.files["adapter_config.json"])
    assert found == settings | {"base_model_name_or_path": "llava"}


def test_all_of_a_whole_model_is_uploaded(hub, tmp_path):
    folder = train(tiny_backbone(), None, TrainConfig(tmp_path / "full", steps=1, pictures=1, turns=1))
    push(folder, "me/it")
    assert hub.files.keys() == {path.name for path in folder.iterdir()} - {"log.jsonl", "training.json"}


def test_the_commands(hub, tmp_path, monkeypatch, capsys):
    assert main(["push", "m2pt", "me/it"]) == 0
    assert "https://hub/me/it/commit/1" in capsys.readouterr().out
    assert json.loads(hub.files["adapter_config.json"])["peft_type"] == "M2PT"
    hub.files.clear()
    monkeypatch.setattr("mmpt.backbones.load_tiny", tiny_backbone)
    words = "train --method m2pt --steps 1 --pictures 1 --push-to-hub me/it --out".split()
    assert main([*words, str(tmp_path / "out")]) == 0
    assert "adapter_model.safetensors" in hub.files


def test_what_stops_an_upload(out, hub, tmp_path, monkeypatch, capsys):
    (tmp_path / "result.json").write_text("[1]")
    for name, record in (("list", "[]"), ("object", "{}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "training.json").write_text(record)
    for arguments, sentence in (
        ((out, "it"), "The repository is 'it'; give OWNER/NAME"),
        ((tmp_path, "me/it"), "There is no adapter .*; give one of m2pt"),
        ((tmp_path / "list", "me/it"), "list holds no finished run; give a folder that"),
        ((tmp_path / "object", "me/it"), "object holds no finished run; give a folder that"),
        ((out, "me/it", [tmp_path / "result.json"]), "result.json holds no result; give a file that"),
        ((out, "me/it", [tmp_path / "none.json"]), "none.json cannot be read; give a file that"),
    ):
        with pytest.raises(InputError, match=sentence):
            push(*arguments)
    monkeypatch.setattr("mmpt.backbones.load_tiny", tiny_backbone)
    words = ["train", "--method", "m2pt", "--out", str(tmp_path / "out"), "--push-to-hub", "me/it"]
    assert main([*words, "--data", str(tmp_path / "none")]) == main([*words[:-1], "it"]) == 2
    told = capsys.readouterr().err
    assert "There is nothing to tune on" in told and "The repository is 'it'; give OWNER/NAME" in told
    assert not hub.files and not hub.repos

    def unreachable(self, repo, **kwargs):
        raise HTTPError("Name or service not known")

    monkeypatch.setattr(mmpt.hub.HfApi, "create_repo", unreachable)
    with pytest.raises(InputError, match=r"me/it cannot be opened on the hub \(Name or service not known\); check"):
        push(out, "me/it")
    monkeypatch.setattr(mmpt.train, "_step", None)  # nothing is tuned first
    assert main(words) == 2
    assert "me/it cannot be opened on the hub" in capsys.readouterr().err


def test_no_network(out):
    """The hub's own client, offline as the tests are."""
    with pytest.raises(InputError, match="me/it cannot be opened on the hub .*; check the name, the network"):
        push(out, "me/it")
