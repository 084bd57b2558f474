"""Open questions with short answers: TextVQA, VQAv2 and GQA, asked as in LLaVA's evaluation."""

from collections.abc import Iterator
from pathlib import Path

from mmpt.benchmarks.rows import Row, each, listed, number_or_text, numbered, picture_at, picture_in, pictures_of
from mmpt.errors import InputError
from mmpt.files import field, read_json
from mmpt.suites import SuiteQuestion

BRIEFLY = "\nAnswer the question using a single word or phrase."
TEXTVQA_WANTED = "TextVQA_0.5.1_val.json and train_images/"
VQAV2_WANTED = "v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json and COCO's val2014/"
GQA_WANTED = "testdev_balanced_questions.json and images/"


def _question(row, picture, answers, id="question_id"):
    """A question, asked for a short answer, from a row that has its text under "question"."""
    if not answers or not all(isinstance(answer, str) for answer in answers):
        raise InputError("answers must be a list of texts.")
    return SuiteQuestion(number_or_text(row, id), picture, field(row, "question") + BRIEFLY, tuple(answers))


def textvqa(folder: Path) -> Iterator[Row | InputError]:
    """The validation split; its pictures are those of Open Images' training split, hence the folder's name."""
    pictures = pictures_of(folder, "train_images", "images")

    def ask(row):
        name = field(row, "image_id")
        return Row(_question(row, name, field(row, "answers", list)), picture_at(pictures, f"{name}.jpg"))

    file = folder / "TextVQA_0.5.1_val.json"
    return each(numbered(file, listed(file, "data", TEXTVQA_WANTED)), ask)


def textvqa_hub(rows) -> Iterator[Row | InputError]:
    def ask(row):
        name = field(row, "image_id")
        return Row(_question(row, name, field(row, "answers", list)), picture_in(row, "image", name))

    return each(rows(None, "validation"), ask)


def vqav2(folder: Path) -> Iterator[Row | InputError]:
    """The validation split: questions in one file, ten people's answers to each in another."""
    pictures = pictures_of(folder, "val2014", "images")
    annotations = listed(folder / "v2_mscoco_val2014_annotations.json", "annotations", VQAV2_WANTED)
    answers = {row.get("question_id"): row for row in annotations if isinstance(row, dict)}

    def ask(row):
        picture = f"COCO_val2014_{field(row, 'image_id', int):012}"
        said = answers.get(field(row, "question_id", int))
        if said is None:
            raise InputError(f"the annotations have no answers to {row['question_id']}.")
        return Row(_question(row, picture, _people(said)), picture_at(pictures, f"{picture}.jpg"))

    file = folder / "v2_OpenEnded_mscoco_val2014_questions.json"
    return each(numbered(file, listed(file, "questions", VQAV2_WANTED)), ask)


def vqav2_hub(rows) -> Iterator[Row | InputError]:
    def ask(row):
        picture = number_or_text(row, "image_id")
        return Row(_question(row, picture, _people(row)), picture_in(row, "image", picture))

    return each(rows(None, "validation"), ask)


def _people(row):
    return [field(person, "answer") for person in field(row, "answers", list)]


def gqa(folder: Path) -> Iterator[Row | InputError]:
    """The balanced test-dev split: one object, question's id → question."""
    pictures = pictures_of(folder, "images")
    file = folder / "testdev_balanced_questions.json"
    questions = read_json(file, GQA_WANTED)
    if not isinstance(questions, dict):
        raise InputError(f"{file} holds no object; give {GQA_WANTED}.")

    def ask(row):
        name = field(row, "imageId")
        return Row(_question(row, name, [field(row, "answer")], "id"), picture_at(pictures, f"{name}.jpg"))

    rows = ({**row, "id": id} if isinstance(row, dict) else None for id, row in questions.items())
    return each(numbered(file, rows), ask)


def gqa_hub(rows) -> Iterator[Row | InputError]:
    """Questions and pictures are two streams there; the pictures, 398 of them, are held undecoded."""
    pictures = {row["id"]: row for _, row in rows("testdev_balanced_images", "testdev")}

    def ask(row):
        name = field(row, "imageId")
        if name not in pictures:
            raise InputError(f"there is no picture {name}.")
        return Row(_question(row, name, [field(row, "answer")], "id"), picture_in(pictures[name], "image", name))

    return each(rows("testdev_balanced_instructions", "testdev"), ask)
