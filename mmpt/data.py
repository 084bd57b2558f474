"""What is tuned on: scenes with their tasks, or pictures, questions and answers of one's own.

One's own come in two formats: a folder with pictures and one JSONL file (image, question, answer a line), and LLaVA's
JSON (a list of objects with image and conversations, turns "from" "human" and "gpt" in alternation, perhaps after
"system"), which is Vision-Flan's too. Paths of pictures are seen from the file's folder; what is not there is looked
for in the folders beside the file (Vision-Flan's images_191task_1k).
"""

import hashlib
import json
import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from mmpt.ask import open_picture
from mmpt.errors import InputError
from mmpt.files import check_characters, field, read_json, read_text, tell_broken
from mmpt.scenes import SEEDS, Scene, make_scene
from mmpt.tasks import ask_about

_WANTED = "a folder with pictures and one .jsonl file (image, question, answer a line), or a .json file as LLaVA's"


@dataclass(frozen=True)
class Example:
    """A picture's file, and (question, answer) turns about it."""

    path: Path
    turns: tuple[tuple[str, str], ...]

    @property
    def image(self) -> Image.Image:
        """The picture, decoded anew each time."""
        return open_picture(self.path)


def read_examples(source: str | Path, turns: int = 4) -> tuple[list[Example], list[str]]:
    """What can be tuned on in `source`, and a sentence on each row that cannot.

    Lines of a JSONL file on the same picture become turns of one conversation, `turns` at a time; LLaVA's
    conversations stay whole. Every picture is decoded once, by a few threads, so that a broken one is found before the
    work.

    Raises:
        InputError: no such file or folder, or nothing in it can be used.
    """
    source = Path(source)
    if os.path.isdir(source):
        files = sorted(source.glob("*.jsonl"))
        if len(files) != 1:
            raise InputError(f"{source} holds {len(files)} .jsonl files; give {_WANTED}.")
        source, parse, rows = files[0], _line, read_text(files[0], _WANTED).split("\n")
    elif source.suffix.lower() == ".json":
        parse, rows = _conversation, _objects(source)
    else:
        raise InputError(f"There is nothing to tune on at {source}; give {_WANTED}.")
    beside = sorted(path for path in source.parent.glob("*") if os.path.isdir(path))
    found, problems = {}, {}
    for number, row in enumerate(rows, 1):
        if isinstance(row, str) and not row.strip():
            continue
        try:
            image, conversation = parse(row)
            check_characters("".join(text for turn in conversation for text in turn))
            found[number] = _place(source.parent, beside, image), conversation
        except (InputError, OSError, ValueError) as error:  # the latter of what cannot be a file's name
            problems[number] = str(error)
    broken = _broken({path for path, _ in found.values()})
    examples, said = [], {}
    for number, (path, conversation) in found.items():
        if path in broken:
            problems[number] = broken[path]
        else:
            said.setdefault(path, []).append(conversation)
    problems = [f"{source.name}, row {number}: {problem}" for number, problem in sorted(problems.items())]
    for path, conversations in said.items():
        if parse is _line:
            single = [turn for conversation in conversations for turn in conversation]
            conversations = [single[i : i + turns] for i in range(0, len(single), turns)]
        examples += [Example(path, tuple(conversation)) for conversation in conversations]
    if not examples:
        raise InputError(f"Nothing in {source} can be tuned on. {problems[0] if problems else 'It is empty.'}")
    return examples, problems


def own_examples(config, tell: bool = True) -> list[Example]:
    """What `config.data` holds, nothing if there is none; what cannot be used is told on stderr."""
    if config.data is None:
        return []
    examples, problems = read_examples(config.data, config.turns)
    if tell:
        tell_broken(problems)
    return examples


def fingerprint(examples: Sequence[Example], source: str | Path) -> str:
    """A hash of all questions and answers and of where their pictures are, seen from `source`."""
    rows = [[_seen_from(source, example.path), example.turns] for example in examples]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def conversation(
    config, step: int, i: int, examples: Sequence[Example] = ()
) -> tuple[Scene | Example, list[tuple[str, str]]]:
    """Picture `i` of `step`, with its `.image`, and its (question, answer) turns.

    Of `examples` if there are any, in another order each epoch; else a scene. Where none of the tasks fits a scene,
    another one.
    """
    index = step * config.pictures + i
    if examples:
        epoch, at = divmod(index, len(examples))
        example = examples[_order(len(examples), config.seed, epoch)[at]]
        return example, list(example.turns)
    for attempt in range(1000):
        number = index + attempt * (1 if config.scenes else config.steps * config.pictures)
        number = number % config.scenes if config.scenes else number
        scene = make_scene(SEEDS["tuning"] + seed_of(config, "scene", number))
        questions = ask_about(
            scene, random.Random(seed_of(config, "questions", index, attempt)), config.turns, config.tasks
        )
        if questions:
            return scene, [(q.question, q.answer) for q in questions]
    raise InputError(
        f"None of the {config.scenes} scenes fits the tasks {', '.join(config.tasks)}; use more scenes or other tasks."
    )


def seed_of(config, *purpose) -> int:
    """A seed that follows from the run's and from what it is for."""
    return random.Random(f"{config.seed} {purpose}").getrandbits(32)


@lru_cache(maxsize=4)
def _order(n, seed, epoch):
    """In which order an epoch takes its `n` examples."""
    numbers = list(range(n))
    random.Random(f"{seed} epoch {epoch}").shuffle(numbers)
    return tuple(numbers)


def _objects(file):
    rows = read_json(file, _WANTED)
    if not isinstance(rows, list):
        raise InputError(f"{file} holds no list; give {_WANTED}.")
    return rows


def _place(folder, beside, image):
    """Where the picture `image` is: in `folder`, else in just one of the folders `beside`."""
    if os.path.exists(folder / image):
        return folder / image
    places = [other / image for other in beside if os.path.exists(other / image)]  # False where one may not look
    if len(places) > 1:
        raise InputError(f"{image} is in {places[0].parent} and in {places[1].parent}; leave one of them.")
    return places[0] if places else folder / image


def _seen_from(source, path):
    try:
        return Path(os.path.relpath(path, source)).as_posix()
    except ValueError:  # on another drive of Windows
        return path.as_posix()


def _broken(paths):
    """Those of the pictures that cannot be decoded, each with the reason."""

    def reason(path):
        try:
            open_picture(path)
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        paths = sorted(paths)
        reasons = tqdm(pool.map(reason, paths), "reading", len(paths), unit="picture", disable=len(paths) < 1000)
        return {path: why for path, why in zip(paths, reasons) if why}


def _line(text):
    try:
        row = json.loads(text)
    except json.JSONDecodeError:
        row = None
    image, question, answer = (field(row, name) for name in ("image", "question", "answer"))
    question = _without_mark(question)
    _check_turns([question], [answer])
    return image, [(question, answer)]


def _conversation(row):
    if isinstance(row, dict) and "image" not in row:
        raise InputError("it has no image, and text alone is not tuned on.")
    image, said = field(row, "image"), field(row, "conversations", list)
    said = [(part.get("from"), part.get("value")) for part in said if isinstance(part, dict)]
    system = said.pop(0)[1] if said and said[0][0] == "system" else ""
    speakers, texts = [speaker for speaker, _ in said], [text for _, text in said]
    right = said and speakers == ["human", "gpt"] * (len(said) // 2)
    if not right or not all(isinstance(text, str) for text in (system, *texts)):
        raise InputError('conversations must alternate "human" and "gpt", each with a text as value.')
    questions = [_without_mark(text) for text in texts[::2]]
    answers = [text.strip() for text in texts[1::2]]
    _check_turns(questions, answers)
    questions[0] = f"{system.strip()}\n{questions[0]}".strip()
    return image, list(zip(questions, answers))


def _without_mark(question):
    """LLaVA's files say in a question where its picture stands; here it stands before the first."""
    return question.replace("<image>", "").strip()


def _check_turns(questions, answers):
    if not all(questions + answers):
        raise InputError("a question or an answer is empty.")
    if any("<image>" in answer for answer in answers):
        raise InputError("an answer holds <image>, which stands for the picture.")
