"""A model and its processor from a folder or the hub, and what can go wrong, said before anything large comes over."""

from typing import Any

import psutil
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from peft.tuners.tuners_utils import NoMatchingPeftModuleError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.integrations.accelerate import get_max_memory

from mmpt.errors import InputError, first_line
from mmpt.m2pt.backbone import find_backbone

BITS = {"4bit": 4, "8bit": 8}
OPTIONS = {"4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "8bit": {"load_in_8bit": True}}
APART = [  # never in few bits
    ".*vision_tower", ".*vision_model", ".*multi_modal_projector", ".*connector", ".*visual", "lm_head",
]  # fmt: skip


def load_pretrained(
    name: str, dtype: torch.dtype, device: torch.device, quantize: str | None = None, device_map: Any = None
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model `name`, a folder or a hub id, of one of the families of mmpt/m2pt/hosts.py, and its processor.

    Args:
        dtype: of the weights, but for those that `quantize` ("4bit" or "8bit") holds in fewer bits.
        device: where all of it goes, unless `device_map` (transformers' own argument, such as "auto") spreads it.

    Raises:
        InputError: it is unknown, gated, of no such family, or larger than the free memory.
    """
    try:
        outline = _outline(name)
        if dtype == torch.float16 and not find_backbone(outline).family.float16:
            raise InputError(f"{name!r} overflows in float16; give dtype=torch.float32, or torch.bfloat16.")
        _check_memory(name, outline, dtype, device, quantize, device_map)
        options = {"device_map": device if device_map is None else device_map}
        if quantize:
            options["quantization_config"] = BitsAndBytesConfig(
                **OPTIONS[quantize], bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=APART
            )
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, **options)
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False  # an answer would pack 4 bits so that no gradient passes
        decode_greedily(model)
        return model, AutoProcessor.from_pretrained(name)
    except InputError:
        raise
    except ImportError as error:
        if "bitsandbytes" in str(error):
            raise InputError("Quantized weights need bitsandbytes: pip install bitsandbytes.") from error
        raise InputError(_reason(name, error)) from error
    except NoMatchingPeftModuleError as error:
        raise InputError(f"The backbone {name!r} is of no kind that can be tuned here: {error}") from error
    except SafetensorError as error:
        raise InputError(f"The weights of {name!r} are damaged ({error}); fetch them again.") from error
    except (OSError, ValueError) as error:
        raise InputError(_reason(name, error)) from error


def default_dtype(device: torch.device) -> torch.dtype:
    """What weights are held in: float32 on a CPU, else bfloat16; float16 on a GPU without units for that, as a T4."""
    if device.type == "cpu":
        return torch.float32
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def decode_greedily(model: PreTrainedModel) -> None:
    """Keep of a model's generation settings only where texts begin and end: a repetition penalty is not greedy."""
    settings = model.generation_config.to_dict()
    tokens = {key: value for key, value in settings.items() if key.endswith("token_id")}
    model.generation_config = GenerationConfig(**tokens)


def _outline(name: str) -> PreTrainedModel:
    """The model without weights, made from its configuration alone."""
    config = AutoConfig.from_pretrained(name)
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise InputError(
            f"The backbone {name!r} is a {config.model_type!r}, which does not answer about pictures; give a model "
            "such as llava-hf/llava-1.5-7b-hf."
        )
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    find_backbone(model)
    return model


def weights_size(model: PreTrainedModel, dtype: torch.dtype, quantize: str | None = None) -> int:
    """Bytes that the weights of `model`, which may be on the meta device, take once loaded."""
    llm = find_backbone(model).llm
    few = {id(m.weight) for m in llm.modules() if quantize and isinstance(m, nn.Linear)}
    return sum(
        p.numel() * BITS[quantize] // 8 if id(p) in few else p.numel() * dtype.itemsize for p in model.parameters()
    )


def _check_memory(name, model, dtype, device, quantize, device_map):
    needed = weights_size(model, dtype, quantize)
    have = sum(get_max_memory().values()) if device_map else _free(device)
    if needed <= have:
        return
    gpus = sum(free for place, free in get_max_memory().items() if place != "cpu")
    fewer = {} if quantize else {kind: weights_size(model, dtype, kind) for kind in BITS}
    ways = [f'quantize="{kind}" ({_gib(size)})' for kind, size in fewer.items() if size <= have]
    ways += ['device_map="auto"'] * (device_map is None and needed <= gpus)
    how, where = quantize or str(dtype).removeprefix("torch."), "all devices together" if device_map else device
    raise InputError(
        f"The weights of {name!r} take {_gib(needed)} in {how}, and {_gib(have)} are free on {where}: "
        f"{'give ' + ' or '.join(ways) if ways else 'take a smaller model'}."
    )


def _free(device):
    """Bytes; of a GPU with what torch keeps and does not use. Others are left alone: a look takes some of theirs."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def check_in_memory(model: PreTrainedModel) -> None:
    """InputError if `device_map` keeps some of the weights off the devices: no adapter can be put there."""
    if any(p.is_meta for p in model.parameters()):
        raise InputError(
            "Some of the backbone's weights are kept off the devices, where no adapter can stand; load it with "
            'quantize, on more GPUs, or with device="cpu".'
        )


def _gib(size):
    return f"{size / 2**30:.1f} GiB"


def _reason(name, error):
    if isinstance(error.__cause__, GatedRepoError):
        return (
            f"The backbone {name!r} is gated: accept its terms at https://huggingface.co/{name}, then sign in with "
            "`hf auth login`."
        )
    if isinstance(error.__cause__, RepositoryNotFoundError):
        return f"The hub knows no model {name!r}, or it is private: check its name, or sign in with `hf auth login`."
    return (
        f'The backbone {name!r} could not be loaded ({first_line(error)}); give "tiny", a folder with a '
        "multimodal LLM and its processor, or a hub id while the hub can be reached."
    )
