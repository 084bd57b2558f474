"""Scenes: the same seed gives the same bytes, and the truth is what the pixels show."""

import colorsys
import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from mmpt.scenes import (
    BACKGROUNDS,
    COLOURS,
    GROUP_OF,
    GROUPS,
    NAMES,
    PLACES,
    SEEDS,
    SIZES,
    WORDS,
    Thing,
    _background,
    _sprite,
    article,
    make_scene,
    write_scenes,
)

DIGEST = """
import hashlib
from mmpt.scenes import make_scene
scenes = [make_scene(seed) for seed in range(20)]
print(hashlib.sha256(b"".join(s.image.tobytes() + repr(s.truth()).encode() for s in scenes)).hexdigest())
"""


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(seed) for seed in range(SEEDS["validation"], SEEDS["validation"] + 200)]


def test_same_seed_same_bytes_in_another_process():
    def digest(hash_seed):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        return subprocess.run(
            [sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True, env=environment
        ).stdout

    first = digest("1")
    assert first == digest("2")
    here = [make_scene(seed) for seed in range(20)]
    truth = b"".join(s.image.tobytes() + repr(s.truth()).encode() for s in here)
    assert first.strip() == hashlib.sha256(truth).hexdigest()
    assert len({s.image.tobytes() for s in here}) == 20


def test_vocabulary_is_rich_and_unambiguous():
    assert len(NAMES) == len(set(NAMES)) >= 150
    assert len(GROUPS) >= 9 and min(Counter(GROUP_OF.values()).values()) >= 5
    assert len(BACKGROUNDS) == 10 and len(WORDS) == len(set(WORDS)) >= 20
    assert not set(WORDS) & set(NAMES)
    coloured = [name for names in COLOURS.values() for name in names.split()]
    assert len(coloured) == len(set(coloured)) and set(coloured) <= set(NAMES)
    assert set(COLOURS) <= set(BACKGROUNDS)
    assert article("apple") == "an apple" and article("dog") == "a dog"


def test_uses_have_seeds_of_their_own():
    starts = sorted(SEEDS.values())
    assert starts[0] > 0 and all(b - a >= 1 << 32 for a, b in zip(starts, starts[1:]))


def bare_background(scene):
    """The shaded background that equals the picture wherever there is no thing."""
    pixels, free = np.asarray(scene.image), np.ones((scene.size, scene.size), bool)
    for thing in scene.things:
        x, y, w, h = thing.box
        free[y : y + h, x : x + w] = False
    for direction in range(8):
        for tint in range(3):
            bare = np.asarray(_background(scene.background, direction, tint, scene.size))
            if (bare == pixels)[free].all():
                return bare
    raise AssertionError(f"scene {scene.seed}: something is drawn outside of the boxes, or the background is another")


@pytest.mark.parametrize("size", [56, 112, 200])
def test_boxes_hold_all_that_is_drawn_and_are_tight(size):
    touched = total = 0
    for seed in range(40):
        scene = make_scene(seed, size)
        assert scene.image.size == (size, size) and scene.image.mode == "RGB"
        drawn = (np.asarray(scene.image) != bare_background(scene)).any(-1)
        for thing in scene.things:
            x, y, w, h = thing.box
            assert x >= 0 and y >= 0 and x + w <= size and y + h <= size
            inside = drawn[y : y + h, x : x + w]
            assert inside.mean() > 0.1
            touched += sum(side.any() for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
            total += 4
    assert touched > 0.97 * total  # a white rim on white ground may leave no trace


def test_nothing_overlaps(scenes):
    for scene in scenes:
        for i, a in enumerate(scene.things):
            for b in scene.things[:i]:
                (ax, ay, aw, ah), (bx, by, bw, bh) = a.box, b.box
                assert ax + aw <= bx or bx + bw <= ax or ay + ah <= by or by + bh <= ay


def test_truth_is_consistent(scenes):
    counts = Counter()
    for scene in scenes:
        assert 1 <= len(scene.objects) <= 5
        counts[len(scene.objects)] += 1
        rows = [PLACES.index(next(row for row in PLACES if t.place in row)) for t in scene.objects]
        assert rows == sorted(rows)  # reading order
        for thing in scene.things:
            x, y, w, h = thing.box
            column, row = int((x + w / 2) // (scene.size / 3)), int((y + h / 2) // (scene.size / 3))
            assert thing.place == PLACES[row][column]
            assert thing.size in SIZES
            assert thing.group == GROUP_OF.get(thing.name, "digit" if thing.name.isdigit() else "sign")
            if thing in scene.objects:
                assert max(w, h) == SIZES[thing.size]
        assert scene.background in BACKGROUNDS
        assert scene.digit is None or scene.digit.name in "0123456789"
        assert scene.word is None or scene.word.name in WORDS
    assert set(counts) == {1, 2, 3, 4, 5}
    assert {t.size for s in scenes for t in s.objects} == set(SIZES)
    assert 0.1 < sum(s.digit is not None for s in scenes) / len(scenes) < 0.3
    assert 0.1 < sum(s.word is not None for s in scenes) / len(scenes) < 0.3


def test_places_of_the_grid():
    def place(x, y):
        return Thing("dog", "animal", (x - 5, y - 5, 10, 10), "small", 112).place

    assert [place(10, 10), place(56, 10), place(56, 56), place(100, 56)] == ["top left", "top", "middle", "right"]
    assert [place(10, 100), place(37, 56), place(38, 56)] == ["bottom left", "left", "middle"]


def colour_word(r, g, b):
    """A pixel's colour in words, from hue, saturation and value; None for outlines."""
    hue, saturation, value = colorsys.rgb_to_hsv(r / 255, g / 255, b / 255)
    if value < 0.25:
        return None
    if saturation < 0.18:
        return "white" if value > 0.88 else "gray"
    bounds = ((14, "red" if saturation > 0.5 else "pink"), (40, "orange" if value > 0.8 else "brown"), (68, "yellow"),
              (170, "green"), (255, "blue"), (300, "purple"), (345, "pink"), (361, "red"))  # fmt: skip
    return next(word for bound, word in bounds if hue * 360 < bound)


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_are_what_most_pixels_show(colour):
    for name in COLOURS[colour].split():
        pixels = np.asarray(_sprite(name, "large", False, 0, 112)).reshape(-1, 4).tolist()
        words = Counter(colour_word(r, g, b) for r, g, b, alpha in pixels if alpha > 200)
        del words[None]
        assert words.most_common(1)[0][0] == colour, f"{name}: {words}"


def test_settings_are_obeyed():
    assert all(len(make_scene(seed, n_objects=n).objects) == n for n in range(1, 6) for seed in range(5))
    assert all(make_scene(seed, text=1).digit and make_scene(seed, text=1).word for seed in range(30))
    assert not any(make_scene(seed, text=0).digit or make_scene(seed, text=0).word for seed in range(30))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"size": 55}, "size is 55; a scene needs at least 56 px"),
        ({"n_objects": 0}, "n_objects is 0; a scene holds 1 to 5"),
        ({"n_objects": 6}, "n_objects is 6"),
        ({"text": 1.5}, "text is 1.5; give the share"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make_scene(0, **settings)


def test_write_scenes(tmp_path):
    path = write_scenes(tmp_path / "new" / "folder", 3, seed=7)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert path.name == "scenes.jsonl" and [row["id"] for row in rows] == [f"scene-00000{i}" for i in (7, 8, 9)]
    for row in rows:
        scene = make_scene(row["seed"])
        assert Image.open(path.parent / row["image"]).convert("RGB").tobytes() == scene.image.tobytes()
        assert row["background"] == scene.background and len(row["objects"]) == len(scene.objects)
        for given, thing in zip(row["objects"], scene.objects):
            assert given == {
                "name": thing.name,
                "group": thing.group,
                "box": list(thing.box),
                "size": thing.size,
                "place": thing.place,
                "colour": thing.colour,
            }


@pytest.mark.slow
def test_a_thousand_scenes_a_second():
    seeds = range(3000)
    for seed in seeds:  # caches sprites
        make_scene(seed)
    start = time.process_time()
    for seed in seeds:
        make_scene(seed)
    assert len(seeds) / (time.process_time() - start) > 1000
