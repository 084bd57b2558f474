"""Batches are made one step ahead, in parts of like length, and are the same whoever makes them."""

import threading
from types import SimpleNamespace

import pytest
import torch
from helpers import tiny_backbone

from mmpt.batches import batches, share
from mmpt.errors import InputError
from mmpt.train import TrainConfig

CONFIG = {"steps": 3, "pictures": 4, "turns": 2}


def rows(parts):
    """The tokens of every row, without padding."""
    return sorted(
        ids[mask == 1].tolist() for part in parts for ids, mask in zip(part["input_ids"], part["attention_mask"])
    )


def test_the_shares_of_a_step_are_the_step():
    backbone = tiny_backbone()
    (whole,), asked = share(backbone, TrainConfig("x", **CONFIG), (), 1, 0, 1)
    config = TrainConfig("x", **CONFIG, accumulate=2)
    shares = [share(backbone, config, (), 1, process, 2) for process in (0, 1)]
    parts = [part for mine, _ in shares for part in mine]
    assert len(parts) == 4 and rows(parts) == rows([whole]) and asked == sum(n for _, n in shares)
    # Part by part over the processes, and none is padded for a longer one's sake.
    lengths = [shares[process][0][part]["input_ids"].shape[1] for part in (0, 1) for process in (0, 1)]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]


def test_batches_go_on_where_they_are_begun():
    backbone, config = tiny_backbone(), TrainConfig("x", **CONFIG)
    whole = list(batches(backbone, config))
    later = list(batches(backbone, config, first=1))
    assert len(whole) == 3 and [n for _, n in later] == [n for _, n in whole[1:]]
    for (a,), (b,) in zip((parts for parts, _ in later), (parts for parts, _ in whole[1:])):
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_the_next_step_is_made_while_one_is_computed():
    made, second = [], threading.Event()

    def training_inputs(pictures, turns):
        made.append(threading.current_thread())
        if len(made) == 2:
            second.set()
        return {}

    feed = batches(SimpleNamespace(training_inputs=training_inputs), TrainConfig("x", **CONFIG))
    next(feed)
    assert second.wait(10) and threading.main_thread() not in made
    feed.close()
    assert len(made) == 2 and not made[0].is_alive()


def test_what_goes_wrong_is_raised_at_its_step():
    calls = []

    def training_inputs(pictures, turns):
        calls.append(1)
        if len(calls) == 2:
            raise InputError("The picture is broken.")
        return {}

    feed = batches(SimpleNamespace(training_inputs=training_inputs), TrainConfig("x", **CONFIG))
    next(feed)
    with pytest.raises(InputError, match="The picture is broken"):
        next(feed)
