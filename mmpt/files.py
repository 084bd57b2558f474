"""Files that people hand in and files that are written for them: told apart early, written whole or not at all."""

import json
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from mmpt.errors import InputError

ASSETS = Path(__file__).parent.parent / "assets"  # what is shipped: weights, adapters, results


def read_jsonl(file: str | Path, fields: tuple[str, ...]) -> list[tuple[str, dict]]:
    """The lines of a JSONL file, each with where it stands ("answers.jsonl, line 3"), empty ones left out.

    Raises:
        InputError: the file cannot be read or is empty, a line is no JSON object or lacks one of `fields`.
    """
    file, wanted = Path(file), f"{', '.join(fields[:-1])} and {fields[-1]}"
    rows = []
    for number, line in enumerate(read_text(file, f"a JSONL file with {wanted} a line").split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # an endless number, an endless list
            row = None
        if not isinstance(row, dict):
            raise InputError(f"{where} is not a JSON object; write one with {wanted} a line.")
        missing = [name for name in fields if name not in row]
        if missing:
            raise InputError(f"{where} has no {missing[0]!r}; write {wanted} on every line.")
        rows.append((where, row))
    if not rows:
        raise InputError(f"{file} has no lines; write {wanted} on every line.")
    return rows


def read_json(file: Path, wanted: str):
    """A JSON file's content; InputError, naming what is `wanted`, where there is none."""
    try:
        return json.loads(read_text(file, wanted))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is no JSON ({error}); give {wanted}.") from None


_KINDS = {str: "a text", int: "a whole number", (int, str): "a text or number", list: "a list", dict: "an object"}


def field(row, name: str, kind=str):
    """A row's field, which must be of the type `kind` (a text also not empty); InputError if it is not."""
    if not isinstance(row, dict):
        raise InputError("it is no JSON object.")
    value = row.get(name)
    if not isinstance(value, kind) or (isinstance(value, str) and not value.strip()):
        raise InputError(f"{name} is {value!r}; give {_KINDS[kind]}.")
    return value.strip() if isinstance(value, str) else value


def tell_broken(problems: list[str]) -> None:
    """Rows that cannot be used, on stderr: how many, and why the first five cannot."""
    if problems:
        shown = "\n".join(problems[:5]) + ("\n…" if len(problems) > 5 else "")
        print(f"{len(problems)} row(s) cannot be used and are left out:\n{shown}", file=sys.stderr)


def check_characters(text: str) -> None:
    """InputError if `text` holds half of a character, as of an emoji that was cut in two: no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{error.object[error.start]!r} is half of a character; write it whole, in UTF-8.") from None


def read_text(file: Path, wanted: str) -> str:
    """A UTF-8 file's text, without a byte order mark; InputError, naming what is `wanted`, where there is none."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError):
        raise InputError(f"{file} cannot be read; give {wanted}.") from None


def check_writable(file: str | Path) -> None:
    """InputError if `file` is a folder or cannot be written: told before the work rather than after."""
    stream = _descriptor(file) is not None or _is_stream(file)
    place = file if stream else os.path.dirname(os.path.realpath(file))
    if os.path.isdir(file) or not os.access(place, os.W_OK if stream else os.W_OK | os.X_OK):
        raise InputError(f"{file} cannot be written; give a file in a folder that exists and can be written to.")


def make_folder(folder: Path) -> None:
    """Make a folder that can be written to, and those above it; InputError if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({error.strerror}); give another folder.") from error
    check_writable(folder / "file")


def write_whole(file: str | Path, content: str | bytes) -> None:
    """Write a file, text as UTF-8, so that it appears whole or not at all; a link and a file's rights stay.

    Raises:
        InputError: it cannot be written.
    """
    content = content.encode() if isinstance(content, str) else content
    try:
        if (number := _descriptor(file)) is not None:
            sys.stdout.flush()
            sys.stderr.flush()
            with open(os.dup(number), "wb") as stream:  # by its name it would be written from the beginning
                stream.write(content)
        elif _is_stream(file):
            Path(file).write_bytes(content)
        else:
            _replace(Path(os.path.realpath(file)), content)
    except OSError as error:
        raise InputError(f"{file} cannot be written ({error.strerror}); give another file.") from error


def flush_to_disk(file: Path) -> None:
    """Wait until what was written is on the disk: else a crash after the file was renamed could leave it empty."""
    with file.open("rb+") as written:
        os.fsync(written.fileno())


def _replace(file, content):
    scratch = file.with_name(f".{file.name[:50]}.{os.getpid()}")
    try:
        scratch.write_bytes(content)
        flush_to_disk(scratch)
        if file.exists():
            shutil.copymode(file, scratch)
        scratch.replace(file)
    finally:
        with suppress(OSError):
            scratch.unlink()


def _descriptor(file):
    """The number of the open file that /dev/stdout and its like stand for; None of others."""
    path = os.path.abspath(file)
    number = {"/dev/stdout": "1", "/dev/stderr": "2"}.get(path, path)
    number = number.removeprefix("/dev/fd/").removeprefix("/proc/self/fd/")
    return int(number) if number.isdigit() else None


def _is_stream(file):
    """Whether it is a device or a pipe, which is written to and cannot be replaced."""
    return os.path.exists(file) and not os.path.isfile(file) and not os.path.isdir(file)
