"""The batches of a run's steps, each made by a thread while the step before it is computed.

So decoding pictures, drawing scenes and tokenizing do not hold up a GPU. What a step sees follows from the run's seed
and the step's number alone, whoever makes it and when.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from mmpt.backbones import Backbone
from mmpt.data import Example, conversation


def batches(
    backbone: Backbone,
    config,
    examples: Sequence[Example] = (),
    first: int = 0,
    process: int = 0,
    processes: int = 1,
) -> Iterator[tuple[list[dict[str, Tensor]], int]]:
    """For each step of `config` (a `mmpt.train.TrainConfig`) from `first` on what `share` gives.

    What goes wrong with a step's pictures is raised at that step.
    """
    with ThreadPoolExecutor(1) as thread:  # one, since a fast tokenizer must not be used by two at once
        ahead = thread.submit(share, backbone, config, examples, first, process, processes)
        for step in range(first, config.steps):
            now = ahead.result()
            if step + 1 < config.steps:
                ahead = thread.submit(share, backbone, config, examples, step + 1, process, processes)
            yield now


def share(
    backbone: Backbone, config, examples: Sequence[Example], step: int, process: int, processes: int
) -> tuple[list[dict[str, Tensor]], int]:
    """A batch for each of a step's accumulated parts (`Backbone.training_inputs`), and the number of their questions.

    The step's pictures are shared out by the length of what is said about them, so that parts need little padding.
    """
    rows = [conversation(config, step, i, examples) for i in range(config.pictures)]
    shares = config.accumulate * processes
    if shares > 1:
        rows.sort(key=lambda row: sum(len(text) for turn in row[1] for text in turn))
    size, parts, asked = config.pictures // shares, [], 0
    for part in range(config.accumulate):
        at = (part * processes + process) * size
        pictures, turns = zip(*rows[at : at + size])
        parts.append(backbone.training_inputs([picture.image for picture in pictures], turns))
        asked += sum(map(len, turns))
    return parts, asked
