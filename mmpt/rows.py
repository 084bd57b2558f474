"""The rows of the tables: which method, where it departs from `METHODS`, and the budget that all share."""

from dataclasses import dataclass, field, replace
from itertools import product

from mmpt.errors import InputError
from mmpt.methods import METHODS


@dataclass(frozen=True)
class Budget:
    """What every experiment of a table may use.

    Attributes:
        name: folder of its results.
        steps, pictures, turns: of `TrainConfig`.
        seeds: of the main rows; ablations take the first.
        grid: factors of a method's learning rates that are tried; one factor: no trial.
        limit: questions of each subtask or split of a suite; None: all.
        validation: fresh questions of each tuning task, by which the grid is judged, and others by which a row is
            measured; of fewer tasks as many in all.
    """

    name: str
    steps: int
    pictures: int
    turns: int
    seeds: tuple[int, ...]
    grid: tuple[float, ...]
    limit: int | None
    validation: int


BUDGETS = {
    "full": Budget("full", 150, 4, 4, (0, 1, 2), (1 / 3, 1.0, 3.0), 100, 8),
    "quick": Budget("quick", 40, 4, 4, (0,), (1.0,), 20, 8),
    "mpt4lm": Budget("mpt4lm", 240, 8, 4, (0,), (1.0,), 20, 8),  # it begins to look after some 60 steps of 8
}


@dataclass(frozen=True)
class Experiment:
    """One row: a method, and where it departs from `METHODS` or from the budget.

    Attributes:
        name: of its file.
        row: what the table calls it.
        method: a name in `METHODS`; None: the untouched model.
        fields: of the method's configuration, changed; `init_text` brings its tokens with it, a prompt each.
        share: of the budget's pictures that are different ones; the others repeat them.
        suites: what it is measured on, a name in `mmpt.suites.TOGETHER`.
        tasks: what it is tuned on, and measured on too with fresh questions.
    """

    name: str
    row: str
    method: str | None
    fields: dict = field(default_factory=dict)
    share: float = 1.0
    suites: str = "mini"
    tasks: tuple[str, ...] = ("all",)


ALIGN = Experiment("align", "Align (untouched)", None)
MAIN = (ALIGN, *(Experiment(name, method.row, name) for name, method in METHODS.items()))
QUICK = tuple(experiment for experiment in MAIN if experiment.name in ("align", "m2pt", "lora"))

_NO_VISUAL = {"num_visual_prompts": 0, "tune_projector": False}
_NO_WORDS = {"init_token_ids": None, "init_text": None}
_NO_TEXTUAL = {"num_textual_prompts": 0, "init": "xavier_uniform"} | _NO_WORDS
_ONE_KIND = ("background",)  # that MPT4LM learns to look for within minutes
_TURNS = {  # written instructions of as many tokens, five of which frame the turn
    tokens: {"init_text": f"<|im_start|>system\n{words}<|im_end|>\n"}
    for tokens, words in {
        5: "",
        10: "Answer in a few words",
        20: "Answer the question about the picture in a few words, without a sentence.",
    }.items()
}


def _variants(group, rows):
    """(label, changed fields) → experiments; what changes nothing is M²PT itself and shares its file."""
    return tuple(
        Experiment(f"{group}-{label.replace(' ', '-')}" if fields else "m2pt", label, "m2pt", fields)
        for label, fields in rows
    )


ABLATIONS: dict[str, tuple[Experiment, ...]] = {
    "components": _variants(
        "components",
        [
            ("all", {}),
            ("no visual prompts", {"num_visual_prompts": 0}),
            ("no textual prompts", _NO_TEXTUAL),
            ("textual prompts alone", _NO_VISUAL),
            ("no interaction", {"visual_readout": "none", "tune_projector": False}),
            ("parameter read out", {"visual_readout": "parameter"}),
        ],
    ),
    "lengths": _variants(
        "lengths",
        [
            (f"{textual} textual {visual} visual", words | {"num_visual_prompts": visual})
            for (textual, words), visual in product(({0: _NO_TEXTUAL} | _TURNS).items(), (0, 5, 10, 20))
        ],
    ),
    "location": _variants(
        "location",
        [("all layers", {})]
        + [
            (f"{where} layers".replace("_", " "), {"textual_layers": where, "visual_layers": where})
            for where in ("first", "last", "first_half", "second_half")
        ],
    ),
    "initialisation": _variants(
        "initialisation",
        [("instruction", {}), ("vocabulary", {"init": "vocabulary"})]
        + [(init.replace("_", " "), _NO_WORDS | {"init": init}) for init in ("xavier_uniform", "normal")],
    ),
    "data": (
        *(
            Experiment(f"data-{share:g}", f"{100 * share:g} % of the pictures", "m2pt", share=share)
            for share in (0.03, 0.1, 0.3)
        ),
        Experiment("m2pt", "100 % of the pictures", "m2pt"),
    ),
    "order": (
        Experiment("m2pt", "first, replace", "m2pt"),
        Experiment("order-first-carry", "first, carry", "m2pt", {"textual_update": "carry"}),
        Experiment("order-after-replace", "before instruction, replace", "m2pt-carry", {"textual_update": "replace"}),
        Experiment("m2pt-carry", "before instruction, carry", "m2pt-carry"),
    ),
    "mpt4lm": tuple(
        Experiment(f"mpt4lm-{label.replace(' ', '-')}", label, "mpt4lm", fields, suites="mpt4lm", tasks=_ONE_KIND)
        for label, fields in [
            ("all", {}),
            ("no cross-attention", {"num_visual_prompts": 0}),
            ("question not read", {"condition_on_question": False}),
            ("no instruction", _NO_WORDS | {"num_instruction_tokens": 0}),
            ("no adapters", {"adapter_rank": 0}),
            *((f"rank {rank}", {"adapter_rank": rank}) for rank in (2, 32)),
            *((f"{m} visual prompts", {"num_visual_prompts": m}) for m in (4, 32)),
        ]
    )
    + (Experiment("mpt4lm-m2pt", "M²PT, after stage 1", "m2pt", suites="mpt4lm", tasks=_ONE_KIND),),
}


def rows_of(table: str) -> tuple[Experiment, ...]:
    """The experiments of "main", "quick" or an ablation.

    Raises:
        InputError: no such table.
    """
    tables = {"main": MAIN, "quick": QUICK} | ABLATIONS
    if table not in tables:
        raise InputError(f"There is no table {table!r}; choose one of {', '.join(tables)}.")
    return tables[table]


def configuration(experiment: Experiment, tokenizer):
    """What `mmpt.train.train` takes: the method's configuration with the experiment's fields."""
    plain, fields = METHODS[experiment.method].configure(tokenizer), dict(experiment.fields)
    if text := fields.get("init_text"):
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        fields |= {"init_token_ids": ids, "num_textual_prompts": len(ids)}
    return replace(plain, **fields) if fields else plain
