"""The two configurations whose adapters for "tiny" are shipped."""

from mmpt.errors import InputError
from mmpt.m2pt import M2PTConfig

# Prompts start as these words: a random start puts the small LLM far behind (mmpt/m2pt/README.md).
FIRST = "<|im_start|>system\nAnswer the question about the picture in a few words.<|im_end|>\n"
BEFORE_INSTRUCTION = "Answer this question about the picture in a few words: "

PRESETS = {
    "m2pt": (FIRST, dict(textual_position="first", textual_update="replace")),
    "m2pt-carry": (BEFORE_INSTRUCTION, dict(textual_position="before_instruction", textual_update="carry")),
}


def m2pt_config(name: str, tokenizer, num_visual_prompts: int = 10) -> M2PTConfig:
    """The paper's order and update ("m2pt"), or prompts after the picture whose outputs are kept ("m2pt-carry").

    Raises:
        InputError: unknown name.
    """
    if name not in PRESETS:
        raise InputError(f"There is no method {name!r}; choose one of {', '.join(PRESETS)}.")
    text, fields = PRESETS[name]
    return M2PTConfig.from_text(tokenizer, text, num_visual_prompts=num_visual_prompts, **fields)
