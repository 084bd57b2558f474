"""Suites → figures: "base" (descriptions), "tasks" (the tuning tasks on fresh scenes), the zero-shot suites in
miniature, and the benchmarks themselves (`mmpt.benchmarks`)."""

import platform
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import compress
from pathlib import Path

import torch
import transformers
from tqdm.auto import tqdm

from mmpt.benchmarks import BENCHMARKS, windows
from mmpt.errors import InputError
from mmpt.files import tell_broken
from mmpt.likelihood import likeliest
from mmpt.reading import read
from mmpt.scenes import SEEDS, make_scene
from mmpt.scoring import Answered, score
from mmpt.suites import SUITES, TOGETHER
from mmpt.tasks import TASKS, check_tasks, correct, questions_of
from mmpt.tiny.describe import QUESTION, compare

OWN = {"base": 500, "tasks": 40}  # scenes; questions a task


def evaluate(
    backbone,
    suite: str,
    *,
    limit: int | None = None,
    batch: int = 16,
    data: str | Path | None = None,
    tasks: Iterable[str] = ("all",),
    skip: int = 0,
) -> dict:
    """Answer a suite's questions greedily and score them.

    Args:
        suite: "base", "tasks", one of `mmpt.suites.SUITES`, a name in `TOGETHER` for several of those ("mini": the
            columns of M²PT's table, "mpt4lm": of MPT4LM's), or one of `mmpt.benchmarks.BENCHMARKS`.
        limit: number of scenes ("base"), of questions a task ("tasks"; by default `OWN[suite]`), or of questions of
            each subtask or split of a zero-shot suite (by default all).
        data: folder with a copy of the benchmark; by default it comes from the hub.
        tasks: of "tasks": which of `mmpt.tasks.TASKS`, or "all".
        skip: of "tasks": how many questions of each task to leave out first, such as those that a rate was chosen by.

    Returns:
        dict with suite, backbone, n (questions), figures (name → per cent; MME's are sums), seconds, torch,
        transformers and machine; of what is drawn also seed (of the first picture); of all but "base" also chance.
        "tasks": also skip; figures["mean"] is the mean over tasks. Zero-shot suites: what `mmpt.scoring.score`
        returns, for the generated answers, and for closed sets once more under "choice", for the option of greatest
        log-probability; "mini" and "mpt4lm": `suites` (name → that) and as figures the chief figure of each, with
        their average.
        Benchmarks: also `source`, `broken` (the number of rows that could not be used) and `problems` (the first
        hundred of them, in words).

    Raises:
        InputError: unknown suite or task, tasks of another suite, a limit below 1, data of a suite that is drawn, or
            data that cannot be used.
    """
    known = (*OWN, *TOGETHER, *SUITES, *BENCHMARKS)
    if suite not in known:
        raise InputError(f"There is no suite {suite!r}; choose one of {', '.join(known)}.")
    if data is not None and suite not in BENCHMARKS:
        raise InputError(f"The suite {suite!r} is drawn; leave --data out, or choose one of {', '.join(BENCHMARKS)}.")
    tasks = check_tasks(tasks)
    if suite != "tasks" and tasks != ("all",):
        raise InputError(f"The suite {suite!r} has no tasks to choose from; leave --tasks out, or give --suite tasks.")
    if limit is not None and limit < 1:
        raise InputError(f"--limit is {limit}; give a number of at least 1, or leave it out.")
    start = time.time()
    if suite in BENCHMARKS:
        result = benchmark(backbone, suite, data, limit, batch)
    elif suite == "base":
        result = _base(backbone, limit or OWN[suite], batch)
    elif suite == "tasks":
        result = _tasks(backbone, tasks, limit or OWN[suite], skip, batch)
    else:
        result = (_together if suite in TOGETHER else zero_shot)(backbone, suite, limit, batch)
    return (
        {"suite": suite, "backbone": backbone.name}
        | result
        | {
            "seconds": round(time.time() - start, 1),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {backbone.model.device.type}",
        }
    )


def _base(backbone, n, batch):
    seed = SEEDS["base_test"]
    scenes = [make_scene(seed + i) for i in range(n)]
    answers = _answers(backbone, [s.image for s in scenes], [QUESTION] * n, batch, max_new_tokens=96)
    totals, shown = defaultdict(float), defaultdict(int)
    for scene, answer in zip(scenes, answers):
        for name, value in compare(scene, answer).items():
            totals[name] += value
            shown[name] += 1
    figures = {
        "objects named": totals["named"] / totals["objects"],
        "names said that are not there": totals["false"] / max(1, totals["said"]),
    } | {name: totals[name] / shown[name] for name in ("background", "count", "place", "size", "digit", "word")
         if shown[name]}  # fmt: skip
    return {"n": n, "seed": seed, "figures": _per_cent(figures)}


def _tasks(backbone, tasks, n, skip, batch):
    seed, names = SEEDS["validation"], [name for name in TASKS if name in tasks or "all" in tasks]
    first = {name: seed + (number << 20) for number, name in enumerate(TASKS)}
    asked = [pair for name in names for pair in questions_of(name, skip + n, first[name])[skip:]]
    questions = [question for _, question in asked]
    answers = _answers(
        backbone, [scene.image for scene, _ in asked], [q.question for q in questions], batch, max_new_tokens=48
    )
    right = defaultdict(list)
    for question, answer in zip(questions, answers):
        right[question.task].append(correct(question, answer))
    figures = {name: sum(marks) / len(marks) for name, marks in right.items()}
    chance = {name: TASKS[name].chance for name in names}
    for values in (figures, chance):
        values["mean"] = sum(values.values()) / len(values)
    figures, chance = _per_cent(figures), _per_cent(chance)
    return {"n": len(questions), "seed": seed, "skip": skip, "figures": figures, "chance": chance}


def zero_shot(backbone, name: str, limit: int | None = None, batch: int = 16) -> dict:
    """One zero-shot suite, scored; see `evaluate`."""
    suite, questions = SUITES[name], _limited(SUITES[name].questions(), limit)
    pictures = {q.seed: suite.picture(q.seed) for q in questions}
    found = _choices_and_answers(backbone, questions, pictures, batch)
    return _scored(suite.metric, questions, found) | {"seed": min(q.seed for q in questions)}


def benchmark(backbone, name: str, data: str | Path | None = None, limit: int | None = None, batch: int = 16) -> dict:
    """One benchmark itself, scored; see `evaluate`. Two batches of pictures are in memory at a time."""
    bench, problems, questions, found = BENCHMARKS[name], [], [], []
    source = bench.repository if data is None else str(data)
    rows = bench.usable(bench.rows(data), limit, problems)
    with tqdm(desc="answering", unit="question", delay=0.01) as progress:  # not before there is one
        for some, pictures in windows(rows, batch, problems):
            questions += some
            found += _choices_and_answers(backbone, some, pictures, batch, progress)
    if bench.metric == "mme":  # pairs, of which one question may be broken
        pairs = Counter((q.group, q.seed) for q in questions)
        whole = [pairs[q.group, q.seed] == 2 for q in questions]
        problems += [f"{q.id}: its fellow on the picture is missing." for q, ok in zip(questions, whole) if not ok]
        questions, found = list(compress(questions, whole)), list(compress(found, whole))
    if not questions:
        raise InputError(f"Nothing of {source} can be used. {problems[0] if problems else 'It is empty.'}")
    tell_broken(problems)
    told = {"source": source, "broken": len(problems), "problems": problems[:100]}
    return told | _scored(bench.metric, questions, found)


def _choices_and_answers(backbone, questions, pictures, batch, progress=None):
    """For each question its likeliest option, None where the set is open, and the generated answer."""

    def answer(rows):
        some = [questions[i] for i in rows]
        reading = read(backbone, [pictures[q.seed] for q in some], [q.question for q in some])
        chosen = likeliest(reading, [q.options for q in some]) if some[0].options else [None] * len(some)
        return zip(chosen, reading.answer(max_new_tokens=16))

    # Questions on one picture go together, so that it is read once; then those of like length.
    shared = Counter(q.seed for q in questions)
    order = [(str(q.seed) if shared[q.seed] > 1 else "", len(q.question)) for q in questions]
    return _in_batches(answer, order, batch, progress)


def _scored(metric, questions, found):
    def scored(predictions):
        rows = (Answered(q.id, p, q.answers, q.group, str(q.seed), q.entailed) for q, p in zip(questions, predictions))
        return score(metric, list(rows))

    chosen, answers = zip(*found)
    return scored(answers) | ({"choice": scored(chosen)} if questions[0].options else {})


def _together(backbone, group, limit, batch):
    names = TOGETHER[group]
    suites = {name: zero_shot(backbone, name, limit, batch) for name in names}
    chief = {name: next(iter(result["figures"])) for name, result in suites.items()}
    figures, chance = ({name: suites[name][part][chief[name]] for name in names} for part in ("figures", "chance"))
    averaged = [name for name in names if name != "mini-mme"]  # as the paper does: all columns but MME
    for values in (figures, chance):
        values["average"] = sum(values[name] for name in averaged) / len(averaged)
    n = sum(result["n"] for result in suites.values())
    return {"n": n, "seed": SEEDS["suites"], "figures": figures, "chance": chance, "suites": suites}


def _limited(questions, limit):
    """The first `limit` questions of each subtask or split, rounded up to pairs."""
    groups = defaultdict(list)
    for question in questions:
        groups[question.group].append(question)
    return [q for group in groups.values() for q in (group[: limit + limit % 2] if limit else group)]


def _answers(backbone, images, questions, batch, max_new_tokens):
    return _in_batches(
        lambda rows: backbone.answer([images[i] for i in rows], [questions[i] for i in rows], max_new_tokens),
        [len(question) for question in questions],  # of like length together, so that little is padded
        batch,
    )


def _in_batches(answer, keys, batch, progress=None):
    """What `answer(rows)` gives for all rows, which are taken in the order of `keys`."""
    order = sorted(range(len(keys)), key=keys.__getitem__)
    found = [None] * len(keys)
    progress = tqdm(total=len(keys), desc="answering", unit="question") if progress is None else progress
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        for i, value in zip(rows, answer(rows)):
            found[i] = value
        progress.update(len(rows))
    return found


def _per_cent(figures):
    return {name: round(100 * value, 1) for name, value in figures.items()}


def render(result: dict) -> str:
    """A result as a table for the terminal: what was generated; of closed sets also what is likeliest."""
    chance, likeliest, suites = result.get("chance", {}), result.get("choice", {}), result.get("suites", {})
    origin = f"first seed {result['seed']}"
    if "source" in result:
        origin = f"from {result['source']}, {result['broken']} row(s) broken"
    lines = [f"{result['suite']} on {result['backbone']}: {result['n']} questions, {origin}"]
    if "parser" in result:
        lines.append(f"  parser {result['parser']}, {result['unparsed']:.1f} % cannot be parsed")
    for name, value in result["figures"].items():
        part = suites.get(name, {})
        unit = "  " if "mme" in (_metric(result["suite"]), _metric(name)) else " %"  # MME's are sums
        parts = [f"  {name:<32}{value:6.1f}{unit}"]
        if name in chance:
            parts.append(f"chance {chance[name]:5.1f}{unit}")
        by_likelihood = likeliest.get("figures", {}).get(name)
        if "choice" in part:
            by_likelihood = next(iter(part["choice"]["figures"].values()))
        if by_likelihood is not None:
            parts.append(f"likeliest {by_likelihood:5.1f}{unit}")
        if part:
            parts.append(f"{part['unparsed']:.1f} % cannot be parsed")
        lines.append("   ".join(parts).rstrip())
    lines.append(f"  {result['seconds']} s")
    return "\n".join(lines)


def _metric(suite):
    known = SUITES.get(suite) or BENCHMARKS.get(suite)
    return known and known.metric
