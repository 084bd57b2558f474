"""A learner's function against a solution, on fresh inputs, with one sentence on what differs."""

import copy
import html
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmpt.errors import InputError

TRIALS = 20


@dataclass(frozen=True)
class Exercise:
    """`inputs(rng)` draws arguments; `slips` are wrong functions that people write, each with what to tell them.

    Arguments in `always` are tried at every check: those that a draw would often miss.
    """

    solution: Callable
    inputs: Callable[[random.Random], tuple]
    slips: tuple[tuple[Callable, str], ...] = ()
    always: tuple[tuple, ...] = ()


EXERCISES: dict[str, Exercise] = {}


def exercise(name: str, inputs: Callable[[random.Random], tuple], *slips: tuple[Callable, str], always=()):
    """Register a function as the solution of the exercise `name`."""

    def register(solution):
        EXERCISES[name] = Exercise(solution, inputs, slips, always)
        return solution

    return register


@dataclass(frozen=True)
class Verdict:
    """What `check` found; a notebook shows it as a coloured box."""

    passed: bool
    message: str

    def __repr__(self):
        return f"{'✓' if self.passed else '✗'} {self.message}"

    def _repr_html_(self):
        colour, tint = ("#15803d", "#f0fdf4") if self.passed else ("#b45309", "#fffbeb")
        style = f"border-left: 4px solid {colour}; background: {tint}; color: #1c1917; padding: .5em .8em; margin: 0"
        return f'<p style="{style}"><b style="color: {colour}">{self!r:.1}</b> {html.escape(self.message)}</p>'


def check(name: str, function: Callable, seed: int | None = None) -> Verdict:
    """Compare `function` with the solution of the exercise `name` on fresh inputs.

    Args:
        seed: fixes the inputs; by default they are new at each call.

    Raises:
        InputError: there is no such exercise.
    """
    if name not in EXERCISES:
        raise InputError(f"There is no exercise {name!r}; choose one of {', '.join(EXERCISES)}.")
    task, rng = EXERCISES[name], random.Random(seed)
    cases = [*task.always, *(task.inputs(rng) for _ in range(TRIALS))]
    for arguments in cases:
        expected = task.solution(*copy.deepcopy(arguments))
        try:
            problem = difference(expected, function(*copy.deepcopy(arguments)))
        except NotImplementedError:
            return Verdict(False, f"{name}: not written yet. Replace the line that raises NotImplementedError.")
        except Exception as error:  # whatever a learner's code can raise is theirs to read
            problem = f"it raised {type(error).__name__}: {error}"
        if problem:
            advice = next((advice for slip, advice in task.slips if _alike(slip, function, cases)), None)
            return Verdict(False, f"{name}: {advice or f'given {_listed(arguments)}, {problem}.'}")
    return Verdict(True, f"{name}: right, on {TRIALS} fresh inputs.")


def _alike(slip, function, cases):
    try:
        return all(difference(slip(*copy.deepcopy(c)), function(*copy.deepcopy(c))) is None for c in cases)
    except Exception:  # the learner's
        return False


def difference(expected: Any, got: Any) -> str | None:
    """What is wrong with `got`, or None. Numbers may differ by a relative 1e-4."""
    if got is None:
        return "it returned None; is there a return missing?"
    if isinstance(expected, Tensor):
        return _tensor_difference(expected, got)
    if isinstance(expected, tuple):
        if not isinstance(got, (tuple, list)) or len(got) != len(expected):
            return f"it should return {len(expected)} things, but returned {_short(got)}"
        parts = ((i, difference(e, g)) for i, (e, g) in enumerate(zip(expected, got)))
        return next((f"in part {i} of what is returned, {problem}" for i, problem in parts if problem), None)
    if isinstance(expected, set):
        if not isinstance(got, (set, frozenset)):
            return f"it should return a set, but returned {_short(got)}"
        missing, extra = sorted(expected - got, key=str), sorted(got - expected, key=str)
        if missing:
            return f"{missing[0]!r} is missing from what it returned"
        return f"{extra[0]!r} should not be in what it returned" if extra else None
    if isinstance(got, np.generic) or isinstance(got, Tensor) and got.numel() == 1:
        got = got.item()
    if isinstance(expected, float) and isinstance(got, (int, float)):
        right = abs(got - expected) <= 1e-6 + 1e-4 * abs(expected)
    else:
        right = type(got) is type(expected) and got == expected
    return None if right else f"it should return {_short(expected)}, but returned {_short(got)}"


def _tensor_difference(expected, got):
    if not isinstance(got, Tensor):
        return f"it should return a tensor, but returned {_short(got)}"
    if got.shape != expected.shape:
        return f"it should return a tensor of shape {tuple(expected.shape)}, but returned {tuple(got.shape)}"
    if got.is_floating_point() != expected.is_floating_point():
        return f"it should return {expected.dtype}, but returned {got.dtype}"
    wrong = ~torch.isclose(got.to(expected), expected, rtol=1e-4, atol=1e-5)
    if not wrong.any():
        return None
    at = tuple(wrong.nonzero()[0].tolist())
    where = f"the value at {list(at)}" if at else "the value"
    share = f" ({int(wrong.sum())} of {wrong.numel()} values differ)" if at else ""
    return f"{where} should be {expected[at].item():.4g}, but is {got[at].item():.4g}{share}"


def _listed(arguments):
    return ", ".join(map(_short, arguments))


def _short(value):
    if isinstance(value, Tensor) and value.numel() > 1:
        return f"a tensor of shape {tuple(value.shape)}"
    text = f"{value.item():.4g}" if isinstance(value, Tensor) else repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def tensor(rng: random.Random, *shape: int) -> Tensor:
    """Normally distributed numbers that follow from `rng`."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(rng.getrandbits(32)))
