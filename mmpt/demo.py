"""`make demo`: three pictures, a few questions each, answered before and after tuning, with the truth."""

import sys
import textwrap

from mmpt import console
from mmpt.questions import Question, correct
from mmpt.scenes import Scene, article, make_scene
from mmpt.settled import first

SEEDS = (11, 76, 110)  # without digit and sign, and nothing about them is a tie
WIDTHS = (33, 28, 22, 12)  # question, before, after, truth: under 100 columns with the gaps


def questions(scene: Scene) -> list[Question]:
    """Questions with their true answers."""
    return [
        Question("count", "How many objects are in the picture?", str(len(scene.objects)), "number"),
        Question("background", "What colour is the background?", scene.background, "colour"),
        Question("leftmost", "What is the leftmost object?", article(first(scene, 0).name), "name"),
        Question("topmost", "Which object is highest up?", article(first(scene, 1).name), "name"),
    ]


def row(cells) -> str:
    """Cells side by side, wrapped to `WIDTHS`."""
    wrapped = [textwrap.wrap(cell, width) or [""] for cell, width in zip(cells, WIDTHS)]
    height = max(map(len, wrapped))
    lines = zip(*(part + [""] * (height - len(part)) for part in wrapped))
    return "\n".join(" ".join(f"{text:<{width}}" for text, width in zip(line, WIDTHS)).rstrip() for line in lines)


def run(adapter: str = "m2pt") -> None:
    import mmpt

    print("Loading the model (the first time, its weights are converted: half a minute) ...", flush=True)
    backbone = mmpt.load("tiny", adapter=adapter)
    right, total = {"before": 0, "after": 0}, 0
    for seed in SEEDS:
        scene = make_scene(seed)
        asked = questions(scene)
        images, texts = [scene.image] * len(asked), [q.question for q in asked]
        with backbone.use(None):
            before = backbone.answer(images, texts, max_new_tokens=24)
        after = backbone.answer(images, texts, max_new_tokens=24)
        things = ", ".join(f"{article(t.name)} ({t.place})" for t in scene.objects)
        print(f"\nPicture {seed}: on {scene.background}, {things}")
        print(row(("question", "before tuning", f"after ({adapter})", "truth")))
        print(row(["-" * width for width in WIDTHS]))
        for question, old, new in zip(asked, before, after):
            print(row((question.question, old, new, question.answer)))
            right["before"] += correct(question, old)
            right["after"] += correct(question, new)
        total += len(asked)
    print(f"\nRight: {right['before']} of {total} before tuning, {right['after']} of {total} after.")
    print("The same in a browser, with pictures of your own: make app")


if __name__ == "__main__":
    sys.exit(console.run("mmpt", run))
