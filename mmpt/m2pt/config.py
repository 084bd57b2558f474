"""The configuration of M²PT (arXiv 2409.15657). Every departure from the paper is a named value here."""

from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig, PeftType

LAYER_GROUPS = ("all", "first", "last", "first_half", "second_half")
CHOICES = {
    "textual_position": ("first", "before_instruction"),
    "textual_update": ("replace", "carry"),
    "visual_update": ("replace", "carry"),
    "visual_readout": ("output", "parameter", "none"),
    "init": ("xavier_uniform", "normal", "vocabulary", "instruction", "vpt_uniform"),
}
WORD_INITS = ("vocabulary", "instruction")


@dataclass
class M2PTConfig(PeftConfig):
    """What M²PT tunes, and how the prompts enter the model.

    A VPT-only model is `num_textual_prompts=0`, a text-only one `num_visual_prompts=0, tune_projector=False`.

    Args:
        num_textual_prompts: prompts Pt in each listed layer of the LLM.
        num_visual_prompts: prompts Pv in each listed layer of the vision encoder, and as many extra tokens an image
            for the LLM unless `visual_readout` is "none".
        textual_layers, visual_layers: "all", "first", "last", "first_half" (the larger half if odd), "second_half",
            or a list of indices from 0. Slots come into being at the first listed layer: before it nothing attends to
            them. In a later layer that is not listed they pass through like any token. In the vision encoder only
            layers that the LLM can see count, so with `vision_feature_layer=-2` "all" leaves the last one out
            (`visual_readout="parameter"` reads its prompts, so there it is counted).
        textual_position: "first" puts the textual prompts before the row's first token (the paper's figure);
            "before_instruction" right after its last image (before its first token if the row has none); if nothing
            follows that, the next token's logits, which come from the image's last column, do not depend on them.
        textual_update, visual_update: "replace" overwrites the slots at the input of each listed layer (the paper);
            "carry" adds the layer's prompts to what the previous layer made of the slots.
        visual_readout: what of the visual prompts the LLM is given. "output": the slots' outputs at the feature layer,
            projected (the figure). "parameter": the raw prompts of the last listed layer, projected (the official
            code). "none": nothing; the prompts act inside the vision encoder only.
        tune_projector: train a copy of the projector, the paper's interaction layer f_in; it is saved with them.
        init: "xavier_uniform" on a (1, P, D) tensor, bound sqrt(6 / ((P + 1) D)) (the paper); "normal", `init_std`
            wide; "vocabulary": the embeddings of `init_token_ids`, repeated to length; "instruction": at each layer
            the inputs of that layer when the frozen LLM reads `init_token_ids`. Under textual_update="carry" both
            start as the embeddings at the first listed layer and zero after it. With "instruction" over all layers,
            tuning starts exactly at the model that reads those tokens in the place of the slots (under "replace" for
            `textual_position="first"` only, since after an image the inputs depend on the image). The words are for
            the LLM: visual prompts start from xavier_uniform then. "vpt_uniform": visual prompts as VPT's code starts
            them, bound sqrt(6 / (3 patch² + D)); textual prompts from xavier_uniform.
        init_std: standard deviation of "normal", and of prompts inside attention.
        init_token_ids: tokens of the words for "vocabulary" and "instruction"; see `from_text`.
        init_text: those words, kept for the reader of the saved file.
        num_kv_prompts: learned keys and values in front of the sequence's own in each of `textual_layers` (APrompt;
            mmpt/m2pt/attention_prompts.py).
        num_feature_prompts: learned features appended to that attention's queries and keys (APrompt).

    Raises:
        ValueError: a field's value is out of its range, or two fields contradict each other.
    """

    num_textual_prompts: int = field(default=10, metadata={"help": "Textual prompts in each listed LLM layer."})
    num_visual_prompts: int = field(default=20, metadata={"help": "Visual prompts in each listed ViT layer."})
    textual_layers: str | list[int] = field(default="all", metadata={"help": "LLM layers that get prompts."})
    visual_layers: str | list[int] = field(default="all", metadata={"help": "ViT layers that get prompts."})
    textual_position: str = field(default="first", metadata={"help": "'first' or 'before_instruction'."})
    textual_update: str = field(default="replace", metadata={"help": "'replace' or 'carry'."})
    visual_update: str = field(default="replace", metadata={"help": "'replace' or 'carry'."})
    visual_readout: str = field(default="output", metadata={"help": "'output', 'parameter' or 'none'."})
    tune_projector: bool = field(default=True, metadata={"help": "Train and save a copy of the projector."})
    init: str = field(default="xavier_uniform", metadata={"help": f"One of {CHOICES['init']}."})
    init_std: float = field(default=0.02, metadata={"help": "Standard deviation of init='normal'."})
    init_token_ids: list[int] | None = field(default=None, metadata={"help": "Token ids of the initial words."})
    init_text: str | None = field(default=None, metadata={"help": "The initial words, for the reader."})
    num_kv_prompts: int = field(default=0, metadata={"help": "Learned keys and values in each listed LLM layer."})
    num_feature_prompts: int = field(default=0, metadata={"help": "Learned features of its queries and keys."})

    # PEFT reads this attribute; the modules are found by structure, so it is not a field and never saved.
    target_modules = None

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType["M2PT"]
        for name in ("num_textual_prompts", "num_visual_prompts", "num_kv_prompts", "num_feature_prompts"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ValueError(f"{name}={value!r}: must be an integer of 0 or more; 0 turns them off.")
        if not (self.num_textual_prompts or self.num_visual_prompts or self.num_kv_prompts or self.tune_projector):
            raise ValueError(
                "num_textual_prompts=0, num_visual_prompts=0, num_kv_prompts=0 and tune_projector=False leave nothing "
                "to tune: set at least one of them."
            )
        if self.num_feature_prompts and not self.num_kv_prompts:
            raise ValueError(
                f"num_feature_prompts={self.num_feature_prompts} weighs tokens against num_kv_prompts, which is 0: "
                "raise that, or leave it out."
            )
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name}={value!r}: must be one of {', '.join(allowed)}.")
        for name in ("textual_layers", "visual_layers"):
            setattr(self, name, _checked_layers(name, getattr(self, name)))
        if not self.init_std > 0:
            raise ValueError(f"init_std={self.init_std!r}: must be above 0; the default is 0.02.")
        self._check_words()

    def _check_words(self):
        if self.init not in WORD_INITS:
            if self.init_token_ids is not None:
                raise ValueError(
                    f"init_token_ids is read with init='vocabulary' or 'instruction' only, not {self.init!r}."
                )
            return
        ids = self.init_token_ids
        if not ids or not all(type(i) is int and i >= 0 for i in ids):
            raise ValueError(
                f"init_token_ids={ids!r}: init={self.init!r} needs a list of token ids; "
                "M2PTConfig.from_text(tokenizer, text) makes it from words."
            )
        if self.num_textual_prompts == 0:
            raise ValueError(f"num_textual_prompts=0 leaves no room for init={self.init!r}: raise it, or drop init.")
        if self.init == "instruction" and len(ids) != self.num_textual_prompts:
            raise ValueError(
                f"num_textual_prompts={self.num_textual_prompts}: init='instruction' takes one prompt a token and "
                f"init_token_ids has {len(ids)}; set num_textual_prompts={len(ids)}, or use M2PTConfig.from_text."
            )

    @classmethod
    def from_text(cls, tokenizer: Any, text: str, *, init: str = "instruction", **kwargs: Any) -> "M2PTConfig":
        """A configuration whose textual prompts start from words.

        Args:
            tokenizer: the backbone's tokenizer.
            text: the words.
            init: "instruction" (num_textual_prompts follows the number of tokens) or "vocabulary".
            **kwargs: the other fields.
        """
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if init == "instruction":
            kwargs.setdefault("num_textual_prompts", len(ids))
        return cls(init=init, init_token_ids=ids, init_text=text, **kwargs)


def _checked_layers(name: str, value: Any) -> str | list[int]:
    if isinstance(value, str):
        if value not in LAYER_GROUPS:
            raise ValueError(f"{name}={value!r}: must be one of {', '.join(LAYER_GROUPS)}, or a list of indices.")
        return value
    layers = list(value) if isinstance(value, (list, tuple)) else []
    if not layers or not all(type(i) is int and i >= 0 for i in layers) or len(set(layers)) < len(layers):
        raise ValueError(
            f"{name}={value!r}: must be one of {', '.join(LAYER_GROUPS)}, or a list of different indices from 0."
        )
    return sorted(layers)


def resolve_layers(name: str, value: str | list[int], depth: int) -> tuple[int, ...]:
    """Indices of the layers that `value` selects out of `depth`.

    Raises:
        ValueError: an index is `depth` or more, or nothing is selected.
    """
    middle = (depth + 1) // 2
    groups = {
        "all": range(depth),
        "first": range(min(depth, 1)),
        "last": range(max(depth - 1, 0), depth),
        "first_half": range(middle),
        "second_half": range(middle, depth),
    }
    layers = tuple(groups[value]) if isinstance(value, str) else tuple(value)
    if not layers:
        raise ValueError(f"{name}={value!r} selects none of this model's {depth} layers: choose 'all' or a list.")
    if layers[-1] >= depth:
        raise ValueError(f"{name}={value!r}: this model has {depth} layers that count, so indices go to {depth - 1}.")
    return layers
