"""Instruction tasks over scenes, the miniature of Vision-Flan: questions with exact answers from a scene's truth.

A task is one function, registered by `@task` with its phrasings. It returns None where the scene does not settle the
answer: a tie, two objects of the asked name, something near the line that divides two answers. Negatives are drawn
among plausible absent things; yes and no, and the sides of a choice, come equally often.

Names are answered with their article ("a cow"), but bare where one word is asked for: after a space every name is one
token of SmolLM2, at the start of an answer 105 of 166 are several.
"""

import math
import random
from collections import Counter
from collections.abc import Iterable

from mmpt.errors import InputError
from mmpt.questions import TASKS, Question, Task, ask, ask_letter, correct, listed, task
from mmpt.scenes import BACKGROUNDS, GROUPS, WORDS, Scene, article, at, make_scene
from mmpt.settled import (
    absent,
    alike,
    alone,
    apart,
    clear_groups,
    empty_halves,
    even_count,
    first,
    no_text,
    of_clear_colour,
    pick,
    placed,
    single,
)

__all__ = ["TASKS", "Question", "Task", "ask_about", "check_tasks", "correct", "questions_of"]


def ask_about(scene: Scene, rng: random.Random, n: int, tasks: Iterable[str] | None = None) -> list[Question]:
    """Up to `n` questions on `scene`, each of another task; fewer where fewer of `tasks` (None: all) fit.

    Over many scenes every task comes about equally often, one that is named twice up to twice as often: what seldom
    fits is tried first (weighted sampling without replacement with weights named/fits, Efraimidis and
    Spirakis 2006).

    Args:
        tasks: names; "all" stands for every one.

    Raises:
        InputError: `tasks` is empty or holds an unknown name.
    """
    given = check_tasks("all" if tasks is None else tasks)
    named = Counter(task for name in given for task in (TASKS if name == "all" else (name,)))
    questions = []
    for name in sorted(named, key=lambda name: -(rng.random() ** (TASKS[name].fits / named[name]))):
        if len(questions) < n and (question := TASKS[name].make(scene, rng)):
            questions.append(question)
    rng.shuffle(questions)
    return questions


def questions_of(name: str, n: int, first: int) -> list[tuple[Scene, Question]]:
    """The first `n` questions of one task, on scenes from the seed `first` on."""
    found, seed = [], first
    while len(found) < n:
        scene = make_scene(seed)
        if question := TASKS[name].make(scene, random.Random(seed)):
            found.append((scene, question))
        seed += 1
    return found


def check_tasks(names: Iterable[str]) -> tuple[str, ...]:
    """`names`, each a task or "all", as a tuple; InputError for an unknown one, or where there is none."""
    names = (names,) if isinstance(names, str) else tuple(names)
    unknown = [name for name in names if name not in ("all", *TASKS)]
    if unknown or not names:
        problem = f"There is no task {unknown[0]!r}" if unknown else "No task is named"
        raise InputError(f"{problem}; give all, or some of {', '.join(TASKS)}.")
    return names


# fmt: off
# --- how many, and the background ---

@task("number", 0.28, 0.64, "How many objects there are.",
      "How many objects are in the picture?", "Count the objects.",
      "What is the number of objects here? Answer with a digit.", "How many things are drawn? Give just the number.")
def count(scene, rng):
    return no_text(scene) and ask(str(len(scene.objects)))

@task("choice", 0.5, 0.23, "Whether there is one object or several.",
      "Does the picture show one object or several?", "One object, or several of them?",
      "Is a lone object drawn or are there several? Answer one or several.",
      "Choose {choices}: how many objects do you see?")
def one_or_several(scene, rng):
    one = len(scene.objects) == 1
    asked = no_text(scene) and (one or rng.random() < 2 / 9)  # one object: 2 scenes in 11
    return asked and ask("one" if one else "several", options=("one", "several"))

@task("number", 0.34, 0.6, "How many objects have a given name.",
      "How often do you see {x}?", "How many times is {x} drawn?",
      "Count each time that {x} appears. Answer with a digit.", "Give the number of times that you find {x}.")
def count_name(scene, rng):
    counts = Counter(thing.name for thing in scene.objects)
    counts[absent(scene, rng, 1)[0]] = 0
    name = even_count(rng, counts, 0.25)
    return name and ask(str(counts[name]), x=article(name))

@task("number", 0.33, 0.69, "How many objects belong to a given group.",
      "How many objects belong to the group {g}?", "Count the objects of the group {g}.",
      "Group {g}: how many objects?", "What is the number of objects in the group {g}? Answer with a digit.")
def count_group(scene, rng):
    present = Counter(thing.group for thing in scene.objects)
    group = even_count(rng, {group: present[group] for group in clear_groups(scene)}, 0.3)
    return group and ask(str(present[group]), g=group)

@task("yes/no", 0.5, 0.94, "Whether one group has more objects than another.",
      "Are there more objects of the group {g} than of the group {h}?", "Does {g} outnumber {h} in this picture?",
      "Is the group {g} more frequent here than the group {h}? Answer yes or no.",
      "Comparing the groups {g} and {h}: does the first have more objects? Say yes or no.")
def more(scene, rng):
    present, clear = Counter(thing.group for thing in scene.objects), clear_groups(scene)
    pairs = [(g, h) for g in clear for h in clear if present[g] > present[h] and not alike(g, h)]
    pair = pick(rng, [pair for pair in pairs if present[pair[1]]] or pairs)
    yes = rng.random() < 0.5
    return pair and ask("Yes" if yes else "No", g=pair[not yes], h=pair[yes])

@task("colour", 0.1, 1, "The background's colour.",
      "What colour is the background?", "Name the background's colour.",
      "Which colour lies behind the objects? Answer with one word.", "What is the main colour of the picture?")
def background(scene, rng):
    return ask(scene.background)

@task("yes/no", 0.5, 1, "Whether the background has a given colour.",
      "Is the background {c}?", "Would you call the background {c}? Answer yes or no.",
      "Does everything stand on {c} ground?", "Is {c} the colour behind it all? Reply with yes or no.")
def background_is(scene, rng):
    yes = rng.random() < 0.5
    colour = scene.background if yes else rng.choice([c for c in BACKGROUNDS if c != scene.background])
    return ask("Yes" if yes else "No", c=colour)

@task("letter", 0.25, 1, "The background's colour, as the letter of a multiple choice.",
      "Which colour has the background? {letters}", "Background colour: {letters} Which letter is right?",
      "Pick the background's colour. {letters} Answer with the letter.", "The background is: {letters}")
def letter_background(scene, rng):
    return ask_letter(rng, scene.background, rng.sample([c for c in BACKGROUNDS if c != scene.background], 3))

# --- places ---

@task("name", 0.01, 0.87, "The object at a given place.",
      "What is {at}?", "Name the object {at}.", "Which object do you see {at}?",
      "What stands {at}? Answer with one word.")
def at_place(scene, rng):
    thing = pick(rng, alone(scene))
    return thing and ask(thing.name, at=at(thing.place))

@task("place", 0.13, 0.85, "The place of a given object.",
      "Where is the {x}?", "In which part of the picture is the {x}?",
      "At what place do you find the {x}? Answer with the place only.", "Locate the {x} in a word or two.")
def place(scene, rng):
    thing = pick(rng, placed(single(scene)))
    return thing and ask(thing.place, x=thing.name)

@task("place", 0.22, 0.14, "The place of the sign.",
      "Where is the sign?", "In which part of the picture is the sign?",
      "At what place do you find the sign? Answer with the place only.", "Locate the sign in a word or two.")
def where_sign(scene, rng):
    return scene.word and placed([scene.word]) and ask(scene.word.place)

@task("place", 0.14, 0.15, "The place of the digit.",
      "Where is the digit?", "In which part of the picture is the digit?",
      "At what place do you find the digit? Answer with the place only.", "Locate the digit in a word or two.")
def where_digit(scene, rng):
    return scene.digit and placed([scene.digit]) and ask(scene.digit.place)

@task("name", 0.01, 0.57, "The leftmost object.",
      "What is the leftmost object?", "Which object is furthest to the left?",
      "Name the object closest to the left edge.", "What comes first from the left? Answer with one word.")
def leftmost(scene, rng):
    return (thing := first(scene, 0)) and ask(thing.name)

@task("name", 0.01, 0.56, "The topmost object.",
      "What is the topmost object?", "Which object is highest up?", "Name the object closest to the upper edge.",
      "What comes first from the top? Answer with one word.")
def topmost(scene, rng):
    return (thing := first(scene, 1)) and ask(thing.name)

@task("name", 0.01, 0.56, "The bottommost object.",
      "What is the bottommost object?", "Which object is lowest down?", "Name the object closest to the lower edge.",
      "What comes first from the bottom? Answer with one word.")
def bottommost(scene, rng):
    return (thing := first(scene, 1, -1)) and ask(thing.name)

@task("name", 0.01, 0.24, "The object nearest to a given one, from centre to centre.",
      "Which object is nearest to the {x}?", "What is closest to the {x}?", "Name the nearest neighbour of the {x}.",
      "What stands next to the {x}? Answer with one word.")
def nearest(scene, rng):
    thing = pick(rng, single(scene))
    if not thing or len(scene.objects) < 3:
        return None
    near = sorted((math.dist(t.centre, thing.centre), t.name) for t in scene.things if t is not thing)
    clear = near[1][0] - near[0][0] > 0.1 * scene.size and near[0][1] in [t.name for t in scene.objects]
    return clear and ask(near[0][1], x=thing.name)

@task("choice", 0.5, 0.63, "On which side of another object a given one is.",
      "Is the {x} left or right of the {y}?", "On which side of the {y} is the {x}, {choices}?",
      "Choose {choices}: the {x} is on which side of the {y}?",
      "Seen from the {y}, is the {x} to the left or to the right? Answer with one word.")
def left_or_right(scene, rng):
    pair = apart(scene, rng, 0)
    return pair and ask("left" if pair[0].centre[0] < pair[1].centre[0] else "right",
                         options=("left", "right"), x=pair[0].name, y=pair[1].name)

@task("choice", 0.5, 0.63, "Whether an object is above or below another.",
      "Is the {x} above or below the {y}?", "Choose {choices}: where is the {x}, seen from the {y}?",
      "Compare heights: is the {x} {choices} the {y}?",
      "Looking from the {y}, do you find the {x} above or below? Answer with one word.")
def above_or_below(scene, rng):
    pair = apart(scene, rng, 1)
    return pair and ask("above" if pair[0].centre[1] < pair[1].centre[1] else "below",
                         options=("above", "below"), x=pair[0].name, y=pair[1].name)

@task("choice", 0.5, 0.88, "In which half of the picture an object is.",
      "Is the {x} in the left half or the right half?",
      "Cut the picture down the middle: on which side is the {x}, {choices}?", "Which half holds the {x}, {choices}?",
      "Left or right half for the {x}? Answer with one word.")
def half(scene, rng):
    thing = pick(rng, [t for t in single(scene) if abs(t.centre[0] / scene.size - 0.5) > 0.1])
    return thing and ask("left" if thing.centre[0] < scene.size / 2 else "right",
                          options=("left", "right"), x=thing.name)

@task("yes/no", 0.5, 0.14, "Whether a half is empty, where one half is and another is not.",
      "Is the {side} half of the picture empty?", "Has the {side} half been left free? Answer yes or no.",
      "Is there nothing in the {side} half?", "Is the {side} half without any thing? Say yes or no.")
def empty_half(scene, rng):
    free, wanted = empty_halves(scene), rng.random() < 0.5
    asked = {True, False} <= set(free.values())
    return asked and ask("Yes" if wanted else "No", side=rng.choice([s for s in free if free[s] is wanted]))

# --- what things are ---

@task("group", 0.11, 0.96, "The group of a given object.",
      "Which group does the {x} belong to?", "What kind of thing is the {x}?",
      "To what group would you assign the {x}? Name the group only.", "Sort the {x} into its group.")
def group(scene, rng):
    thing = pick(rng, single(scene))
    return thing and ask(thing.group, x=thing.name)

@task("choice", 1 / 3, 0.87, "The group of the object at a given place, out of three.",
      "Which group does the thing {at} belong to, {choices}?",
      "What do you see {at}, something of the group {choices}?", "One of {choices}: which group fits the object {at}?",
      "Choose the group of the object {at}: {choices}.")
def group_at(scene, rng):
    thing = pick(rng, alone(scene))
    if not thing:
        return None
    wrong = rng.choice([g for g in GROUPS if not alike(g, thing.group)])
    third = rng.choice([g for g in GROUPS if not alike(g, thing.group) and not alike(g, wrong)])
    return ask(thing.group, options=rng.sample((thing.group, wrong, third), 3), at=at(thing.place))

@task("name", 0.01, 0.68, "The one object of a given group.",
      "Which object belongs to the group {g}?", "Name the object that belongs to the group {g}.",
      "Find the one that is of the group {g}. What is it?", "What in the picture counts as {g}? Answer with one word.")
def of_group(scene, rng):
    present, clear = Counter(thing.group for thing in scene.objects), clear_groups(scene)
    thing = pick(rng, [t for t in scene.objects if present[t.group] == 1 and t.group in clear])
    return len(scene.objects) > 1 and thing and ask(thing.name, g=thing.group)

@task("choice", 0.5, 0.24, "Whether two objects belong to the same group.",
      "Are the {x} and the {y} of the same group or of different groups?", "The {x} and the {y}: {choices} group?",
      "Do the {x} and the {y} have the same group or a different one? Answer with one word.",
      "Compare the groups of the {x} and the {y}: {choices}?")
def same_group(scene, rng):
    pairs = [(a, b) for a in single(scene) for b in single(scene) if a is not b]
    same = [pair for pair in pairs if pair[0].group == pair[1].group]
    pair = pick(rng, same or [(a, b) for a, b in pairs if not alike(a.group, b.group)])
    asked = pair and (same or rng.random() < 0.22)
    return asked and ask("same" if same else "different", options=("same", "different"),
                          x=pair[0].name, y=pair[1].name)

@task("choice", 0.5, 0.45, "Whether an object is small or large, where there are both.",
      "Is the {x} small or large?", "What size is the {x}, {choices}?",
      "How large is the {x} drawn? Answer small or large.", "Choose {choices} for the size of the {x}.")
def size(scene, rng):
    wanted = rng.choice(("small", "large"))
    thing = pick(rng, [t for t in single(scene) if t.size == wanted])
    asked = thing and len({t.size for t in scene.objects}) == 2
    return asked and ask(wanted, options=("small", "large"), x=thing.name)

@task("name", 0.01, 0.21, "The one large object among small ones.",
      "Which object is the large one?", "Name the object that is drawn largest.",
      "One object is larger than the rest. What is it?", "What is the biggest object? Answer with one word.")
def large_one(scene, rng):
    large = [t for t in scene.objects if t.size == "large"]
    return no_text(scene) and len(scene.objects) > 1 == len(large) and ask(large[0].name)

@task("colour", 0.16, 0.89, "The colour of a given object.",
      "What colour is the {x}?", "Name the colour of the {x}.",
      "In which colour is the {x} drawn? Answer with one word.", "The {x} is mostly of what colour?")
def colour(scene, rng):
    thing = pick(rng, [t for t in single(scene) if t.colour])
    return thing and ask(thing.colour, x=thing.name)

@task("name", 0.01, 0.18, "The one object of a given colour.",
      "Which object is {c}?", "Name the {c} object.", "One object is {c}. What is it?",
      "What do you see that is drawn in {c}? Answer with one word.")
def of_colour(scene, rng):
    thing = pick(rng, of_clear_colour(scene))
    return thing and len(scene.objects) > 1 and ask(thing.name, c=thing.colour)

# --- what is in the picture ---

@task("choice", 0.5, 1, "Which of two named things is in the picture.",
      "Which is in the picture, {choices}?", "Of {choices}, which do you see?", "What is shown, {choices}? Name it.",
      "One of the two is here: {choices}. Which?")
def which_named(scene, rng):
    names = (rng.choice(scene.objects).name, absent(scene, rng, 1)[0])
    return ask(article(names[0]), options=[article(name) for name in rng.sample(names, 2)])

@task("choice", 1 / 3, 0.78, "Which of three named things is not in the picture.",
      "Which of these is not in the picture: {choices}?", "{choices}: which one is missing here?",
      "Name the one that is not shown: {choices}.", "Two of the three are here. Which is not, {choices}?")
def absentee(scene, rng):
    names = sorted({thing.name for thing in scene.objects})
    if len(names) < 2:
        return None
    names = [*rng.sample(names, 2), absent(scene, rng, 1)[0]]
    return ask(article(names[2]), options=[article(name) for name in rng.sample(names, 3)])

@task("letter", 0.25, 1, "Which of four named things is in the picture, as a letter.",
      "Which of these is in the picture? {letters}", "What do you see? {letters} Answer with the letter.",
      "Only one of them is shown: {letters} Which letter?", "Pick what the picture holds. {letters}")
def letter(scene, rng):
    return ask_letter(rng, rng.choice(scene.objects).name, absent(scene, rng, 3))

@task("names", 0, 0.4, "All objects.",
      "List all objects.", "Which objects are in the picture? Give a list.",
      "Name every object, with commas between them.", "What are all the things that you see? List them.")
def list_all(scene, rng):
    names = [thing.name for thing in scene.objects]
    asked = no_text(scene) and 1 < len(names) == len(set(names))
    return asked and ask(", ".join(map(article, names)))

@task("caption", 0, 0.4, "A caption with the objects and the background.",
      "Write a caption for the picture.", "Give a short caption: the objects, then the background.",
      "Sum up the picture in one line.", "What would you write under the picture?")
def caption(scene, rng):
    names = [thing.name for thing in scene.objects]
    asked = no_text(scene) and len(names) == len(set(names)) <= 3
    return asked and ask(f"{listed([article(n) for n in names], 'and')} on {article(scene.background)} background")

@task("yes/no", 0.5, 0.72, "Whether there is any digit or sign.",
      "Does the picture hold any text or digit?", "Is anything written in the picture?",
      "Do you see any writing, a sign or a digit? Answer yes or no.",
      "Has something been written there? Say yes or no.")
def any_text(scene, rng):
    asked = not no_text(scene) or rng.random() < 0.36 / 0.64  # text is in 36 scenes of 100
    return asked and ask("No" if no_text(scene) else "Yes")

@task("choice", 0.5, 0.2, "Whether the digit is odd or even.",
      "Is the digit odd or even?", "Look at the digit: is it {choices}?",
      "Odd or even: what is the digit? Answer with one word.", "Choose {choices} for the digit that you see.")
def parity(scene, rng):
    return scene.digit and ask(("even", "odd")[int(scene.digit.name) % 2], options=("odd", "even"))

@task("yes/no", 0.5, 0.2, "Whether the digit is greater than 4.",
      "Is the digit greater than 4?", "Is the digit 5 or more?", "Does the digit exceed four? Answer yes or no.",
      "Is the digit in the upper half of 0 to 9? Say yes or no.")
def digit_high(scene, rng):
    return scene.digit and ask("Yes" if int(scene.digit.name) > 4 else "No")

@task("choice", 0.5, 0.2, "Which of two words the sign says.",
      "Does the sign say {choices}?", "Which word is on the sign, {choices}?",
      "Choose the word on the sign: {choices}.",
      "{choices}: which of the two does the sign show? Answer with one word.")
def sign_word(scene, rng):
    if not scene.word:
        return None
    words = (scene.word.name, rng.choice([word for word in WORDS if word != scene.word.name]))
    return ask(words[0], options=rng.sample(words, 2))
# fmt: on
