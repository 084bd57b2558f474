"""What the tables are made of: a method tuned on a fixed budget, then measured on the zero-shot suites; a file each.

All methods see the same questions in the same order under the same schedule. A method's learning rate is the best of
a small grid around its own, chosen on fresh questions of the tuning tasks, never on the suites.
"""

import json
import multiprocessing
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path

from mmpt.errors import InputError
from mmpt.files import make_folder, write_whole
from mmpt.methods import METHODS
from mmpt.suites import VERSION
from mmpt.tasks import TASKS


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


def run_table(name: str, budget: Budget, results: Path, work: Path) -> list[tuple[Experiment, list[dict]]]:
    """All experiments of a table with what `run` gives for each seed; of an ablation with the first seed only.

    Seed by seed, so that a whole table is there early. The untouched model knows no seed.
    """
    experiments = rows_of(name)
    make_folder(results)  # told before the work rather than after
    seeds = budget.seeds if name in ("main", "quick") else budget.seeds[:1]
    rows = [(experiment, []) for experiment in experiments]
    jobs = [(row, seed) for seed in seeds for row in rows if row[0].method or seed == seeds[0]]
    for n, ((experiment, found), seed) in enumerate(jobs, 1):
        print(f"{n} of {len(jobs)}: {experiment.row}, seed {seed}", file=sys.stderr)
        found.append(run(experiment, seed, budget, results, work))
    return rows


def run(experiment: Experiment, seed: int, budget: Budget, results: Path, work: Path) -> dict:
    """The result of one experiment with one seed: read from `results` if it is there, else measured and put there.

    Args:
        results: folder for the JSON files.
        work: folder for checkpoints and adapters; a run that was interrupted goes on from there.

    Returns:
        dict with experiment, seed, factor (of the learning rates), budget, questions (`mmpt.suites.VERSION`),
        base_parameters (LLM and vision encoder: what the share of tuned ones is of), tuning (what `tune` says), tasks
        (what `evaluate(…, "tasks")` says of those that were tuned) and suites (what `evaluate(…, experiment.suites)`
        says).

    Raises:
        InputError: what is there was measured on another budget or with other questions.
    """
    file = results / f"{experiment.name}-s{seed}.json"
    if result := _measured(file, budget):
        return result
    factor = _best_factor(experiment, budget, results, work) if experiment.method else None
    result = {"experiment": experiment.name, "seed": seed, "factor": factor}
    result |= _in_own_process(_measure, experiment, seed, factor, budget, work, experiment.suites)
    return _keep(file, result, budget)


def _measured(file, budget):
    """What `file` holds, None if there is none; InputError if it cannot stand beside what is measured now."""
    if not file.exists():
        return None
    result = json.loads(file.read_text())
    if result["budget"] != _plain(budget):
        raise InputError(f"{file} was measured on another budget; remove it, or give another --results.")
    if result.get("questions") != VERSION:
        raise InputError(f"{file} was measured with other questions; remove it, or give another --results.")
    return result


def _keep(file, result, budget):
    result |= {"budget": _plain(budget), "questions": VERSION}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(result, indent=1) + "\n")
    return result


def _plain(budget):
    return json.loads(json.dumps(asdict(budget)))  # as a file gives it back


def _best_factor(experiment, budget, results, work):
    """The factor of the learning rates at which the method does best on fresh questions of the tuning tasks."""
    if len(budget.grid) == 1:
        return budget.grid[0]
    file = results / "grid" / f"{experiment.method}.json"
    tried = (_measured(file, budget) or {"tried": {}})["tried"]
    plain = next(row for row in MAIN if row.name == experiment.method)  # an ablation takes its method's
    for factor in budget.grid:
        if f"{factor:g}" not in tried:
            outcome = _in_own_process(_measure, plain, budget.seeds[0], factor, budget, work, None)
            tried[f"{factor:g}"] = outcome["tasks"]["figures"]["mean"]
            _keep(file, {"tried": tried}, budget)
    return max(budget.grid, key=lambda factor: tried[f"{factor:g}"])


def _in_own_process(function, *args):
    """So that its peak memory is its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *args).result()
        except BrokenProcessPool as error:
            raise InputError(
                "The experiment's process was killed, most likely for want of memory; close other programs and repeat "
                "the command: what is done is kept."
            ) from error


def _measure(experiment, seed, factor, budget, work, suites):
    import mmpt
    from mmpt.evaluate import evaluate

    backbone = METHODS[experiment.method].load("tiny") if experiment.method else mmpt.load("tiny")
    tuning = {}
    base_parameters = sum(p.numel() for name, p in backbone.model.named_parameters() if "projector" not in name)
    whole = experiment.method == "full"
    if experiment.method:
        folder = Path(work) / f"{experiment.name}-s{seed}-x{factor:g}"
        tuning = tune(backbone, experiment, seed, factor, budget, folder, "auto")
        # Tuned in 16 bits where those are quicker, it is asked in 32, as by anybody who loads it.
        backbone = mmpt.load(folder if whole else "tiny", adapter=None if whole else folder)
        backbone.name = "tiny"  # which a whole tuned model still is, wherever it lies
    each = budget.validation if "all" in experiment.tasks else budget.validation * len(TASKS) // len(experiment.tasks)
    result = {"base_parameters": base_parameters, "tuning": tuning}
    # Rates are chosen on the first questions, rows are measured on those that follow.
    result["tasks"] = evaluate(backbone, "tasks", limit=each, skip=each if suites else 0, tasks=experiment.tasks)
    if suites:
        result["suites"] = evaluate(backbone, suites, limit=budget.limit)
        if whole:
            shutil.rmtree(folder)  # half a gigabyte
    return result


def tune(
    backbone, experiment: Experiment, seed: int, factor: float, budget: Budget, folder: Path, precision=None
) -> dict:
    """Tune `backbone` as the experiment says; returns what `training.json` says, and losses, means of ten steps."""
    from mmpt.train import TrainConfig, train

    method = METHODS[experiment.method]
    pictures = budget.steps * budget.pictures
    config = TrainConfig(
        folder,
        steps=budget.steps,
        pictures=budget.pictures,
        turns=budget.turns,
        seed=seed,
        scenes=None if experiment.share == 1 else max(1, round(experiment.share * pictures)),
        tasks=None if experiment.tasks == ("all",) else experiment.tasks,
        precision=precision,
        resume=True,
        **{name: factor * rate for name, rate in method.rates.items()},
    )
    train(backbone, configuration(experiment, backbone.processor.tokenizer), config)
    losses = [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]
    return json.loads((folder / "training.json").read_text()) | {"losses": losses}


def configuration(experiment: Experiment, tokenizer):
    """What `mmpt.train.train` takes: the method's configuration with the experiment's fields."""
    plain, fields = METHODS[experiment.method].configure(tokenizer), dict(experiment.fields)
    if text := fields.get("init_text"):
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        fields |= {"init_token_ids": ids, "num_textual_prompts": len(ids)}
    return replace(plain, **fields) if fields else plain
