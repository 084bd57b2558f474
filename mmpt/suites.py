"""The zero-shot suites, miniatures of the papers' columns: questions from fixed seeds, never tuned on.

Each is scored by its benchmark's own metric (`mmpt.scoring`). None shares a kind of question, a phrasing or a scene
with the tuning tasks (`mmpt.tasks`).
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial

import numpy as np
from PIL import Image

from mmpt import mini_gqa, mini_vqa
from mmpt.mini_mme import MME_SUBTASKS
from mmpt.scenes import BACKGROUNDS, GROUP_OF, NAMES, SEEDS, article, make_scene
from mmpt.scoring import Metric, accuracy, one_of
from mmpt.settled import absent, apart, clear_groups, names_of, no_text, pick, placed, single

VERSION = "36523e69974f"  # of what results were asked: the beginning of a hash of all these questions and the tasks'
YES_NO = ("Yes", "No")
TRUE_FALSE = ("True", "False")
ENTAILMENT = ("entailment", "neutral", "contradiction")
DIGITS = tuple("0123456789")
ASKED = {  # how the miniature and the benchmark itself are asked alike
    "vsr": "{} Is this statement true or false?",
    "snli-ve": 'Sentence: "{}" Given the image, is it entailment, neutral or contradiction?',
    "cifar-10": "To which class does the picture belong: {}?",
    "cifar-100": "Classify the picture: what does it show? Answer with the class.",
    "mnist": "Which handwritten digit is this?",
}


@dataclass(frozen=True)
class SuiteQuestion:
    """A question on the picture of `seed`. `options` are the answers of a closed set, () where the set is open."""

    id: str
    seed: int | str  # of the scene; of a benchmark itself: the picture's name
    question: str
    answers: tuple[str, ...]
    options: tuple[str, ...] = ()
    group: str = ""  # subtask, split or type
    program: str = ""  # what mini-GQA asks, as JSON
    entailed: tuple[str, ...] = ()  # ids of questions whose answers follow from this one's


@dataclass(frozen=True)
class Suite:
    """One suite. `picture` draws the picture of a seed, `questions()` gives all questions, in a fixed order."""

    name: str
    column: str  # of the paper's table
    metric: str | Metric
    make: Callable[[int], Iterator[SuiteQuestion]]
    picture: Callable[[int], Image.Image]

    def questions(self) -> list[SuiteQuestion]:
        return list(self.make(SEEDS["suites"] + (list(SUITES).index(self.name) << 24)))

    def jsonl(self) -> str:
        """The questions as a JSONL file, byte for byte the same everywhere."""
        return "".join(json.dumps(asdict(q), ensure_ascii=False) + "\n" for q in self.questions())


SUITES: dict[str, Suite] = {}


def _scene_picture(seed):
    return make_scene(seed).image


def suite(name: str, column: str, metric: str | Metric, picture=_scene_picture):
    """Register a generator of questions, `first seed → questions`, as a suite."""

    def register(make):
        SUITES[name] = Suite(name, column, metric, make, picture)
        return make

    return register


def _fitting(first: int, n: int, find) -> Iterator:
    """`n` of (number, seed, what `find(scene, rng)` returned), over consecutive seeds, where it found something."""
    number, seed = 0, first
    while number < n:
        found = find(make_scene(seed), random.Random(seed))
        if found:
            yield number, seed, found
            number += 1
        seed += 1


@suite("mini-mme", "MME", "mme")
def mini_mme(first):
    for i, (subtask, find) in enumerate(MME_SUBTASKS.items()):
        for number, seed, texts in _fitting(first + (i << 20), 60, find):
            for text, answer in zip(texts, YES_NO):
                yield SuiteQuestion(
                    f"{subtask}-{number}-{answer.lower()}",
                    seed,
                    f"{text} Please answer yes or no.",
                    (answer,),
                    YES_NO,
                    subtask,
                )


@suite("mini-textvqa", "Text-VQA", "vqa")
def mini_textvqa(first):
    texts = ("What word is written on the sign?", "What can one read on the sign?")
    for number, seed, word in _fitting(first, 400, lambda scene, rng: scene.word and scene.word.name):
        yield SuiteQuestion(f"textvqa-{number}", seed, texts[number % 2], (word,) * 10)


_RELATIONS = (("left of", "right of"), ("above", "below"))


@suite("mini-vsr", "VSR", "vsr")
def mini_vsr(first):
    def find(scene, rng):
        axis = rng.randrange(2)
        pair = apart(scene, rng, axis)
        return pair and (pair, axis, pair[0].centre[axis] < pair[1].centre[axis])

    for number, seed, ((a, b), axis, before) in _fitting(first, 400, find):
        true = number % 2 == 0
        relation = _RELATIONS[axis][before != true]
        text = ASKED["vsr"].format(f"The {a.name} is {relation} the {b.name}.")
        yield SuiteQuestion(f"vsr-{number}", seed, text, ("True" if true else "False",), TRUE_FALSE)


_UNKNOWABLE = (
    "The {x} belongs to a child.", "The {x} was expensive.", "Somebody has just moved the {x}.",
    "The {x} is very old.", "The {x} was drawn on a Monday.", "Another {x} is behind the camera.",
    "Somebody misses the {x}.",
)  # fmt: skip
_OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}


def _hypothesis(scene, rng, label):
    thing = pick(rng, single(scene))
    if not thing:
        return None
    if label == "neutral":
        return rng.choice(_UNKNOWABLE).format(x=thing.name)
    true = label == "entailment"
    kind = rng.choice(("object", "background", "number", "group", "place"))
    if kind == "background":
        colour = scene.background if true else rng.choice([c for c in BACKGROUNDS if c != scene.background])
        return f"The surface behind everything is {colour}."
    if kind == "number" and no_text(scene):
        n = len(scene.objects)
        n = n if true else rng.choice([i for i in range(1, 6) if i != n])
        return f"There {'is one object' if n == 1 else f'are {n} objects'}."
    if kind == "group" and (clear := [g for g in clear_groups(scene) if g not in {t.group for t in scene.objects}]):
        return f"Something of the kind {thing.group if true else rng.choice(clear)} is there."
    side = next((side for side in _OPPOSITE if side in thing.place), None)
    if kind == "place" and side and placed([thing]):
        return f"The {thing.name} stands towards the {side if true else _OPPOSITE[side]}."
    return f"There is {article(thing.name if true else absent(scene, rng, 1)[0])}."


@suite("mini-snli-ve", "SNLI-VE", "snli_ve")
def mini_snli_ve(first):
    found = [_fitting(first + (i << 20), 134, partial(_hypothesis, label=label)) for i, label in enumerate(ENTAILMENT)]
    for parts in zip(*found):
        for label, (number, seed, hypothesis) in zip(ENTAILMENT, parts):
            text = ASKED["snli-ve"].format(hypothesis)
            yield SuiteQuestion(f"snli-ve-{label}-{number}", seed, text, (label,), ENTAILMENT)


CIFAR_10 = ("airplane", "car", "duck", "cat", "horse", "dog", "frog", "sheep", "boat", "truck")
CIFAR_100 = tuple(sorted(random.Random(100).sample(NAMES, 100)))


def _cifar_scene(seed):
    return make_scene(seed, n_objects=1, text=0)


def _cifar_picture(seed: int) -> Image.Image:
    """The object of a scene with one, cut out, shrunk to 32 × 32 pixels and blurred by enlarging it again."""
    scene = _cifar_scene(seed)
    x, y, w, h = scene.objects[0].box
    side = min(scene.size, round(1.3 * max(w, h)))
    left = min(max(0, x + (w - side) // 2), scene.size - side)
    top = min(max(0, y + (h - side) // 2), scene.size - side)
    small = scene.image.crop((left, top, left + side, top + side)).resize((32, 32), Image.Resampling.BILINEAR)
    noise = np.random.default_rng(seed).integers(-12, 13, (32, 32, 3))
    small = Image.fromarray((np.asarray(small).astype(int) + noise).clip(0, 255).astype(np.uint8))
    return small.resize((scene.size, scene.size), Image.Resampling.BILINEAR)


def _cifar(first, name, classes, text):
    seed, wanted = first, Counter({label: 400 // len(classes) for label in classes})
    while +wanted:
        label = _cifar_scene(seed).objects[0].name
        if wanted[label] > 0:
            wanted[label] -= 1
            yield SuiteQuestion(f"{name}-{seed - first}", seed, text, (label,), classes)
        seed += 1


@suite("mini-cifar-10", "CIFAR-10", Metric(accuracy, {"strict": one_of(*CIFAR_10)}, CIFAR_10), _cifar_picture)
def mini_cifar_10(first):
    return _cifar(first, "cifar-10", CIFAR_10, ASKED["cifar-10"].format(", ".join(CIFAR_10)))


@suite("mini-cifar-100", "CIFAR-100", Metric(accuracy, {"strict": one_of(*CIFAR_100)}, CIFAR_100), _cifar_picture)
def mini_cifar_100(first):
    return _cifar(first, "cifar-100", CIFAR_100, ASKED["cifar-100"])


@cache
def _digits():
    from sklearn.datasets import load_digits

    return load_digits()


def _mnist_picture(seed: int) -> Image.Image:
    """A real handwritten digit (scikit-learn's, 8 × 8), white on black as in MNIST, enlarged; `seed` is its index."""
    ink = _digits().images[seed] / 16 * 255
    return Image.fromarray(ink.astype(np.uint8)).resize((112, 112), Image.Resampling.BICUBIC).convert("RGB")


@suite("mini-mnist", "MNIST", Metric(accuracy, {"strict": one_of(*DIGITS)}, DIGITS), _mnist_picture)
def mini_mnist(first):
    wanted = Counter({label: 40 for label in DIGITS})
    for i in random.Random(0).sample(range(len(_digits().target)), len(_digits().target)):
        label = str(_digits().target[i])
        if wanted[label] > 0:
            wanted[label] -= 1
            yield SuiteQuestion(f"mnist-{i}", i, ASKED["mnist"], (label,), DIGITS)


@suite("mini-pope", "POPE", "pope")
def mini_pope(first):
    scenes = {seed: make_scene(seed) for seed in range(first, first + 200)}
    counts = Counter(name for scene in scenes.values() for name in {thing.name for thing in scene.objects})
    popular = [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:20]]
    for split in ("random", "popular", "adversarial"):
        for seed, scene in scenes.items():
            rng = random.Random(f"{split} {seed}")
            there = [thing.name for thing in scene.objects]
            near = [name for name in NAMES if GROUP_OF[name] in {GROUP_OF[other] for other in there}]
            pool = {"random": NAMES, "popular": popular, "adversarial": near}[split]
            missing = rng.choice([name for name in pool if name not in names_of(scene)])
            for name, answer in ((random.Random(seed).choice(there), "Yes"), (missing, "No")):
                text = f"Is there {article(name)} in the image?"
                yield SuiteQuestion(f"{split}-{seed - first}-{answer.lower()}", seed, text, (answer,), YES_NO, split)


_SHORT = " Answer the question using a single word or phrase."  # as LLaVA is asked on VQAv2 and GQA


@suite("mini-vqa", "VQAv2", "vqa")
def mini_vqa_questions(first):
    kinds = [(group, kind) for group, kinds in mini_vqa.KINDS.items() for kind in kinds]
    for i, (group, kind) in enumerate(kinds):
        find = partial(mini_vqa.find, kind=kind, given=Counter(), most=mini_vqa.MOST[group])
        for number, seed, (text, answers) in _fitting(first + (i << 20), mini_vqa.EACH, find):
            yield SuiteQuestion(f"vqa-{i * mini_vqa.EACH + number}", seed, text + _SHORT, answers, group=group)


@suite("mini-gqa", "GQA", "gqa", lambda seed: mini_gqa.scene_of(seed).image)
def mini_gqa_questions(first):
    for asked in mini_gqa.questions(first):
        text, entailed = mini_gqa.worded(asked.program) + _SHORT, tuple(f"gqa-{i}" for i in asked.entailed)
        program = json.dumps(asked.program)
        yield SuiteQuestion(
            f"gqa-{asked.number}", asked.seed, text, (asked.answer,), (), asked.kind, program, entailed
        )


# What is evaluated together: the columns of M²PT's paper, and those of MPT4LM's.
TOGETHER = {
    "mini": tuple(name for name in SUITES if name not in ("mini-vqa", "mini-gqa")),
    "mpt4lm": ("mini-vqa", "mini-gqa", "mini-snli-ve"),
}
