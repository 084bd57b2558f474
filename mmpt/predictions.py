"""Answered questions from files, to be scored."""

from pathlib import Path

from mmpt.errors import InputError
from mmpt.files import read_jsonl, read_text
from mmpt.scoring import SPLITS, Answered


def read_answered(metric: str, file: str | Path) -> list[Answered]:
    """Answered questions from a file.

    For "mme" its own format: picture, question, truth, prediction, tab-separated, two lines a picture, and the file's
    name is the subtask (existence.txt); a folder of such files is read whole. Else JSONL with id, prediction,
    and answer or answers (for "vqa" ten); for "pope" category or split; for "gqa", if consistency is wanted, entailed
    (a list of ids). Where there is an imageId, intervals keep a picture's questions together.

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
        entailed, picture = line.get("entailed", []) if metric == "gqa" else [], line.get("imageId")
        if not answers or not all(isinstance(text, str) for text in (line["prediction"], *answers)):
            raise InputError(f"{where}: prediction is a text, and answer one or answers a list of them.")
        if not isinstance(group, str):
            raise InputError(f"{where}: category is {group!r}; give one of {', '.join(SPLITS)}.")
        if not isinstance(entailed, list):
            raise InputError(f"{where}: entailed is {entailed!r}; give a list of ids of questions on the picture.")
        entailed, picture = tuple(map(str, entailed)), "" if picture is None else str(picture)
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
        rows.append(Answered(f"{file.stem}:{number}", prediction, (truth,), file.stem, f"{file.stem}/{picture}"))
    return rows
