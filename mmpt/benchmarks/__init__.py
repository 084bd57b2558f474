"""The benchmarks themselves, from a copy in their own format or from the hub, as questions for `mmpt.evaluate`.

A copy is a folder as the data set's authors give it out, or one of parquet files as on the hub.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, pairwise
from pathlib import Path

from PIL import Image

from mmpt.benchmarks import classes, statements, vqa, yes_no
from mmpt.benchmarks.rows import Row, from_hub, local_parquet
from mmpt.errors import InputError
from mmpt.scoring import METRICS, Answered, Metric, accuracy, check, one_of
from mmpt.suites import DIGITS, SuiteQuestion

WORKERS = 4  # threads that read pictures
Rows = Iterator[Row | InputError]


@dataclass(frozen=True)
class Benchmark:
    """One of them.

    Attributes:
        metric: a name in `mmpt.scoring.METRICS`, or its own.
        own: rows of a folder in the data set's own format.
        repository: on the hub.
        shared: rows of that repository, given `(configuration, split) → its rows`.
        wanted: what a folder in the data set's own format holds, in words.
    """

    metric: str | Metric
    own: Callable[[Path], Rows]
    repository: str
    shared: Callable[[Callable], Rows]
    wanted: str

    def rows(self, data: str | Path | None = None) -> Rows:
        """All rows of the folder `data`, or of the hub; an InputError in place of a broken one.

        Raises:
            InputError: there is no such folder, it lacks a file, or the hub cannot be reached.
        """
        if data is None:
            return self.shared(partial(from_hub, self.repository))
        data = Path(data)
        if not data.is_dir():
            raise InputError(f"There is no folder {data}; give one with {self.wanted}.")
        if next(data.rglob("*.parquet"), None):
            return self.shared(partial(local_parquet, data))
        return self.own(data)

    def usable(self, rows: Rows, limit: int | None, problems: list[str]) -> Iterator[Row]:
        """Those of `rows` that can be asked and scored; a sentence on each other one joins `problems`.

        `limit` is the number of questions of each subtask or split, rounded up to pairs.
        """
        metric = METRICS[self.metric] if isinstance(self.metric, str) else self.metric
        seen, taken, most = set(), Counter(), limit and limit + limit % 2
        for row in rows:
            if isinstance(row, InputError):
                problems.append(str(row))
                continue
            q = row.question
            try:
                check(metric, Answered(q.id, "", q.answers, q.group))
                if q.id in seen:
                    raise InputError(f"The id {q.id!r} comes twice.")
            except InputError as error:
                problems.append(str(error))
                continue
            seen.add(q.id)
            if most and taken[q.group] >= most:
                continue
            taken[q.group] += 1
            yield row
            if most and all(taken[group] >= most for group in metric.groups or ("",)):
                return


BENCHMARKS = {
    "mme": Benchmark("mme", yes_no.mme, "lmms-lab/MME", yes_no.mme_hub, yes_no.MME_WANTED),
    "pope": Benchmark("pope", yes_no.pope, "lmms-lab/POPE", yes_no.pope_hub, yes_no.POPE_WANTED),
    "vsr": Benchmark(
        "vsr", statements.vsr, "cambridgeltl/vsr_zeroshot", statements.vsr_hub, statements.VSR_WANTED
    ),
    "snli-ve": Benchmark(
        "snli_ve", statements.snli_ve, "Multimodal-Fatima/SNLI-VE_test", statements.snli_ve_hub,
        statements.SNLI_VE_WANTED,
    ),
    "cifar-10": Benchmark(
        Metric(accuracy, {"strict": one_of(*classes.CIFAR_10)}, classes.CIFAR_10), classes.cifar_10,
        "uoft-cs/cifar10", classes.cifar_10_hub, classes.CIFAR_10_WANTED,
    ),
    "cifar-100": Benchmark(
        Metric(accuracy, {"strict": one_of(*classes.CIFAR_100)}, classes.CIFAR_100), classes.cifar_100,
        "uoft-cs/cifar100", classes.cifar_100_hub, classes.CIFAR_100_WANTED,
    ),
    "mnist": Benchmark(
        Metric(accuracy, {"strict": one_of(*DIGITS)}, DIGITS), classes.mnist,
        "ylecun/mnist", classes.mnist_hub, classes.MNIST_WANTED,
    ),
    "textvqa": Benchmark("vqa", vqa.textvqa, "lmms-lab/textvqa", vqa.textvqa_hub, vqa.TEXTVQA_WANTED),
    "vqav2": Benchmark("vqa", vqa.vqav2, "lmms-lab/VQAv2", vqa.vqav2_hub, vqa.VQAV2_WANTED),
    "gqa": Benchmark("gqa", vqa.gqa, "lmms-lab/GQA", vqa.gqa_hub, vqa.GQA_WANTED),
}  # fmt: skip


def windows(
    rows: Iterator[Row], size: int, problems: list[str]
) -> Iterator[tuple[list[SuiteQuestion], dict[str, Image.Image]]]:
    """`size` questions at a time with their pictures by name; threads read those of the next meanwhile.

    A question whose picture is broken is left out, and a sentence on it joins `problems`.
    """
    with ThreadPoolExecutor(WORKERS) as pool:
        for (questions, reading), _ in pairwise(chain(_begun(rows, size, pool), [None])):
            pictures, whole = {}, []
            for q in questions:
                try:
                    pictures[q.seed] = reading[q.seed].result()
                    whole.append(q)
                except InputError as error:
                    problems.append(f"{q.id}: {error}")
            if whole:
                yield whole, pictures


def _begun(rows, size, pool) -> Iterator[tuple[list[SuiteQuestion], dict[str, Future]]]:
    while some := list(islice(rows, size)):
        reading = {row.question.seed: row.picture for row in some}
        yield [row.question for row in some], {name: pool.submit(read) for name, read in reading.items()}
