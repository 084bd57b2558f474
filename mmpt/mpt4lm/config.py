"""The configuration of MPT4LM (ECAI 2024, doi 10.3233/FAIA240515). Beyond the paper's abstract it is our reading."""

from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig, PeftType

PLACEMENTS = {"attention": ("attention",), "mlp": ("mlp",), "both": ("attention", "mlp")}


@dataclass
class MPT4LMConfig(PeftConfig):
    """What MPT4LM tunes beside a frozen text-only LLM and a frozen vision tower.

    The LLM reads [K instruction vectors ; m visual prompts ; the question's embeddings]. Each part can be left out:
    `num_visual_prompts=0` (nothing stands for the picture then: the LLM answers from the words alone),
    `condition_on_question=False`, `num_instruction_tokens=0`, `adapter_rank=0`. The defaults are for LLaMA-2-7B.

    Args:
        num_visual_prompts: m, learned queries, each of which becomes one visual prompt.
        condition_on_question: the queries attend to the question before they attend to the picture; without it the
            visual prompts are the same whatever is asked.
        cross_attention_width: inner width of both attentions; below the LLM's.
        cross_attention_heads: heads of both attentions; must divide the width.
        num_instruction_tokens: K, vectors of the learnable instruction.
        init_token_ids: the instruction starts as the embeddings of these K tokens; None: drawn at random, as large as
            the LLM's token embeddings. See `from_text`.
        init_text: those words, kept for the reader of the saved file.
        adapter_rank: inner width of the bottleneck adapters in every block.
        adapter_placement: "attention" (in T5's decoder after both its attentions), "mlp" or "both".

    Raises:
        ValueError: a field's value is out of its range, or two fields contradict each other.
    """

    num_visual_prompts: int = field(default=16, metadata={"help": "Visual prompts a picture; 0: none."})
    condition_on_question: bool = field(default=True, metadata={"help": "Queries read the question first."})
    cross_attention_width: int = field(default=576, metadata={"help": "Inner width of the cross-attention."})
    cross_attention_heads: int = field(default=9, metadata={"help": "Heads of the cross-attention."})
    num_instruction_tokens: int = field(default=20, metadata={"help": "Vectors of the instruction; 0: none."})
    init_token_ids: list[int] | None = field(default=None, metadata={"help": "Tokens the instruction starts from."})
    init_text: str | None = field(default=None, metadata={"help": "Their words, for the reader."})
    adapter_rank: int = field(default=64, metadata={"help": "Inner width of the adapters; 0: none."})
    adapter_placement: str = field(default="both", metadata={"help": f"One of {tuple(PLACEMENTS)}."})

    # PEFT reads this attribute; the modules are found by structure, so it is not a field and never saved.
    target_modules = None

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType["MPT4LM"]
        least = {"num_visual_prompts": 0, "num_instruction_tokens": 0, "adapter_rank": 0}
        for name, low in (least | {"cross_attention_width": 1, "cross_attention_heads": 1}).items():
            value = getattr(self, name)
            if type(value) is not int or value < low:
                off = "; 0 leaves this part out" if low == 0 else ""
                raise ValueError(f"{name}={value!r}: must be an integer of {low} or more{off}.")
        if not any(getattr(self, name) for name in least):
            raise ValueError(f"{', '.join(f'{name}=0' for name in least)} leave nothing to tune: set one of them.")
        if self.cross_attention_width % self.cross_attention_heads:
            raise ValueError(
                f"cross_attention_width={self.cross_attention_width} cannot be cut into cross_attention_heads="
                f"{self.cross_attention_heads} equal heads: make the width a multiple of the heads."
            )
        if type(self.condition_on_question) is not bool:
            raise ValueError(f"condition_on_question={self.condition_on_question!r}: must be True or False.")
        if self.adapter_placement not in PLACEMENTS:
            raise ValueError(
                f"adapter_placement={self.adapter_placement!r}: must be one of {', '.join(PLACEMENTS)}; "
                "adapter_rank=0 leaves adapters out."
            )
        self._check_words()

    def _check_words(self):
        ids = self.init_token_ids
        if ids is None:
            return
        if not ids or not all(type(i) is int and i >= 0 for i in ids):
            raise ValueError(
                f"init_token_ids={ids!r}: must be a list of token ids; MPT4LMConfig.from_text(tokenizer, text) makes "
                "it from words."
            )
        if len(ids) != self.num_instruction_tokens:
            raise ValueError(
                f"num_instruction_tokens={self.num_instruction_tokens}: the instruction takes one vector a token and "
                f"init_token_ids has {len(ids)}; set num_instruction_tokens={len(ids)}, or use MPT4LMConfig.from_text."
            )

    @classmethod
    def from_text(cls, tokenizer: Any, text: str, **kwargs: Any) -> "MPT4LMConfig":
        """A configuration whose instruction starts as words, so that tuning starts at the LLM that is told them.

        Args:
            tokenizer: the LLM's tokenizer.
            text: the words; num_instruction_tokens follows their number of tokens.
            **kwargs: the other fields.
        """
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        return cls(num_instruction_tokens=len(ids), init_token_ids=ids, init_text=text, **kwargs)
