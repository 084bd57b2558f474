"""The methods that can be tuned on a backbone by one loop: M²PT and its rivals, each as its PEFT configuration."""

from collections.abc import Callable
from dataclasses import dataclass

from peft import LoraConfig, PeftConfig, PrefixTuningConfig, PromptTuningConfig

from mmpt.backbones import Backbone, load
from mmpt.errors import InputError
from mmpt.m2pt import M2PTConfig
from mmpt.m2pt.hosts import FAMILIES, PROJECTORS
from mmpt.mpt4lm import MPT4LMConfig
from mmpt.mpt4lm.backbone import load as load_text_only

# Prompts start as these words: a random start puts the small LLM far behind (mmpt/m2pt/README.md).
FIRST = "<|im_start|>system\nAnswer the question about the picture in a few words.<|im_end|>\n"
BEFORE_INSTRUCTION = "Answer this question about the picture in a few words: "


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        row: its name there.
        configure: the LLM's tokenizer → what `mmpt.train.train` takes: a PEFT configuration, or None for the LLM's and
            the projector's own weights.
        rates: peak learning rates, fields of `TrainConfig`, around which a grid is laid.
        load: what makes the method's backbone of a name.
    """

    row: str
    configure: Callable[..., PeftConfig | None]
    rates: dict[str, float]
    load: Callable[..., Backbone] = load


def _m2pt(text, **fields):
    return lambda tokenizer: M2PTConfig.from_text(tokenizer, text, **{"num_visual_prompts": 10} | fields)


def _lora(tokenizer):
    """On the LLM and the projector of whichever family the backbone is; PEFT passes over the others' names."""
    llm = "|".join(sorted({family.llm for family in FAMILIES}))
    return LoraConfig(
        r=16,
        lora_alpha=32,
        lora_dropout=0.05,
        target_modules=rf".*\b({llm})\..*\.(q|k|v|o|gate|up|down)_proj",
        modules_to_save=sorted(PROJECTORS),
    )


def _aprompt(tokenizer):
    return M2PTConfig.from_text(
        tokenizer,
        FIRST,
        init="vocabulary",
        num_textual_prompts=10,
        num_visual_prompts=0,
        tune_projector=False,
        num_kv_prompts=10,
        num_feature_prompts=10,
    )


def _vpt(tokenizer):
    return M2PTConfig(
        num_textual_prompts=0, num_visual_prompts=10, visual_readout="none", tune_projector=False, init="vpt_uniform"
    )


def _prompt_tuning(tokenizer):
    return PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=10, prompt_tuning_init="SAMPLE_VOCAB")


def _prefix_tuning(reparameterised):
    return lambda tokenizer: PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=10, prefix_projection=reparameterised
    )


def _mpt4lm(tokenizer):
    """About the share of "tiny" that the paper tunes of LLaMA-2-7B, 0.65 %."""
    text = FIRST if "<|im_start|>" in tokenizer.get_vocab() else BEFORE_INSTRUCTION
    return MPT4LMConfig.from_text(
        tokenizer, text, num_visual_prompts=16, cross_attention_width=144, cross_attention_heads=9, adapter_rank=8
    )


_M2PT_RATES = {"relative_lr": 0.02, "projector_lr": 5e-4}

METHODS: dict[str, Method] = {
    "m2pt": Method("M²PT", _m2pt(FIRST), _M2PT_RATES),
    "m2pt-carry": Method(
        "M²PT, carried prompts",
        _m2pt(BEFORE_INSTRUCTION, textual_position="before_instruction", textual_update="carry"),
        _M2PT_RATES,
    ),
    "m2pt-no-interaction": Method(
        "M²PT without interaction", _m2pt(FIRST, visual_readout="none", tune_projector=False), _M2PT_RATES
    ),
    "vpt": Method("VPT-deep", _vpt, {"lr": 3e-3}),
    "ptum": Method("PTUM", _prefix_tuning(False), {"lr": 1e-2}),
    "aprompt": Method("APrompt", _aprompt, {"relative_lr": 0.02, "lr": 3e-3}),
    "prefix-tuning": Method("Prefix tuning", _prefix_tuning(True), {"lr": 1e-3}),
    "prompt-tuning": Method("Prompt tuning", _prompt_tuning, {"lr": 3e-3}),
    "lora": Method("LoRA (r 16)", _lora, {"lr": 5e-4, "projector_lr": 5e-4}),
    "mpt4lm": Method("MPT4LM, without stage 1", _mpt4lm, {"lr": 1e-3}, load_text_only),
    "full": Method("Full fine-tuning", lambda tokenizer: None, {"lr": 5e-5, "projector_lr": 5e-4}),
}


def method(name: str) -> Method:
    """The method of a name.

    Raises:
        InputError: unknown name.
    """
    if name not in METHODS:
        raise InputError(f"There is no method {name!r}; choose one of {', '.join(METHODS)}.")
    return METHODS[name]
