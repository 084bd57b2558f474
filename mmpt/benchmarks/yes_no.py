"""Yes or no: MME (Fu et al., 2023, arXiv 2306.13394) and POPE (Li et al., EMNLP 2023).

MME's questions bring their own instruction; to POPE's the one of LLaVA's evaluation is added.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mmpt.benchmarks.rows import Row, each, json_lines, lines, number_or_text, picture_at, picture_in, pictures_of
from mmpt.benchmarks.vqa import BRIEFLY
from mmpt.errors import InputError
from mmpt.files import field
from mmpt.scoring import COGNITION, PERCEPTION, SPLITS
from mmpt.suites import YES_NO, SuiteQuestion

MME_WANTED = "MME's folders, one a subtask, with pictures and a .txt on each: question, tab, Yes or No, two lines"
PICTURES = (".jpg", ".jpeg", ".png")
POPE_WANTED = "POPE's coco_pope_random.json, …_popular.json and …_adversarial.json, and COCO's val2014/"


def mme(folder: Path) -> Iterator[Row | InputError]:
    """MME_Benchmark_release_version/MME_Benchmark: pictures and texts side by side, or apart in two folders."""
    if not any((folder / subtask).is_dir() for subtask in PERCEPTION + COGNITION):
        raise InputError(f"{folder} holds none of MME's subtasks; give {MME_WANTED}.")
    for subtask in PERCEPTION + COGNITION:
        part = folder / subtask
        if not part.is_dir():
            yield InputError(f"There is no folder {part}.")
            continue
        pictures, texts = part / "images", part / "questions_answers_YN"
        pictures, texts = (pictures, texts) if texts.is_dir() else (part, part)
        names = {path.stem: path.name for path in pictures.glob("*") if path.suffix.lower() in PICTURES}
        for stem in sorted(names.keys() | {path.stem for path in texts.glob("*.txt")}):
            yield from _mme_picture(subtask, texts / f"{stem}.txt", pictures, names.get(stem, f"{stem}.jpg"))


def _mme_picture(subtask, file, pictures, name):
    picture = f"{subtask}/{name}"

    def ask(found):
        number, line = found
        parts = [part.strip() for part in line.split("\t")]
        if len(parts) != 2 or not parts[0]:
            raise InputError(f"{line!r} is no question, a tab, and Yes or No.")
        question = SuiteQuestion(f"{picture}#{number}", picture, parts[0], (parts[1],), YES_NO, subtask)
        return Row(question, picture_at(pictures, name))

    try:
        found = [(where, (number, line)) for number, (where, line) in enumerate(lines(file, MME_WANTED), 1)]
        yield from each(found, ask) if found else [InputError(f"{file} asks nothing.")]
    except InputError as error:
        yield error


def mme_hub(rows) -> Iterator[Row | InputError]:
    asked = Counter()

    def ask(row):
        picture, answer = field(row, "question_id"), field(row, "answer")
        asked[picture] += 1
        question = SuiteQuestion(
            f"{picture}#{asked[picture]}", picture, field(row, "question"), (answer,), YES_NO, field(row, "category")
        )
        return Row(question, picture_in(row, "image", picture))

    return each(rows(None, "test"), ask)


def pope(folder: Path) -> Iterator[Row | InputError]:
    pictures = pictures_of(folder, "val2014", "images")
    # All files are read before the first question is answered: a missing one is told then.
    rows = {split: list(json_lines(folder / f"coco_pope_{split}.json", POPE_WANTED)) for split in SPLITS}
    for split in SPLITS:

        def ask(row, split=split):
            name = field(row, "image")
            return Row(
                _pope_question(row, "text", "label", split, Path(name).stem),
                picture_at(pictures, name),
            )

        yield from each(rows[split], ask)


def pope_hub(rows) -> Iterator[Row | InputError]:
    def ask(row):
        picture = field(row, "image_source")
        question = _pope_question(row, "question", "answer", field(row, "category"), picture)
        return Row(question, picture_in(row, "image", picture))

    for split in SPLITS:
        yield from each(rows("Full", split), ask)


def _pope_question(row, question, answer, split, picture):
    id = f"{split}-{number_or_text(row, 'question_id')}"
    return SuiteQuestion(id, picture, field(row, question) + BRIEFLY, (field(row, answer),), YES_NO, split)
