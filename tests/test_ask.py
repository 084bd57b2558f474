import json
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmpt.adapters import adapter_folder
from mmpt.ask import MAX_PIXELS, ask_file, check_question, open_picture, read_requests
from mmpt.data import read_examples
from mmpt.errors import InputError
from mmpt.files import check_writable, make_folder, write_whole
from mmpt.runs import find_run


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


def test_deep_greyscale(tmp_path):
    wide = np.array([[0, 65535]], np.uint16)
    for name, picture in (
        ("big.tif", Image.frombytes("I;16B", (2, 1), wide.astype(">u2").tobytes())),
        ("float.tif", Image.fromarray(np.array([[0, 1]], np.float32))),
    ):
        picture.save(tmp_path / name)
        found = open_picture(tmp_path / name)
        assert [found.getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), (255, 255, 255)]


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
    """A PNG of a few bytes whose header promises `side` × `side` pixels."""

    def chunk(body):
        return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT" + zlib.compress(b"")) + chunk(b"IEND"))


def test_pictures_that_cannot_be_used(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    for kind in ("png", "jpg", "webp", "gif", "tiff", "bmp"):
        Image.fromarray(noise).save(tmp_path / f"whole.{kind}")
        whole = (tmp_path / f"whole.{kind}").read_bytes()
        (tmp_path / f"cut.{kind}").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "drawing.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    os.mkfifo(tmp_path / "pipe")
    bomb(tmp_path / "large.png", 8_000)
    bomb(tmp_path / "bomb.png", 60_000)
    for name, sentence in {
        "none.png": "There is no file .*give the path",
        "": "is a folder; give a picture",
        "empty.png": "cannot be read as a picture",
        "text.png": "cannot be read as a picture",
        **{f"cut.{kind}": "cannot be read as a picture" for kind in ("png", "jpg", "webp", "gif", "tiff", "bmp")},
        "drawing.eps": "cannot be read as a picture; give a whole PNG, JPEG",
        "pipe": "is no regular file; give a picture",
        "no\0name": "cannot be read as a picture",
        "large.png": "8000 × 8000 pixels; give one of at most 50 megapixels",
        "bomb.png": "too large|60000 × 60000 pixels",
    }.items():
        with pytest.raises(InputError, match=sentence) as caught:
            open_picture(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert MAX_PIXELS == 50_000_000


def test_damaged_pictures_are_read_or_refused(tmp_path):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("png", "jpg", "webp", "gif", "tiff", "bmp"):
        noise.save(tmp_path / f"whole.{kind}", **({} if kind in ("gif", "bmp") else {"exif": exif}))
        whole = np.frombuffer((tmp_path / f"whole.{kind}").read_bytes(), np.uint8)
        for _ in range(60):
            damaged = whole.copy()
            damaged[rng.integers(0, min(300, len(whole)), 4)] = rng.integers(0, 256, 4)
            (tmp_path / "damaged").write_bytes(damaged.tobytes())
            try:
                assert open_picture(tmp_path / "damaged").mode == "RGB"
            except InputError:
                pass


def test_questions():
    assert check_question("  What?\n") == "What?"
    with pytest.raises(InputError, match="empty; ask something"):
        check_question(" \n")
    with pytest.raises(InputError, match="has 2001 characters; ask with at most 2000"):
        check_question("a" * 2001)
    with pytest.raises(InputError, match=r"'\\ud83d' is half of a character; write it whole, in UTF-8"):
        check_question("What \ud83d?")


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
        ("[1]", "line 2 is not a JSON object"),
        ('"id, image, question"', "line 2 is not a JSON object"),
        ({"id": 1, "image": None, "question": "q"}, "line 2: image is None; give a text"),
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
    for out in (tmp_path / "no" / "out.jsonl", tmp_path):
        with pytest.raises(InputError, match="cannot be written; give a file in a folder that exists"):
            ask_file(None, file, out)


def test_the_questions_are_not_written_over(tmp_path, red):
    file = write(tmp_path / "in.jsonl", {"id": 0, "image": "red.png", "question": "q"})
    with pytest.raises(InputError, match="in.jsonl holds the questions; give another file for the answers"):
        ask_file(None, file, tmp_path / "." / "in.jsonl")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt])
def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch, error):
    (tmp_path / "old").write_text("old")
    write_bytes = Path.write_bytes

    def half(path, content):
        write_bytes(path, content[:1])
        raise error

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises((InputError, KeyboardInterrupt), match=r"cannot be written \(No space left on device\)|^$"):
        write_whole(tmp_path / "old", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["old"] and (tmp_path / "old").read_text() == "old"


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such files")
def test_devices_links_and_rights_stay_as_they_are(tmp_path):
    (tmp_path / "real").touch(0o600)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "device").symlink_to("/dev/null")
    for name in ("link", "device"):
        check_writable(tmp_path / name)
        write_whole(tmp_path / name, "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o600
    assert Path("/dev/null").is_char_device() and (tmp_path / "device").read_text() == ""


def test_what_may_only_be_read_is_replaced_if_its_folder_may_be_written(tmp_path, monkeypatch):
    (tmp_path / "kept").touch(0o400)
    opened = []
    monkeypatch.setattr("mmpt.files.flush_to_disk", lambda file: opened.append(file.stat().st_mode & 0o200))
    write_whole(tmp_path / "kept", "new")
    assert opened == [0o200] and (tmp_path / "kept").stat().st_mode & 0o777 == 0o400


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="descriptors are no files here")
def test_a_redirected_output_is_written_to(tmp_path):
    with (tmp_path / "out.txt").open("w") as out:
        out.write("before\n")
        out.flush()
        write_whole(f"/dev/fd/{out.fileno()}", "new\n")
        out.write("after\n")
    assert (tmp_path / "out.txt").read_text() == "before\nnew\nafter\n"


def test_names_that_are_too_long(tmp_path):
    name = tmp_path / ("a" * 300)
    with pytest.raises(InputError, match="cannot be written .File name too long"):
        check_writable(name)
        write_whole(name, "new")
    write_whole(tmp_path / ("a" * 250), "new")  # for which the scratch file has a shorter one
    with pytest.raises(InputError, match="There is no adapter"):
        adapter_folder(name)
    with pytest.raises(InputError, match="There is nothing to tune on"):
        read_examples(name)
    assert find_run(name, False) == (None, None)
    with pytest.raises(InputError, match="cannot be made"):
        make_folder(name)
