import socket

import helpers
import pytest

from app.__main__ import main
from mmpt.errors import InputError


@pytest.fixture
def random_backbone(monkeypatch):
    monkeypatch.setattr("mmpt.backbones.load", lambda name, quantize=None: helpers.tiny_backbone())


def test_unknown_backbone_is_one_sentence(capsys, monkeypatch):
    def load(name, quantize):
        raise InputError("No such thing.")

    monkeypatch.setattr("mmpt.backbones.load", load)
    assert main(["--backbone", "nowhere"]) == 2
    assert capsys.readouterr().err == "app: No such thing.\n"


def test_wrong_adapter_is_one_sentence(capsys, random_backbone):
    assert main(["--adapter", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("app: There is no adapter 'nowhere'; give one of ")
    assert main(["--adapter", "m2pt"]) == 2  # tuned on another backbone
    error = capsys.readouterr().err
    assert "was tuned on 'tiny', and this backbone is 'tiny-random'" in error and error.count("\n") == 1


def test_taken_port_is_one_sentence(capsys, random_backbone):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["--adapter", "none", "--port", str(taken.getsockname()[1])]) == 2
    error = capsys.readouterr().err
    assert error.startswith("app: The page cannot be served on 127.0.0.1, port ") and "give another --host" in error
    assert main(["--adapter", "none", "--port", "99999"]) == 2
    assert "port 99999" in capsys.readouterr().err
