"""What a run reports besides log.jsonl."""

import json
import time
from types import SimpleNamespace

import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from accelerate.utils import LoggerType
from helpers import tiny_backbone

import mmpt.runs
import mmpt.train
from mmpt.errors import InputError
from mmpt.m2pt import M2PTConfig
from mmpt.train import TrainConfig, train


def run(out, **changes):
    config = {"steps": 4, "pictures": 1, "turns": 1, "log_every": 1, "save_every": 2} | changes
    return train(tiny_backbone(), M2PTConfig(num_textual_prompts=2, num_visual_prompts=1), TrainConfig(out, **config))


def rows(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture
def stop_before(monkeypatch):
    """Lets the run be interrupted before a step, until the test ends or undoes it."""
    original = mmpt.train._step

    def before(step):
        def stopping(*args):
            if args[-1] == step:
                raise KeyboardInterrupt
            return original(*args)

        monkeypatch.setattr(mmpt.train, "_step", stopping)

    return before


@pytest.mark.parametrize("content", [b"", b"garbage", b"[]", b"{}"])
@pytest.mark.parametrize("name", ["checkpoint.pt", "training.json"])
def test_a_damaged_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name} cannot be read or is damaged; delete it and start again"):
        run(tmp_path, resume=True)


def test_a_damaged_log_is_named(tmp_path, stop_before):
    stop_before(3)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    with (tmp_path / "log.jsonl").open("ab") as log:
        log.write(b"\xff}\n")
    with pytest.raises(InputError, match="log.jsonl cannot be read or is damaged; delete it"):
        run(tmp_path, resume=True)


def test_two_processes_do_not_tune_into_one_folder(tmp_path):
    with mmpt.runs.open_run(tmp_path, 0), pytest.raises(InputError, match="Another process is tuning into .*; let it"):
        run(tmp_path, resume=True)
    run(tmp_path, resume=True, steps=1)


@pytest.mark.parametrize("error", [OSError(95, "Operation not supported"), NotImplementedError("no locks here")])
def test_disks_without_locks_are_tuned_into_all_the_same(tmp_path, monkeypatch, capsys, error):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(mmpt.runs.FileLock, "acquire", refuse)
    run(tmp_path, steps=1)
    assert (
        f"{tmp_path} cannot be locked ({error}): see that no other process tunes into it." in capsys.readouterr().err
    )


def test_another_accounts_lock_is_told(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(mmpt.runs.FileLock, "acquire", refuse)
    with pytest.raises(InputError, match=r"\.lock is another account's, which may be tuning .*; remove it, or give"):
        run(tmp_path)


def test_a_log_that_cannot_be_cut_stays_whole(tmp_path, stop_before, monkeypatch):
    stop_before(3)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    before = (tmp_path / "log.jsonl").read_text()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mmpt.files.flush_to_disk", full)
    with pytest.raises(InputError, match="log.jsonl cannot be written .No space left on device"):
        run(tmp_path, resume=True)
    assert (tmp_path / "log.jsonl").read_text() == before


def test_what_fails_before_the_first_step_leaves_the_backbone_as_it_was(tmp_path):
    def refuse():
        raise InputError("not today")

    backbone = tiny_backbone()
    modules, settings = str(backbone.model), TrainConfig(tmp_path, steps=1, pictures=1, turns=1)
    for _ in range(2):
        with pytest.raises(InputError, match="not today"):
            train(backbone, M2PTConfig(num_textual_prompts=2), settings, refuse)
        assert str(backbone.model) == modules and not backbone.model.training
    whole = tiny_backbone()
    whole.model.bfloat16()
    with pytest.raises(InputError, match="not today"):
        train(whole, None, settings, refuse)
    assert {p.dtype for p in whole.model.parameters()} == {torch.bfloat16}


def test_what_a_kill_left_unfinished_stays_out_of_the_result(tmp_path):
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "stale.safetensors").touch()
    assert not (run(tmp_path, steps=1) / "stale.safetensors").exists()


def test_a_run_that_failed_before_its_first_step_leaves_its_folder_free(tmp_path, stop_before, monkeypatch):
    stop_before(0)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    monkeypatch.undo()
    run(tmp_path, steps=1)


def test_a_tracker_gets_the_rows_of_the_log(tmp_path, monkeypatch):
    told = SimpleNamespace(settings=None, rows=[], options=None, finished=0)

    class Recorder(GeneralTracker):
        name, requires_logging_directory, tracker = "wandb", False, None

        def __init__(self, project, **options):
            super().__init__()
            told.project, told.options = project, options

        def store_init_configuration(self, values):
            told.settings = values

        def log(self, values, step):
            told.rows.append((step, values))

        def finish(self):
            told.finished += 1

    monkeypatch.setitem(mmpt.runs.TRACKERS, "wandb", lambda: True)
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Recorder)
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [LoggerType.WANDB])
    out = run(tmp_path / "mine", report_to="wandb", log_every=2)
    assert told.rows == [(row["step"], row) for row in rows(out)] and len(told.rows) == 2
    assert (told.project, told.options["name"], told.finished) == ("mmpt", "mine", 1)
    assert told.settings["steps"] == 4 and told.settings["backbone"] == "tiny-random"
    assert told.settings["num_textual_prompts"] == 2 and told.settings["tasks"] == "None"
    assert "report_to" not in json.loads((out / "training.json").read_text())["config"]  # may change on resuming


def test_tensorboards_files_hold_the_log_and_a_resumed_run_goes_on_in_them(tmp_path, monkeypatch, stop_before):
    records = pytest.importorskip("tensorboardX.proto.event_pb2")

    def events(folder):
        for file in sorted(folder.glob("events.*"), key=lambda file: file.stat().st_mtime):
            data = file.read_bytes()
            while data:  # length (8 bytes), its checksum (4), an event, its checksum (4)
                length = int.from_bytes(data[:8], "little")
                yield records.Event.FromString(data[12 : 12 + length])
                data = data[16 + length :]

    out = tmp_path / "mine"
    stop_before(3)
    with pytest.raises(KeyboardInterrupt):
        run(out, report_to="tensorboard")
    monkeypatch.undo()
    time.sleep(1)  # tensorboardX names its files by the second
    run(out, report_to="tensorboard", resume=True)
    found, purged_from = {}, []
    for event in events(out / "mmpt"):
        if event.HasField("session_log") and event.step:
            purged_from.append(event.step)
        for value in event.summary.value:
            if value.tag == "loss":
                found[event.step] = value.simple_value
    assert purged_from == [1, 3]  # what the first run said of step 3 is not in its checkpoint
    assert found == pytest.approx({row["step"]: row["loss"] for row in rows(out)})


def test_a_tracker_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setitem(mmpt.runs.TRACKERS, "wandb", lambda: False)
    with pytest.raises(InputError, match="report_to is 'wandb', which is not installed: pip install wandb"):
        TrainConfig(tmp_path, report_to="wandb")
    with pytest.raises(InputError, match="report_to is 'paper'; give 'tensorboard' or 'wandb', or None"):
        TrainConfig(tmp_path, report_to="paper")


def test_a_tracker_that_does_not_start(tmp_path, monkeypatch):
    class Broken(GeneralTracker):
        name, requires_logging_directory = "wandb", False

        def __init__(self, project, **options):
            raise RuntimeError("no key for the service")

    monkeypatch.setitem(mmpt.runs.TRACKERS, "wandb", lambda: True)
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Broken)
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [LoggerType.WANDB])
    with pytest.raises(InputError, match="did not start .no key for the service.; mend that, or leave report_to out"):
        run(tmp_path / "mine", report_to="wandb")
