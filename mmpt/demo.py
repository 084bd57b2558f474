"""`make demo`: three pictures, a few questions each, answered before and after tuning, with the truth."""

import sys
import textwrap

from mmpt.errors import InputError
from mmpt.scenes import Scene, article, make_scene

SEEDS = (4, 13, 34)
WIDTHS = (34, 27, 22, 13)  # question, before, after, truth: 100 columns with the gaps


def questions(scene: Scene) -> list[tuple[str, str]]:
    """(question, true answer) pairs that every scene without digit and sign supports."""
    left = min(scene.objects, key=lambda thing: thing.centre[0])
    top = min(scene.objects, key=lambda thing: thing.centre[1])
    return [
        ("How many objects are in the picture?", str(len(scene.objects))),
        ("What colour is the background?", scene.background),
        ("What is the leftmost object?", article(left.name)),
        ("Which object is highest up?", article(top.name)),
    ]


def row(cells) -> str:
    """Cells side by side, wrapped to `WIDTHS`."""
    wrapped = [textwrap.wrap(cell, width) or [""] for cell, width in zip(cells, WIDTHS)]
    height = max(map(len, wrapped))
    lines = zip(*(part + [""] * (height - len(part)) for part in wrapped))
    return "\n".join(" ".join(f"{text:<{width}}" for text, width in zip(line, WIDTHS)).rstrip() for line in lines)


def run(adapter: str = "m2pt") -> None:
    import mmpt

    backbone = mmpt.load("tiny", adapter=adapter)
    for seed in SEEDS:
        scene = make_scene(seed)
        asked = questions(scene)
        images = [scene.image] * len(asked)
        texts = [question for question, _ in asked]
        with backbone.use(None):
            before = backbone.answer(images, texts, max_new_tokens=24)
        after = backbone.answer(images, texts, max_new_tokens=24)
        things = ", ".join(f"{article(t.name)} ({t.place})" for t in scene.objects)
        print(f"\nPicture {seed}: on {scene.background}, {things}")
        print(row(("question", "before tuning", f"after ({adapter})", "truth")))
        print(row(["-" * width for width in WIDTHS]))
        for (question, truth), old, new in zip(asked, before, after):
            print(row((question, old, new, truth)))
    print("\nThe same in a browser, with pictures of your own: make app")


def main() -> int:
    try:
        run()
    except InputError as error:
        print(f"mmpt: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
