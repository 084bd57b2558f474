"""Suites → figures. "base": descriptions of fresh scenes; "tasks": the tuning tasks on fresh scenes."""

import platform
import random
import time
from collections import defaultdict

import torch
import transformers
from tqdm import tqdm

from mmpt.errors import InputError
from mmpt.scenes import SEEDS, make_scene
from mmpt.tasks import TASKS, correct
from mmpt.tiny.describe import QUESTION, compare

SUITES = {"base": 500, "tasks": 40}  # scenes; questions a task


def evaluate(backbone, suite: str, *, limit: int | None = None, batch: int = 16) -> dict:
    """Answer a suite's questions greedily and score them.

    Args:
        limit: number of scenes ("base") or of questions a task ("tasks"); by default `SUITES[suite]`.

    Returns:
        dict with suite, n (questions), seed (first scene), seconds, versions, figures (name → per cent) and, for
        "tasks", chance (name → per cent); figures["mean"] is the mean over tasks.

    Raises:
        InputError: unknown suite, or a limit below 1.
    """
    if suite not in SUITES:
        raise InputError(f"There is no suite {suite!r}; choose one of {', '.join(SUITES)}.")
    if limit is not None and limit < 1:
        raise InputError(f"--limit is {limit}; give a number of at least 1, or leave it out.")
    start = time.time()
    result = (_base if suite == "base" else _tasks)(backbone, limit or SUITES[suite], batch)
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


def _tasks(backbone, n, batch):
    seed = SEEDS["validation"]
    images, questions = [], []
    for number, task in enumerate(TASKS.values()):
        wanted, at = n, seed + (number << 20)
        while wanted:
            scene = make_scene(at)
            question = task.make(scene, random.Random(at))
            at += 1
            if question:
                images.append(scene.image)
                questions.append(question)
                wanted -= 1
    answers = _answers(backbone, images, [q.question for q in questions], batch, max_new_tokens=48)
    right = defaultdict(list)
    for question, answer in zip(questions, answers):
        right[question.task].append(correct(question, answer))
    figures = {name: sum(marks) / len(marks) for name, marks in right.items()}
    chance = {name: task.chance for name, task in TASKS.items()}
    for values in (figures, chance):
        values["mean"] = sum(values.values()) / len(values)
    return {"n": len(questions), "seed": seed, "figures": _per_cent(figures), "chance": _per_cent(chance)}


def _answers(backbone, images, questions, batch, max_new_tokens):
    # Questions of like length go together, so that little is padded.
    order = sorted(range(len(questions)), key=lambda i: len(questions[i]))
    answers = [""] * len(questions)
    for start in tqdm(range(0, len(order), batch), desc="answering", unit="batch"):
        rows = order[start : start + batch]
        found = backbone.answer([images[i] for i in rows], [questions[i] for i in rows], max_new_tokens)
        for i, answer in zip(rows, found):
            answers[i] = answer
    return answers


def _per_cent(figures):
    return {name: round(100 * value, 1) for name, value in figures.items()}


def render(result: dict) -> str:
    """A result as a table for the terminal."""
    chance = result.get("chance", {})
    lines = [f"{result['suite']} on {result['backbone']}: {result['n']} questions, first seed {result['seed']}"]
    for name, value in result["figures"].items():
        lines.append(f"  {name:<32}{value:6.1f} %" + (f"   chance {chance[name]:5.1f} %" if name in chance else ""))
    lines.append(f"  {result['seconds']} s")
    return "\n".join(lines)
