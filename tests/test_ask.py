import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mmpt.ask import MAX_PIXELS, ask_file, check_question, open_picture, read_requests
from mmpt.errors import InputError


class Echo:
    def answer(self, images, questions, max_new_tokens=64):
        return [f"{image.getpixel((0, 0))} {question}" for image, question in zip(images, questions)]


@pytest.fixture
def red(tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (8, 6), (255, 0, 0)).save(path)
    return path


@pytest.mark.parametrize(
    "mode, colour, expected",
    [
        ("RGB", (9, 8, 7), (9, 8, 7)),
        ("L", 100, (100, 100, 100)),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("LA", (10, 255), (10, 10, 10)),
        ("P", 0, (0, 0, 0)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 65535, (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, colour, expected):
    path = tmp_path / "picture.png"
    Image.new(mode, (5, 4), colour).save(path)
    picture = open_picture(path)
    assert picture.mode == "RGB" and picture.size == (5, 4)
    assert picture.getpixel((0, 0)) == expected


def test_cmyk_and_exif(tmp_path):
    Image.new("CMYK", (5, 4)).save(tmp_path / "c.jpg")
    assert open_picture(tmp_path / "c.jpg").getpixel((0, 0)) == (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # lying on its side
    Image.new("RGB", (5, 4)).save(tmp_path / "e.jpg", exif=exif)
    assert open_picture(tmp_path / "e.jpg").size == (4, 5)


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.fromarray(np.full((4, 4, 3), v, np.uint8)) for v in (0, 250)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert open_picture(tmp_path / "a.gif").getpixel((0, 0)) == (0, 0, 0)


def bomb(path, side):
    """A PNG whose header promises `side` × `side` pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)))


def test_pictures_that_cannot_be_used(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:1000])
    bomb(tmp_path / "large.png", 8_000)
    bomb(tmp_path / "bomb.png", 60_000)
    for name, sentence in {
        "none.png": "There is no file .*give the path",
        "": "is a folder; give a picture",
        "empty.png": "cannot be read as a picture",
        "text.png": "cannot be read as a picture",
        "cut.png": "cannot be read as a picture",
        "large.png": "8000 × 8000 pixels; give one of at most 50 megapixels",
        "bomb.png": "too large|60000 × 60000 pixels",
    }.items():
        with pytest.raises(InputError, match=sentence):
            open_picture(tmp_path / name)
    assert MAX_PIXELS == 50_000_000


def test_questions():
    assert check_question("  What?\n") == "What?"
    with pytest.raises(InputError, match="empty; ask something"):
        check_question(" \n")
    with pytest.raises(InputError, match="has 2001 characters; ask with at most 2000"):
        check_question("a" * 2001)


def write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_file_of_questions(tmp_path, red):
    rows = [{"id": i, "image": "red.png", "question": f"q{i}"} for i in (3, 1, 2)]
    out = tmp_path / "out.jsonl"
    assert ask_file(Echo(), write(tmp_path / "in.jsonl", *rows, ""), out, batch=2) == 3
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert answers == [{"id": i, "answer": f"(255, 0, 0) q{i}"} for i in (3, 1, 2)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl", "red.png"]


@pytest.mark.parametrize(
    "row, sentence",
    [
        ("{", "line 2 is not a JSON object"),
        ("[1]", "line 2 has no 'id'"),
        ({"id": 1, "image": "red.png"}, "line 2 has no 'question'"),
        ({"id": 1, "image": "blue.png", "question": "q"}, "line 2: There is no file"),
        ({"id": 1, "image": "red.png", "question": ""}, "line 2: The question is empty"),
    ],
)
def test_wrong_lines_are_named_before_anything_is_computed(tmp_path, red, row, sentence):
    good = {"id": 0, "image": "red.png", "question": "q"}
    with pytest.raises(InputError, match=sentence):
        ask_file(None, write(tmp_path / "in.jsonl", good, row), tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_files_that_cannot_be_used(tmp_path, red):
    with pytest.raises(InputError, match="cannot be read; give a JSONL file"):
        read_requests(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="has no lines"):
        read_requests(write(tmp_path / "in.jsonl", ""))
    file = write(tmp_path / "in.jsonl", {"id": 0, "image": "red.png", "question": "q"})
    with pytest.raises(InputError, match="cannot be written .*give another --out"):
        ask_file(Echo(), file, tmp_path / "no" / "out.jsonl")
