import pytest

from mmpt.scenes import make_scene
from mmpt.tiny.describe import compare, describe


def shares(scene, text):
    return {k: v for k, v in compare(scene, text).items() if k not in ("objects", "named", "said", "false")}


def test_true_description_scores_full():
    for seed in range(300):
        scene = make_scene(seed)
        figures = compare(scene, describe(scene))
        assert figures["named"] == figures["objects"] == figures["said"] and figures["false"] == 0
        assert set(shares(scene, describe(scene)).values()) == {1.0}


def test_description_in_words():
    scene = make_scene(2)
    assert describe(scene) == (
        "A red background with one object: a large house at the right. The digit 9 is at the top left."
    )


@pytest.mark.parametrize(
    "text, named, said, false",
    [
        ("A yellow background with two objects: a large sock at the left, a small sun in the middle.", 2, 2, 0),
        ("A yellow background with two objects: a large sock at the left, a large sock at the top.", 1, 2, 1),
        ("An orange background with one object: a small orange at the left.", 0, 1, 1),
        ("", 0, 0, 0),
    ],
)
def test_names_count_with_multiplicity(text, named, said, false):
    scene = make_scene(0)  # a sock at the left, a motorcycle in the middle, a sun at the bottom right, on yellow
    figures = compare(scene, text)
    assert (figures["objects"], figures["named"], figures["said"], figures["false"]) == (3, named, said, false)


def test_places_sizes_and_background_are_read_apart():
    scene = make_scene(0)
    wrong = describe(scene).replace("large sock at the left", "small sock at the top").replace("A yellow", "A blue")
    figures = shares(scene, wrong)
    assert figures["place"] == figures["size"] == pytest.approx(2 / 3)
    assert figures["background"] == 0 and figures["count"] == 1
