import helpers
import pytest
import torch
from peft import get_peft_model

import mmpt
from app.pictures import scene
from app.state import Asked, Studio


def save_adapter(folder, seed, **fields):
    """A random adapter of 3 textual and 2 visual prompts for the tiny random model."""
    backbone = helpers.tiny_backbone()
    torch.manual_seed(seed)
    config = mmpt.M2PTConfig(num_textual_prompts=3, num_visual_prompts=2, init="normal", **fields)
    backbone.model = get_peft_model(backbone.model, config)
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.5 * torch.randn_like(parameter))
    backbone.model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    carry = {"textual_position": "before_instruction", "textual_update": "carry"}
    return [save_adapter(folder / "one", 1), save_adapter(folder / "two", 2, **carry)]


@pytest.fixture
def studio(adapters, monkeypatch):
    monkeypatch.setattr("app.ask.MAX_NEW_TOKENS", 8)  # random weights seldom end an answer
    return Studio(helpers.tiny_backbone(), adapters)


@pytest.fixture(scope="session")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    scene(3)[0].save(path)
    return str(path)


@pytest.fixture
def asked(picture):
    return Asked(picture, "What?", {"none": "a cat", "one": "a dog"})


@pytest.fixture
def progress():
    """Stands for gr.Progress outside of a page; its list `seen` is what it was told."""

    def tell(share, desc=None):
        tell.seen.append(share)

    tell.seen = []
    return tell
