"""Scores as the field computes them: MME, POPE, VQA, GQA, VSR, SNLI-VE and plain accuracy.

An answer that the parser cannot read is wrong and is counted as unparsed. Predictions belong to questions by id.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from mmpt.bootstrap import bootstrap
from mmpt.errors import InputError
from mmpt.files import read_jsonl, read_text
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


# --- figures: rows of (Answered, parsed prediction) → name → per cent, the chief figure first ---


def _right(row, parsed):
    return float(parsed in row.answers)


def _partly_right(row, parsed):
    return soft_accuracy(parsed or "", row.answers)


def accuracy(rows) -> dict[str, float]:
    """Share of right answers; where there are several groups, that of each too."""
    return _by_type([(row, _right(row, parsed)) for row, parsed in rows])


def vqa(rows) -> dict[str, float]:
    """Soft accuracy over ten human answers (VQAv2; Text-VQA likewise), and that of each type of question."""
    return _by_type([(row, _partly_right(row, parsed)) for row, parsed in rows])


_MARKS = {accuracy: _right, vqa: _partly_right}  # figures that are means of a mark on each row


def gqa(rows) -> dict[str, float]:
    """Accuracy; consistency, where questions say what they entail; and the accuracy of each type of question.

    Consistency is the mean, over questions answered rightly, of the share of those that they entail which are answered
    rightly too (Hudson and Manning, 2019). It is 0 where none is.
    """
    marks = [(row, _right(row, parsed)) for row, parsed in rows]
    right = {(row.picture, row.id): mark for row, mark in marks}
    entailed = [(mark, [right[row.picture, id] for id in row.entailed if (row.picture, id) in right])
                for row, mark in marks]  # fmt: skip
    figures = _by_type(marks)
    if any(follow for _, follow in entailed):
        held = [_mean(follow) for mark, follow in entailed if mark and follow]
        figures = {"accuracy": figures["accuracy"], "consistency": 100 * _mean(held or [0])} | figures
    return figures


def _by_type(marks):
    """Accuracy over all (row, mark), and where there are several groups that of each."""
    groups = defaultdict(list)
    for row, mark in marks:
        groups[row.group].append(mark)
    parts = {f"{name} accuracy": 100 * _mean(group) for name, group in groups.items()} if len(groups) > 1 else {}
    return {"accuracy": 100 * _mean(mark for _, mark in marks)} | parts


def mme(rows) -> dict[str, float]:
    """For each subtask 100·acc + 100·acc⁺, of 200; and the sums over perception and over cognition."""
    subtasks = defaultdict(lambda: defaultdict(list))
    for row, parsed in rows:
        subtasks[row.group][row.picture].append(parsed in row.answers)
    parts = {}
    for name, pictures in subtasks.items():
        right = _mean(mark for marks in pictures.values() for mark in marks)
        both = _mean(all(marks) for marks in pictures.values())
        parts[name] = {name: 100 * right + 100 * both, f"{name} acc": 100 * right, f"{name} acc+": 100 * both}
    sums = {
        kind: sum(parts[name][name] for name in names if name in parts)
        for kind, names in (("perception", PERCEPTION), ("cognition", COGNITION))
        if parts.keys() & set(names)
    }
    return sums | {key: value for part in parts.values() for key, value in part.items()}


def pope(rows) -> dict[str, float]:
    """For each split accuracy, precision, recall, F1 and the share of predictions that say yes; first the mean F1."""
    splits = defaultdict(list)
    for row, parsed in rows:
        splits[row.group].append(("yes" in row.answers, parsed == "yes", parsed in row.answers))
    figures = {}
    for name, marks in splits.items():
        hits = sum(true and said for true, said, _ in marks)
        said, true = sum(said for _, said, _ in marks), sum(true for true, _, _ in marks)
        figures |= {
            f"{name} accuracy": 100 * _mean(right for *_, right in marks),
            f"{name} precision": 100 * hits / said if said else 0.0,
            f"{name} recall": 100 * hits / true if true else 0.0,
            f"{name} F1": 200 * hits / (said + true) if said + true else 0.0,
            f"{name} yes": 100 * said / len(marks),
        }
    return {"mean F1": _mean(value for key, value in figures.items() if key.endswith(" F1"))} | figures


def _mean(values):
    values = list(values)
    return sum(values) / len(values)


@dataclass(frozen=True)
class Metric:
    figures: Callable[[list], dict[str, float]]
    parsers: dict[str, Callable[[str], str | None]]
    labels: tuple[str, ...] = ()  # what a true answer may be; empty: anything
    groups: tuple[str, ...] = ()  # what `group` may be; empty: there are none


METRICS = {
    "mme": Metric(
        mme, {"strict": one_of("yes", "no"), "official": mme_official}, ("yes", "no"), PERCEPTION + COGNITION
    ),
    "pope": Metric(pope, {"strict": one_of("yes", "no"), "official": pope_official}, ("yes", "no"), SPLITS),
    "vqa": Metric(vqa, {"strict": lambda text: normalise(text) or None}),
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
        draws: bootstrap samples of the questions (of MME's pictures), within each group.

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
        "unparsed": 100 * _mean(answer is None for _, answer in parsed),
        "figures": metric.figures(parsed),
        "interval": bootstrap(metric.figures, parsed, draws, seed, _MARKS.get(metric.figures)),
        "chance": _best_constant(metric, rows),
        "draws": draws,
        "seed": seed,
    }


def _best_constant(metric, rows):
    common = Counter(answer for row in rows for answer in row.answers).most_common(5)
    candidates = [metric.figures([(row, answer) for row in rows]) for answer, _ in common]
    return max(candidates, key=lambda figures: next(iter(figures.values())))


def check(metric: Metric, row: Answered) -> None:
    """InputError if the true answer or the group is none that the metric knows."""
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
                raise InputError(f"The picture {picture!r} of {group} has {n} question(s); MME asks two of each.")
    return rows


def read_answered(metric: str, file: str | Path) -> list[Answered]:
    """Answered questions from a file.

    For "mme" its own format: picture, question, truth, prediction, tab-separated, two lines a picture, and the file's
    name is the subtask (existence.txt); a folder of such files is read whole. Else JSONL with id, prediction,
    and answer or answers; for "pope" category or split; for "gqa", if consistency is wanted, imageId and entailed
    (a list of ids).

    Raises:
        InputError: a file, a line or a field is missing or wrong; names the line.
    """
    file = Path(file)
    if metric == "mme":
        files = sorted(file.glob("*.txt")) if file.is_dir() else [file]
        return [row for part in files for row in _read_mme(part)]
    rows = []
    for where, line in read_jsonl(file, ("id", "prediction")):
        answers = line.get("answers", line.get("answer"))
        answers = (answers,) if isinstance(answers, str) else tuple(answers) if isinstance(answers, list) else ()
        group = line.get("category", line.get("split", "")) if metric == "pope" else ""
        entailed, picture = (line.get("entailed", []), str(line.get("imageId", ""))) if metric == "gqa" else ([], "")
        if not answers or not all(isinstance(text, str) for text in (line["prediction"], group, *answers)):
            raise InputError(f"{where}: prediction is a text, and answer one or answers a list of them.")
        if entailed and not (isinstance(entailed, list) and picture):
            raise InputError(f"{where}: entailed is a list of ids of questions on one picture; give its imageId.")
        entailed = tuple(map(str, entailed))
        rows.append(Answered(str(line["id"]), line["prediction"], answers, group, picture, entailed))
    return rows


def _read_mme(file):
    text = read_text(file, "a text file of MME's: picture, question, truth and prediction, tab-separated")
    lines, rows = text.removesuffix("\n").split("\n") if text else [], []
    for number, line in enumerate(lines, 1):
        parts = line.split("\t")
        if len(parts) != 4:
            raise InputError(
                f"{file}, line {number} has {len(parts)} parts; write 4: picture, question, truth, answer."
            )
        picture, _, truth, prediction = parts
        rows.append(Answered(f"{file.stem}:{number}", prediction, (truth,), file.stem, picture))
    return rows


def render(result: dict) -> str:
    """A result of `score` as a table for the terminal."""
    lines = [f"n {result['n']}, parser {result['parser']}, unparsed {result['unparsed']:.1f} %"]
    for name, value in result["figures"].items():
        low, high = result["interval"][name]
        lines.append(f"  {name:<36}{value:7.2f}   95 % {low:.1f} to {high:.1f}   chance {result['chance'][name]:.1f}")
    return "\n".join(lines)
