"""In how many bits a tuning run computes: the frozen weights' type, autocast, the scale of fp16, attention in bf16."""

from contextlib import contextmanager, nullcontext

import torch
from accelerate import Accelerator
from torch import nn

from mmpt.errors import InputError
from mmpt.m2pt.hosts import FAMILIES

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def suited(model: nn.Module) -> str | None:
    """The name "bf16" on a CPU with matrix units for it (AMX), where a step takes little over half of fp32's time.

    Elsewhere None, as loaded: a CPU without them has to emulate bf16, and a GPU's weights are in 16 bits already.
    """
    can = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch do not tell
    plain = model.device.type == "cpu" and not getattr(model, "is_quantized", False)
    return "bf16" if plain and can.get("amx_bf16") else None


def autocast(model: nn.Module):
    """Activations in the type of weights of 16 bits; with others nothing changes."""
    dtype = _dtype(model)
    return torch.autocast(model.device.type, dtype) if dtype.itemsize == 2 else nullcontext()


@contextmanager
def quick_attention(model: nn.Module):
    """Attention step by step in bf16 on a CPU, where the fused one's backward pass takes three times fp32's time."""
    before = model.config._attn_implementation
    slow = model.device.type == "cpu" and _dtype(model) == torch.bfloat16 and before == "sdpa"
    if slow:
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        if slow:
            model.set_attn_implementation(before)


def make_scaler(model: nn.Module, accelerator: Accelerator) -> torch.amp.GradScaler:
    """Under fp16 small gradients would vanish on their way back: the loss is scaled up as far as none overflows.

    Raises:
        InputError: fp16 under FSDP, or of a family whose activations overflow in it.
    """
    fp16 = _dtype(model) == torch.float16
    for family in FAMILIES:
        if fp16 and not family.float16 and any(isinstance(module, family.model) for module in model.modules()):
            raise InputError(f"{family.name} overflows in fp16; hold the weights in bf16 or fp32 (--precision).")
    if fp16 and model.config.is_encoder_decoder:
        raise InputError("T5 overflows in fp16; hold the weights in bf16 or fp32 (--precision).")
    if fp16 and accelerator.distributed_type == "FSDP":
        raise InputError("fp16 scales the loss, which FSDP does not take; hold the weights in bf16.")
    return torch.amp.GradScaler(accelerator.device.type, enabled=fp16)


def _dtype(model):
    """Of 16 bits if any weight is: a whole LLM that is tuned has 32, its frozen vision tower then 16."""
    return next((p.dtype for p in model.parameters() if p.dtype in (torch.bfloat16, torch.float16)), torch.float32)
