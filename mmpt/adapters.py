"""Adapters as they lie on the disk, shipped ones by name, others by their folder; and how they come off a model."""

import os
from pathlib import Path

from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import nn

from mmpt.errors import InputError
from mmpt.files import ASSETS, read_json


def free_name(folder: Path, taken: dict[str, Path | None]) -> str:
    """What the adapter in `folder` is called beside those that are `taken`: as the folder, numbered if need be."""
    own = folder.name.replace(".", "_")
    names = (own, *(f"{own}-{n}" for n in range(2, len(taken) + 3)))
    return next(name for name in names if may_be_called(name) and (name not in taken or taken[name] == folder))


def may_be_called(name: str) -> bool:
    """Whether an adapter may have this name, by which PEFT puts it into a torch module: such as "train" is taken."""
    return "." not in name and not hasattr(nn.ModuleDict(), name)


def adapter_folder(adapter: str | Path) -> Path:
    """Folder of a shipped adapter's name, or of a path: anything that is no plain name, or that is not shipped.

    Raises:
        InputError: no such adapter; or a shipped one and a folder here both have the name.
    """
    here, shipped = Path(adapter), ASSETS / "adapters" / Path(adapter).name
    plain = isinstance(adapter, str) and adapter == here.name
    folders = [f for f in (shipped,) * plain + (here,) if os.path.isfile(f / "adapter_config.json")]
    if len({folder.resolve() for folder in folders}) > 1:
        raise InputError(f"{adapter!r} is a shipped adapter and a folder here; give ./{adapter} for the folder.")
    if folders:
        return folders[0]
    shipped = sorted(p.parent.name for p in ASSETS.glob("adapters/*/adapter_config.json"))
    raise InputError(
        f"There is no adapter {str(adapter)!r}; give one of {', '.join(shipped) or '(none is shipped)'}, or a folder "
        "that holds adapter_config.json."
    )


def adapter_settings(folder: Path) -> dict:
    """What an adapter's folder says of it; InputError where that is no JSON, or the weights are missing."""
    if not any(os.path.isfile(folder / f"adapter_model.{kind}") for kind in ("safetensors", "bin")):
        raise InputError(f"{folder} holds adapter_config.json, but no weights; copy adapter_model.safetensors too.")
    wanted = "an adapter's settings, as `python -m mmpt train` writes them"
    settings = read_json(folder / "adapter_config.json", wanted)
    if not isinstance(settings, dict):
        raise InputError(f"{folder / 'adapter_config.json'} is no JSON object; give {wanted}.")
    return settings


def method_of(adapter: str | Path) -> str | None:
    """PEFT's name of an adapter's method, such as "M2PT" or "LORA"."""
    return adapter_settings(adapter_folder(adapter)).get("peft_type")


def taken_off(model: PeftModel) -> nn.Module:
    """The model as it was before its adapters."""
    if model.active_peft_config.is_prompt_learning:  # PEFT's own prompts wrap a model and change nothing
        return model.get_base_model()
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.set_adapter([])  # else PEFT would leave LoRA's tuned copy of the projector behind
    return model.unload()
