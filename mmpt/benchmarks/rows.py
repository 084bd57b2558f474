"""Rows of a data set, one by one: a broken one becomes an `InputError` in its place, and the others go on.

A row stands in a text file, a JSON file, or in parquet files, local or on the hub (`datasets`, streaming: nothing is
downloaded ahead, and no picture is decoded before it is needed).
"""

import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from mmpt.ask import decode_picture, open_picture
from mmpt.errors import InputError, first_line
from mmpt.files import field, read_json, read_text
from mmpt.suites import SuiteQuestion

Placed = Iterable[tuple[str, object]]  # (where it stands, what stands there)


@dataclass(frozen=True)
class Row:
    """A question, and how its picture is got: `picture()` raises InputError where it is broken."""

    question: SuiteQuestion
    picture: Callable[[], Image.Image]


def each(placed: Placed, make: Callable[[object], Row]) -> Iterator[Row | InputError]:
    """What `make` makes of each; where it raises InputError, that, with where it stands."""
    for where, found in placed:
        try:
            yield make(found)
        except InputError as error:
            yield InputError(f"{where}: {error}")


def lines(file: Path, wanted: str) -> Placed:
    """The lines of a text file but for empty ones."""
    for number, line in enumerate(read_text(file, wanted).split("\n"), 1):
        if line.strip():
            yield f"{file}, line {number}", line


def json_lines(file: Path, wanted: str) -> Placed:
    """The objects of a JSONL file; None in place of a line that is no JSON."""
    for where, line in lines(file, wanted):
        try:
            yield where, json.loads(line)
        except (ValueError, RecursionError):  # an endless number, an endless list
            yield where, None


def listed(file: Path, name: str, wanted: str) -> list:
    """The list under `name` in a JSON file; InputError, naming the file and what is `wanted`, where there is none."""
    found = read_json(file, wanted)
    if not isinstance(found, dict) or not isinstance(found.get(name), list):
        raise InputError(f"{file} has no list {name!r}; give {wanted}.")
    return found[name]


def numbered(file: Path, rows: Iterable) -> Placed:
    return ((f"{file}, row {number}", row) for number, row in enumerate(rows, 1))


def local_parquet(folder: Path, config: str | None, split: str) -> Placed:
    """The rows of a split of a repository of the hub that was copied into `folder`."""
    from datasets import load_dataset

    files = sorted(str(path) for path in folder.rglob(f"{split}-*.parquet") if not config or config in path.parts)
    if not files:
        raise InputError(f"{folder} holds no {config + '/' if config else ''}{split}-….parquet; give a whole copy.")
    try:
        rows = load_dataset("parquet", data_files=files, split="train", streaming=True).decode(False)
        yield from numbered(folder, rows)
    except Exception as error:  # whatever the libraries below raise where a file is not whole
        raise InputError(f"{folder} cannot be read ({first_line(error)}); copy it again (git lfs pull).") from error


def from_hub(repository: str, config: str | None, split: str) -> Placed:
    """The rows of a split on the hub.

    Raises:
        InputError: there is no network, no such repository, or the stream breaks off.
    """
    from datasets import load_dataset

    try:
        rows = load_dataset(repository, config, split=split, streaming=True).decode(False)
        for number, row in enumerate(rows, 1):
            yield f"{repository}, {split}, row {number}", row
    except Exception as error:  # whatever the libraries below raise where a network or a file fails them
        raise InputError(
            f"{repository} cannot be read from the hub ({first_line(error)}); go online, or give --data FOLDER "
            "with a copy."
        ) from error


def picture_in(row, name: str, title: str) -> Callable[[], Image.Image]:
    """How to decode a picture that came with its row."""
    content = field(row, name, dict).get("bytes")
    if not content:
        raise InputError(f"{name} holds no picture.")
    return lambda: decode_picture(io.BytesIO(content), title)


def picture_at(folder: Path, name: str) -> Callable[[], Image.Image]:
    return partial(open_picture, folder / name)


def pictures_of(folder: Path, *names: str) -> Path:
    """The first of the folders `names` that there is in `folder`."""
    found = [folder / name for name in names if (folder / name).is_dir()]
    if not found:
        raise InputError(f"{folder} holds no folder {' or '.join(names)} with the pictures; put them there.")
    return found[0]


def label(row, name: str, names: tuple[str, ...]) -> str:
    """The name of a class that is given by its number."""
    number = field(row, name, int)
    if not 0 <= number < len(names):
        raise InputError(f"{name} is {number}; it is one of 0 to {len(names) - 1}.")
    return names[number]


def number_or_text(row, name: str) -> str:
    return str(field(row, name, (int, str)))
