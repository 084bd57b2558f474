"""The description that the embedded model learns in stage 1, and how well one names what is there."""

import re
from collections import Counter

from mmpt.scenes import NAMES, Scene, article, at

QUESTION = "Describe the picture."
QUESTIONS = (QUESTION, "What does the picture show?", "Describe everything that you see.")
_COUNTS = ("no", "one", "two", "three", "four", "five")


def describe(scene: Scene) -> str:
    """Background, count, and every thing with size and place, e.g.

    "A blue background with two objects: a small dog at the top left, a large cat in the middle. The digit 7 is at the
    right. A sign at the bottom says stop."
    """
    count = len(scene.objects)
    things = ", ".join(f"{article(t.size)} {t.name} {at(t.place)}" for t in scene.objects)
    objects = "object" if count == 1 else "objects"
    text = f"{article(scene.background).capitalize()} background with {_COUNTS[count]} {objects}: {things}."
    if scene.digit:
        text += f" The digit {scene.digit.name} is {at(scene.digit.place)}."
    if scene.word:
        text += f" A sign {at(scene.word.place)} says {scene.word.name}."
    return text


_OBJECT = re.compile(r"\b(small|large) (\w+) (?:at|in) the ((?:top|bottom)(?: left| right)?|left|right|middle)\b")


def compare(scene: Scene, text: str) -> dict[str, float]:
    """Counts over one description: objects, named and said (with multiplicity), false (said, not there); and shares
    for background, count, place and size (of the objects named), digit and word (where the scene has one)."""
    text = text.lower()
    # The background's word can be an object's too ("orange"), so it is read off its own phrase.
    background = re.search(r"\b(\w+) background", text)
    count = re.search(rf"\b({'|'.join(_COUNTS)}) objects?", text)
    listing = text[background.end() :] if background else text
    said = Counter(w for w in re.findall(r"[a-z]+", listing) if w in NAMES)
    there = Counter(t.name for t in scene.objects)
    named = sum((said & there).values())
    figures = {
        "objects": sum(there.values()),
        "named": named,
        "said": sum(said.values()),
        "false": sum(said.values()) - named,
        "background": float(background is not None and background.group(1) == scene.background),
        "count": float(count is not None and _COUNTS.index(count.group(1)) == len(scene.objects)),
    }
    phrases = [(size, name, place) for size, name, place in _OBJECT.findall(listing) if name in there]
    if phrases:
        figures["size"] = _share(
            ((size, name) for size, name, _ in phrases), ((t.size, t.name) for t in scene.objects)
        )
        figures["place"] = _share(
            ((name, place) for _, name, place in phrases), ((t.name, t.place) for t in scene.objects)
        )
    if scene.digit:
        figures["digit"] = float(f"digit {scene.digit.name}" in text)
    if scene.word:
        figures["word"] = float(f"says {scene.word.name}" in text)
    return figures


def _share(said, true):
    said, true = Counter(said), Counter(true)
    return sum((said & true).values()) / sum(said.values())
