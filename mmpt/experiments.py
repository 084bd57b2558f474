"""Experiments: a row of a table tuned on a fixed budget, then measured on the zero-shot suites; a file each.

All methods see the same questions in the same order under the same schedule. A method's learning rate is the best of
a small grid around its own, chosen on fresh questions of the tuning tasks, never on the suites.
"""

import json
import multiprocessing
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path

from mmpt.errors import InputError
from mmpt.files import make_folder, read_json, write_whole
from mmpt.methods import METHODS
from mmpt.rows import MAIN, Budget, Experiment, configuration, rows_of
from mmpt.suites import VERSION
from mmpt.tasks import TASKS


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
        dict with experiment, settings (of the `Experiment`), seed, factor (of the learning rates), budget, questions
        (`mmpt.suites.VERSION`), base_parameters (LLM and vision encoder: what the share of tuned ones is of), tuning
        (what `tune` says), tasks (what `evaluate(…, "tasks")` says of those that were tuned) and suites (what
        `evaluate(…, experiment.suites)` says).

    Raises:
        InputError: what is there was measured on another budget, with other questions or other settings.
    """
    file, settings = results / f"{experiment.name}-s{seed}.json", _plain(experiment)
    if result := _measured(file, budget):
        if result.get("settings", settings) | {"row": ""} != settings | {"row": ""}:  # older files do not tell
            raise InputError(f"{file} was measured with other settings; remove it, or give another --results.")
        return result
    factor = _best_factor(experiment, budget, results, work) if experiment.method else None
    result = {"experiment": experiment.name, "settings": settings, "seed": seed, "factor": factor}
    result |= _in_own_process(_measure, experiment, seed, factor, budget, work, experiment.suites)
    return _keep(file, result, budget)


def _measured(file, budget):
    """What `file` holds, None if there is none; InputError if it cannot stand beside what is measured now."""
    if not file.exists():
        return None
    result = read_json(file, "what `python -m mmpt table` wrote, or remove it")
    if not isinstance(result, dict) or result.get("budget") != _plain(budget):
        raise InputError(f"{file} was measured on another budget; remove it, or give another --results.")
    if result.get("questions") != VERSION:
        raise InputError(f"{file} was measured with other questions; remove it, or give another --results.")
    return result


def _keep(file, result, budget):
    result |= {"budget": _plain(budget), "questions": VERSION}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(result, indent=1) + "\n")
    return result


def _plain(value):
    return json.loads(json.dumps(asdict(value)))  # as a file gives it back


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
