"""What a run tunes, as it is before the first step: as its method starts, from an adapter, or from a checkpoint."""

import re
from copy import deepcopy

import torch
from peft import (
    PeftModel,
    PrefixTuningConfig,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from safetensors import SafetensorError

from mmpt.adapters import adapter_folder, adapter_settings
from mmpt.errors import InputError, first_line
from mmpt.loading import check_in_memory
from mmpt.m2pt import M2PTConfig
from mmpt.m2pt.backbone import find_backbone
from mmpt.precision import PRECISIONS
from mmpt.sharding import sharded_like

_MAY_DIFFER = "init|dropout|inference_mode|target_modules|task_type|version|revision|path"  # of a start's settings


def begin(backbone, peft_config, config):
    """The model with what is tuned on it, as it is before the first step."""
    if config.relative_lr and not isinstance(peft_config, M2PTConfig):
        raise InputError(f"relative_lr is {config.relative_lr:g}, and this method has no prompts of M²PT; give lr.")
    if config.gradient_checkpointing and isinstance(peft_config, PrefixTuningConfig):
        raise InputError("A prefix is a cache, which gradient checkpointing leaves out; tune it without.")
    check_in_memory(backbone.model)
    torch.manual_seed(config.seed)
    if peft_config is None:
        if config.start:
            raise InputError("Full fine-tuning starts from a backbone, not an adapter; give the folder as backbone.")
        if getattr(backbone.model, "is_quantized", False):
            raise InputError("Weights in few bits cannot be tuned; leave quantize out, or choose another method.")
        parts = find_backbone(backbone.model.requires_grad_(True))
        parts.tower.requires_grad_(False)
        parts.projector.requires_grad_(True)  # which may stand inside the tower
    else:
        backbone.model = get_peft_model(backbone.model, deepcopy(peft_config))
        if config.start:
            _start_from(backbone, adapter_folder(config.start))
    return backbone.model


def _start_from(backbone, folder):
    """Copy the adapter's weights. PEFT itself would pass over what does not fit."""
    backbone.check_home(folder)
    settings, given = adapter_settings(folder), backbone.model.active_peft_config.to_dict()
    wrong = [
        f"{name} was {settings[name]!r} and is {value!r}"
        for name, value in given.items()
        if type(value) in (bool, int, float, str)  # what a list changes, the weights' names tell
        and settings.get(name, value) != value
        and not re.search(_MAY_DIFFER, name)
    ]
    try:
        weights = load_peft_weights(folder, device=str(backbone.model.device))
        set_peft_model_state_dict(backbone.model, weights)
        now = get_peft_model_state_dict(backbone.model, save_embedding_layers=False)
        wrong += [k for k in sorted(weights.keys() | now.keys()) if k not in weights or k not in now]
    except (RuntimeError, ValueError, KeyError, SafetensorError) as error:
        wrong.append(first_line(error))
    if wrong:
        raise InputError(
            f"The adapter in {folder} cannot be the start ({wrong[0]}); give one of the same method and settings that "
            f"was tuned on {backbone.name}."
        )


def prepare(model, name, config):
    """Types, training mode, checkpointing; the tuned parameters by name."""
    if config.precision and getattr(model, "is_quantized", False):
        raise InputError(f"The weights are quantized, so precision {config.precision!r} cannot be had; leave it out.")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
        elif config.precision:
            parameter.data = parameter.data.to(PRECISIONS[config.precision])
    if isinstance(model, PeftModel):
        model.active_peft_config.base_model_name_or_path = name
    model.train()
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return tuned_of(model)


def tuned_of(model):
    """The parameters that are tuned, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def restore(saved, tuned, optimizer, scaler):
    """Put a checkpoint's values in their places; returns its losses, number of questions and seconds."""
    if saved is None:
        return {"losses": [], "questions": 0, "seconds": 0.0}
    with torch.no_grad():
        for name, parameter in tuned.items():
            parameter.copy_(sharded_like(saved["tuned"][name], parameter))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for i, moments in saved["optimizer"]["state"].items():
        moments |= {name: sharded_like(moment, parameters[i]) for name, moment in moments.items()}
    optimizer.load_state_dict(saved["optimizer"])
    scaler.load_state_dict(saved["scaler"])
    return {name: saved[name] for name in ("losses", "questions", "seconds")}
