"""Asking: one question on one picture, or many from a JSONL file; and what a person's picture and question must be."""

import json
import os
import warnings
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps
from tqdm import tqdm

from mmpt.errors import InputError
from mmpt.files import check_characters, check_writable, read_jsonl, write_whole

MAX_PIXELS = 50_000_000  # refused before anything is decoded
MAX_BYTES = 64 << 20
MAX_QUESTION = 2_000  # characters
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow reads more, some of it by running other programs


def open_picture(path: str | Path) -> Image.Image:
    """Any picture file as RGB: first frame, turned as its EXIF says, transparent parts on white.

    Raises:
        InputError: not there, not a picture, broken, empty, above `MAX_PIXELS` or `MAX_BYTES`.
    """
    path = Path(path)
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            kind = "a folder" if os.path.isdir(path) else "no regular file"
            raise InputError(f"{path} is {kind}; give a picture file, such as a PNG or JPEG.")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError(f"{path} has {size / 2**20:.0f} MiB; give a picture of at most {MAX_BYTES >> 20} MiB.")
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"There is no file {path}; give the path of a picture.") from None
    except (OSError, ValueError) as error:  # no right to look, or no possible name
        raise InputError(f"{path} cannot be read as a picture ({error}); give another file.") from error
    return decode_picture(path, path)


def decode_picture(file: Path | BinaryIO, name) -> Image.Image:
    """The same of a file, or of bytes that came as part of a data set; `name` tells which in messages.

    Raises:
        InputError: not a picture, broken, empty, above `MAX_PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's: what can be read is read, what is too large is refused here
            with Image.open(file, formats=FORMATS) as picture:
                width, height = picture.size
                if width * height > MAX_PIXELS:
                    raise InputError(
                        f"{name} has {width} × {height} pixels; give one of at most {MAX_PIXELS // 10**6} megapixels."
                    )
                return to_rgb(picture)
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(f"{name} is too large; give one of at most {MAX_PIXELS // 10**6} megapixels.") from None
    except Exception as error:  # decoders raise whatever a broken file leads them to
        raise InputError(f"{name} cannot be read as a picture; give a whole {', '.join(FORMATS)} file.") from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """A decoded copy as RGB, upright, on white; 16-bit greyscale, and a float one up to 1, are scaled to 8."""
    picture.load()
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        mode, picture = picture.mode, (picture.convert("I") if ";" in picture.mode else picture).convert("F")
        _, high = picture.getextrema()
        white = 65535 if mode.startswith("I;16") or high > 255 else 1 if mode == "F" and high <= 1 else 255
        return picture.point(lambda value: value * (255 / white)).convert("L").convert("RGB")
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")


def check_question(text: str) -> str:
    """The question without spaces around it.

    Raises:
        InputError: empty, longer than `MAX_QUESTION` characters, or with half of one.
    """
    text = text.strip()
    if not text:
        raise InputError("The question is empty; ask something about the picture, such as: What is on the left?")
    if len(text) > MAX_QUESTION:
        raise InputError(f"The question has {len(text)} characters; ask with at most {MAX_QUESTION}.")
    check_characters(text)
    return text


def read_requests(file: str | Path) -> list[dict]:
    """The lines of a JSONL file as dicts with id, image (a path, seen from the file's folder) and question.

    Raises:
        InputError: the file, a line or a field is missing or wrong; names the line.
    """
    requests = []
    for where, row in read_jsonl(file, ("id", "image", "question")):
        try:
            for name in ("image", "question"):
                if not isinstance(row[name], str):
                    raise InputError(f"{name} is {row[name]!r}; give a text.")
            question = check_question(row["question"])
            image = Path(file).parent / row["image"]
            open_picture(image)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        requests.append({"id": row["id"], "image": image, "question": question})
    return requests


def check_batch(file: str | Path, out: str | Path) -> list[dict]:
    """`read_requests`, once it is clear that their answers can be written to `out`, which is another file.

    Raises:
        InputError: see `read_requests`; or `out` cannot be written, or is `file`.
    """
    check_writable(out)
    if os.path.realpath(out) == os.path.realpath(file):
        raise InputError(f"{out} holds the questions; give another file for the answers.")
    return read_requests(file)


def ask_file(backbone, file: str | Path, out: str | Path, batch: int = 16) -> int:
    """Answer all lines of `file` into `out` (id, answer), in the same order; returns how many.

    Everything is checked before anything is computed, and `out` appears whole or not at all.

    Raises:
        InputError: see `check_batch`.
    """
    requests = check_batch(file, out)
    answers = []
    for start in tqdm(range(0, len(requests), batch), desc="answering", unit="batch"):
        rows = requests[start : start + batch]
        images = [open_picture(row["image"]) for row in rows]
        answers += backbone.answer(images, [row["question"] for row in rows])
    lines = [json.dumps({"id": row["id"], "answer": answer}) + "\n" for row, answer in zip(requests, answers)]
    write_whole(out, "".join(lines))
    return len(answers)
