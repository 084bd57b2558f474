"""Exercises of notebook 2: writing into the slots, and how much attention slots take away."""

import torch
from torch import Tensor

from mmpt.exercises.check import exercise, tensor


def _slots(rng):
    P = rng.randint(1, 3)
    return tensor(rng, 2, P + rng.randint(3, 5), 4), tensor(rng, P, 4), rng.choice(("replace", "carry"))


def _at_the_front(hidden, prompts, update):
    P = len(prompts)
    flipped = torch.cat([hidden[:, P:], hidden[:, :P]], 1)
    written = write_slots(flipped, prompts, update)
    return torch.cat([written[:, -P:], written[:, :-P]], 1)


def _appended(hidden, prompts, update):
    return torch.cat([hidden, prompts.expand(len(hidden), -1, -1)], 1)


def _always(update):
    return lambda hidden, prompts, _: write_slots(hidden, prompts, update)


@exercise(
    "write_slots",
    _slots,
    (_at_the_front, "the slots are the last P positions; this writes into the first."),
    (_appended, "the slots are there already: overwrite the last P positions, do not add more."),
    (_always("replace"), 'under "carry" the prompts are added to what the slots hold.'),
    (_always("carry"), 'under "replace" nothing of what the slots held is left.'),
)
def write_slots(hidden: Tensor, prompts: Tensor, update: str) -> Tensor:
    P = len(prompts)
    old = hidden[:, -P:]
    new = prompts + old if update == "carry" else prompts.expand_as(old)
    return torch.cat([hidden[:, :-P], new], 1)


@exercise(
    "attention_left",
    lambda rng: (2 * tensor(rng, rng.randint(3, 8)), 2 * tensor(rng, rng.randint(1, 6))),
    (lambda scores, slots: len(scores) / (len(scores) + len(slots)),
     "this counts patches and slots; attention goes by the exponentials of their scores."),
    (lambda scores, slots: 1 - attention_left(scores, slots),
     "this is the share of the slots; the patches' is asked."),
)  # fmt: skip
def attention_left(scores: Tensor, slot_scores: Tensor) -> float:
    weights = torch.cat([scores, slot_scores]).softmax(0)
    return weights[: len(scores)].sum().item()
