"""Scores as the field computes them: MME, POPE, VQA, GQA, VSR, SNLI-VE and plain accuracy.

An answer that the parser cannot read is wrong and is counted as unparsed. Predictions belong to questions by id.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from mmpt.bootstrap import bootstrap
from mmpt.errors import InputError
from mmpt.vqa import normalise, soft_accuracy

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
SPLITS = ("random", "popular", "adversarial")


@dataclass(frozen=True)
class Answered:
    """A question's true answers and what a model said. `group`: MME's subtask, POPE's split or a question's type."""

    id: str
    prediction: str
    answers: tuple[str, ...]
    group: str = ""
    picture: str = ""  # MME: two questions on each
    entailed: tuple[str, ...] = ()  # GQA: ids of questions on the picture whose answers follow from this one's


# --- parsers: a text → the answer that it gives, or None ---


def one_of(*words: str) -> Callable[[str], str | None]:
    """A strict parser: exactly one of `words` stands in the text, as a whole word (or words), in whatever case."""
    longest_first = sorted(words, key=len, reverse=True)
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b")

    def parse(text):
        found = set(pattern.findall(text.lower()))
        return found.pop() if len(found) == 1 else None

    return parse


def mme_official(text: str) -> str | None:
    """MME's own parser (BradyFU's `calculation.py`): yes or no anywhere in the first four characters, yes first."""
    start = text.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else None


def pope_official(text: str) -> str:
    """POPE's own parser (`evaluate.py`): No, no or not as a word of the first sentence means no, all else yes."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def exact(text: str) -> str | None:
    """LLaVA's rule for GQA: stripped, in lower case, without one full stop at the end."""
    return text.strip().lower().removesuffix(".") or None


# --- figures: N rows of (Answered, parsed prediction), and (D, N) how often each counts in D samples
#     → name → (D,) per cent, NaN in a sample without such questions, the chief figure first ---


def _right(row, parsed):
    return float(parsed in row.answers)


def _partly_right(row, parsed):
    return 0.0 if parsed is None else soft_accuracy(parsed, row.answers)


def accuracy(rows, weights) -> dict[str, np.ndarray]:
    """Share of right answers; where there are several groups, that of each too."""
    return _by_group(rows, [_right(row, parsed) for row, parsed in rows], weights)


def vqa(rows, weights) -> dict[str, np.ndarray]:
    """Soft accuracy over ten human answers (VQAv2; Text-VQA likewise), and that of each type of question."""
    return _by_group(rows, [_partly_right(row, parsed) for row, parsed in rows], weights)


def gqa(rows, weights) -> dict[str, np.ndarray]:
    """Accuracy; consistency, where questions say what they entail; and the accuracy of each type of question.

    Consistency is the mean, over questions answered rightly, of the share of those that they entail which are answered
    rightly too (Hudson and Manning, 2019). It is 0 where none is. That a question entails itself does not count.
    """
    right = {row.id: _right(row, parsed) for row, parsed in rows}
    figures = _by_group(rows, list(right.values()), weights)
    entailed = [[right[id] for id in row.entailed if id in right and id != row.id] for row, _ in rows]
    held = [i for i, (row, _) in enumerate(rows) if entailed[i]]
    if held:
        shares = np.array([np.mean(entailed[i]) for i in held])
        asked = weights[:, held] * [right[rows[i][0].id] for i in held]
        consistency = _ratio(asked @ shares, asked.sum(1), weights[:, held].sum(1))
        figures = {"accuracy": figures["accuracy"], "consistency": consistency} | figures
    return figures


def mme(rows, weights) -> dict[str, np.ndarray]:
    """For each subtask 100·acc + 100·acc⁺, of 200; and the sums over perception and over cognition."""
    right = np.array([_right(row, parsed) for row, parsed in rows])
    pairs, of = np.unique([f"{row.group}\t{row.picture}" for row, _ in rows], return_inverse=True)
    both = (np.bincount(of, right) == 2)[of]
    parts = {
        name: (_per_cent(w @ right[at], w.sum(1)), _per_cent(w @ both[at], w.sum(1)))
        for name, at in _groups(rows).items()
        for w in [weights[:, at]]
    }
    sums = {
        kind: sum(sum(parts[name]) for name in names if name in parts)
        for kind, names in (("perception", PERCEPTION), ("cognition", COGNITION))
        if parts.keys() & set(names)
    }
    for name, (acc, acc_plus) in parts.items():
        sums |= {name: acc + acc_plus, f"{name} acc": acc, f"{name} acc+": acc_plus}
    return sums


def pope(rows, weights) -> dict[str, np.ndarray]:
    """For each split accuracy, precision, recall, F1 and the share of predictions that say yes; first the mean F1.

    An answer that cannot be read counts as the wrong one: where no is right, as a yes (but not in the share of yes).
    """
    true = np.array(["yes" in row.answers for row, _ in rows])
    right = np.array([parsed in row.answers for row, parsed in rows])
    said = np.array([parsed == "yes" for _, parsed in rows])
    figures = {}
    for name, at in _groups(rows).items():
        w, claimed = weights[:, at], true[at] == right[at]
        hits, n = w @ (true & right)[at], w.sum(1)
        figures |= {
            f"{name} accuracy": _per_cent(w @ right[at], n),
            f"{name} precision": _ratio(hits, w @ claimed, n),
            f"{name} recall": _ratio(hits, w @ true[at], n),
            f"{name} F1": _ratio(2 * hits, w @ claimed + w @ true[at], n),
            f"{name} yes": _per_cent(w @ said[at], n),
        }
    return {"mean F1": np.mean([v for name, v in figures.items() if name.endswith(" F1")], axis=0)} | figures


def _groups(rows):
    """Each group's rows, by number."""
    groups = defaultdict(list)
    for i, (row, _) in enumerate(rows):
        groups[row.group].append(i)
    return groups


def _by_group(rows, marks, weights):
    """Accuracy over all rows, and where there are several groups that of each."""
    marks, groups = np.array(marks), _groups(rows)
    figures = {"accuracy": _per_cent(weights @ marks, weights.sum(1))}
    if len(groups) > 1:
        for name, at in groups.items():
            figures[f"{name} accuracy"] = _per_cent(weights[:, at] @ marks[at], weights[:, at].sum(1))
    return figures


def _per_cent(right, asked):
    return 100 * np.divide(right, asked, out=np.full(len(asked), np.nan), where=asked > 0)


def _ratio(part, whole, asked):
    """Per cent of what may be nothing, which is then 0."""
    return np.where(asked > 0, np.nan_to_num(_per_cent(part, whole)), np.nan)


@dataclass(frozen=True)
class Metric:
    """How a benchmark is scored: the figures from parsed answers, and how answers are read: name → parser."""

    figures: Callable[[list, np.ndarray], dict[str, np.ndarray]]
    parsers: dict[str, Callable[[str], str | None]]
    labels: tuple[str, ...] = ()  # what a true answer may be; empty: anything
    groups: tuple[str, ...] = ()  # what `group` may be; empty: there are none
    people: int | None = None  # how many answer each question; None: as many as there are right answers


METRICS = {
    "mme": Metric(
        mme, {"strict": one_of("yes", "no"), "official": mme_official}, ("yes", "no"), PERCEPTION + COGNITION
    ),
    "pope": Metric(pope, {"strict": one_of("yes", "no"), "official": pope_official}, ("yes", "no"), SPLITS),
    "vqa": Metric(vqa, {"strict": lambda text: normalise(text) or None}, people=10),
    "gqa": Metric(gqa, {"strict": exact}),
    "vsr": Metric(accuracy, {"strict": one_of("true", "false")}, ("true", "false")),
    "snli_ve": Metric(
        accuracy,
        {"strict": one_of("entailment", "neutral", "contradiction")},
        ("entailment", "neutral", "contradiction"),
    ),
}


def score(
    metric: str | Metric, rows: list[Answered], parser: str = "strict", draws: int = 1000, seed: int = 0
) -> dict:
    """All that is to be said of a metric on answered questions.

    Args:
        metric: a name in `METRICS`, or one's own.
        parser: "strict", or "official" where the benchmark's own tool reads answers otherwise (mme, pope).
        draws: bootstrap samples of the questions, those on one picture together.
        seed: of these samples.

    Returns:
        dict with n, parser, unparsed (per cent), figures, interval (name → [low, high], 95 %), chance (the figures
        of the one fixed answer that does best), draws, seed.

    Raises:
        InputError: unknown metric or parser, no rows, an id twice, a true answer or group that the metric does not
            know, or a picture of MME without exactly two questions.
    """
    if isinstance(metric, str):
        if metric not in METRICS:
            raise InputError(f"There is no metric {metric!r}; choose one of {', '.join(METRICS)}.")
        metric = METRICS[metric]
    if parser not in metric.parsers:
        raise InputError(f"There is no {parser!r} parser for this metric; choose one of {', '.join(metric.parsers)}.")
    rows = _checked(metric, rows)
    parsed = [(row, metric.parsers[parser](row.prediction)) for row in rows]
    return {
        "n": len(rows),
        "parser": parser,
        "unparsed": 100 * sum(answer is None for _, answer in parsed) / len(rows),
        "figures": _figures(metric, parsed),
        "interval": bootstrap(metric.figures, parsed, draws, seed),
        "chance": _best_constant(metric, rows),
        "draws": draws,
        "seed": seed,
    }


def _best_constant(metric, rows):
    common = Counter(answer for row in rows for answer in row.answers).most_common(5)
    candidates = [_figures(metric, [(row, answer) for row in rows]) for answer, _ in common]
    return max(candidates, key=lambda figures: next(iter(figures.values())))


def _figures(metric, parsed):
    return {name: float(value[0]) for name, value in metric.figures(parsed, np.ones((1, len(parsed)))).items()}


def check(metric: Metric, row: Answered) -> None:
    """InputError if the metric does not know the true answer or the group, or wants more or fewer answers."""
    if metric.people not in (None, len(row.answers)):
        raise InputError(f"{row.id!r} has {len(row.answers)} true answer(s); give those of {metric.people} people.")
    for answer in row.answers:
        if metric.labels and answer.strip().lower() not in metric.labels:
            raise InputError(f"The true answer of {row.id!r} is {answer!r}; it is one of {', '.join(metric.labels)}.")
    if metric.groups and row.group not in metric.groups:
        raise InputError(f"{row.id!r} belongs to {row.group!r}; there are {', '.join(metric.groups)}.")


def _checked(metric, rows):
    """Rows with their true answers in lower case, as parsers give them."""
    if not rows:
        raise InputError("There is nothing to score; give at least one answered question.")
    rows = [replace(row, answers=tuple(answer.strip().lower() for answer in row.answers)) for row in rows]
    twice = [id for id, n in Counter(row.id for row in rows).items() if n > 1]
    if twice:
        raise InputError(f"The id {twice[0]!r} comes twice; give every question an id of its own.")
    for row in rows:
        check(metric, row)
    if metric.figures is mme:
        for (group, picture), n in Counter((row.group, row.picture) for row in rows).items():
            if n != 2:
                raise InputError(f"The picture {picture!r} of {group} has {n} question(s); MME asks two on each.")
    return rows


def render(result: dict) -> str:
    """A result of `score` as a table for the terminal."""
    lines = [
        f"n {result['n']}, parser {result['parser']}, unparsed {result['unparsed']:.1f} %, "
        f"{result['draws']} bootstrap samples from seed {result['seed']}"
    ]
    for name, value in result["figures"].items():
        low, high = result["interval"][name]
        lines.append(f"  {name:<36}{value:7.2f}   95 % {low:.1f} to {high:.1f}   chance {result['chance'][name]:.1f}")
    return "\n".join(lines)
