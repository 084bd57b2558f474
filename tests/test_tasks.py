"""Tasks: answers are exact (an oracle reads the question and the scene's truth), balanced, and never in doubt."""

import random
import re
from collections import Counter, defaultdict

import pytest

from mmpt.errors import InputError
from mmpt.scenes import BACKGROUNDS, GROUP_OF, NAMES, SEEDS, WORDS, Scene, Thing, _background, make_scene
from mmpt.tasks import TASKS, Question, ask_about, check_tasks, correct

GROUP_WORDS = sorted(set(GROUP_OF.values()), key=len, reverse=True)
PLACE_WORDS = ("top left", "top right", "bottom left", "bottom right", "top", "bottom", "left", "right", "middle")
SUPERCLASSES = ({"animal", "bird", "sea animal", "bug"}, {"fruit", "vegetable", "food", "plant"})


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(seed) for seed in range(SEEDS["validation"], SEEDS["validation"] + 600)]


@pytest.fixture(scope="module")
def asked(scenes):
    """task → [(scene, question)], three draws a scene."""
    found = defaultdict(list)
    for i, scene in enumerate(scenes):
        for name, task in TASKS.items():
            for draw in range(3):
                question = task.make(scene, random.Random(f"{i} {name} {draw}"))
                if question:
                    found[name].append((scene, question))
    return found


def scene_of(*things, background="blue"):
    """A scene by hand: things are (name, x, y) or (name, x, y, side), centres on a picture of 112 px."""

    def thing(name, x, y, side=28):
        group = GROUP_OF.get(name) or ("digit" if name.isdigit() else "sign")
        return Thing(name, group, (x - side // 2, y - side // 2, side, side), "small" if side < 40 else "large", 112)

    made = [thing(*t) for t in things]
    return Scene(
        seed=0,
        size=112,
        background=background,
        objects=tuple(t for t in made if t.name in NAMES),
        digit=next((t for t in made if t.group == "digit"), None),
        word=next((t for t in made if t.group == "sign"), None),
        image=_background(background, 0, 0, 112),
    )


def draws(task, scene, n=60):
    """What a task asks about a scene in `n` draws, None where it does not fit."""
    return [TASKS[task].make(scene, random.Random(i)) for i in range(n)]


# --- the table ---------------------------------------------------------------------------------------------------


def test_there_are_enough_tasks_and_each_is_described():
    assert len(TASKS) >= 24
    for name, task in TASKS.items():
        assert task.name == name and task.description.endswith(".")
        assert len(set(task.phrasings)) >= 4
        assert 0 <= task.chance <= 0.5 and 0.1 < task.fits <= 1
    assert len({task.kind for task in TASKS.values()}) >= 8
    phrasings = [phrasing for task in TASKS.values() for phrasing in task.phrasings]
    assert len(phrasings) == len(set(phrasings))
    assert sum("Answer with one word" in p for p in phrasings) >= 8


def test_what_is_kept_for_probes_and_zero_shot_suites_is_not_asked():
    forbidden = (
        r"rightmost|furthest to the right|right edge|from the right",  # the probe
        r"^(is|are) there an? \{|^do you see (an? )?\{[a-z_]+\}\?|can you see",  # existence of a class
        r"is the \{x\} (at|in the|on the) \{|is the \{x\} \{c\}",  # position, colour, as MME asks
        r"true|false|statement|entail|contradict|hypothesis|handwritten",
        r"what (does|is written|is on) .*sign",  # reading the word openly
        r"(which|what) digit|what number|name the digit",
    )
    for name, task in TASKS.items():
        for phrasing in task.phrasings:
            for pattern in forbidden:
                assert not re.search(pattern, phrasing.lower()), f"{name}: {phrasing}"


def test_every_task_has_all_phrasings_filled_in(asked):
    for name, task in TASKS.items():
        assert len(asked[name]) > 100
        patterns = [re.sub(r"\\\{\w+\\\}", ".+", re.escape(p)) for p in task.phrasings]
        used = {p for _, q in asked[name] for p in patterns if re.fullmatch(p, q.question)}
        assert used == set(patterns)
        assert not any("{" in q.question or "}" in q.question for _, q in asked[name])


def test_answers_come_from_the_options(asked):
    for name, task in TASKS.items():
        for _, q in asked[name]:
            assert (q.task, q.kind) == (name, task.kind)
            assert len(set(q.options)) == len(q.options)
            assert (q.answer in q.options) if q.options else q.kind in ("name", "names", "caption")
            if "one word" in q.question:
                assert " " not in q.answer, q
            if "yes or no" in q.question.lower():
                assert q.kind == "yes/no"
            if "Answer with a digit" in q.question:
                assert q.answer.isdigit()


def test_answers_are_balanced_and_the_figures_hold(asked, scenes):
    for name, task in TASKS.items():
        answers = Counter(q.answer for _, q in asked[name])
        top = answers.most_common(1)[0][1] / answers.total()
        if task.kind in ("yes/no", "letter") or len(asked[name][0][1].options) == 2 and task.chance == 0.5:
            closed = {option for _, q in asked[name] for option in q.options}
            if len(closed) <= 4:  # the same options each time
                assert task.chance == 1 / len(closed)
                assert all(abs(answers[o] / answers.total() - task.chance) < 0.1 for o in closed), (name, answers)
            else:
                assert top < 0.2
        elif task.chance == 1 / 3:
            assert {len(q.options) for _, q in asked[name]} == {3} and top < 0.2
        else:
            deviation = (top * (1 - top) / (len(asked[name]) / 3)) ** 0.5  # three draws a scene
            assert abs(top - task.chance) < 0.01 + 3.5 * deviation, (name, top)
        assert abs(len(asked[name]) / (3 * len(scenes)) - task.fits) < 0.06, name


def test_the_right_option_stands_anywhere(asked):
    for name in ("which_named", "absentee", "group_at", "sign_word"):
        where = Counter(q.options.index(q.answer) for _, q in asked[name])
        n = len(asked[name][0][1].options)
        assert all(abs(where[i] / where.total() - 1 / n) < 0.1 for i in range(n)), name


# --- the oracle --------------------------------------------------------------------------------------------------


def names_in(text):
    return [word for word in re.findall(r"[a-z]+", text.lower()) if word in NAMES]


def groups_in(text):
    """Group words in a question, in order; "group" phrases put them bare ("group sea animal")."""
    return [m.group() for m in re.finditer(r"\b(" + "|".join(GROUP_WORDS) + r")\b", text)]


def place_in(text):
    return next(place for place in PLACE_WORDS if f"at the {place}" in text or f"in the {place}" in text)


def oracle(scene, q):
    """The answer, from the question's words and the scene's truth alone; None where this oracle does not know."""
    truth = scene.truth()
    objects, text = truth["objects"], q.question
    centre = {o["name"]: (o["box"][0] + o["box"][2] / 2, o["box"][1] + o["box"][3] / 2) for o in objects}
    by_name = {o["name"]: o for o in objects}
    there = Counter(o["name"] for o in objects)
    groups = Counter(o["group"] for o in objects)
    named = names_in(text)
    yes = {True: "Yes", False: "No"}
    shown = dict(re.findall(r"([A-D])\. ([a-z]+)", text))
    match q.task:
        case "count":
            return str(len(objects))
        case "one_or_several":
            return "one" if len(objects) == 1 else "several"
        case "count_name":
            return str(there[named[0]])
        case "count_group":
            return str(groups[groups_in(text)[0]])
        case "more":
            g, h = groups_in(text)[:2]
            return yes[groups[g] > groups[h]]
        case "background":
            return truth["background"]
        case "background_is":
            return yes[truth["background"] in re.findall(r"[a-z]+", text)]
        case "letter_background":
            return next(letter for letter, colour in shown.items() if colour == truth["background"])
        case "at_place":
            return next(o["name"] for o in objects if o["place"] == place_in(text))
        case "group_at":
            return next(o["group"] for o in objects if o["place"] == place_in(text))
        case "place":
            return by_name[named[0]]["place"]
        case "where_sign":
            return truth["word"]["place"]
        case "where_digit":
            return truth["digit"]["place"]
        case "leftmost":
            return min(objects, key=lambda o: o["box"][0])["name"]
        case "topmost":
            return min(objects, key=lambda o: o["box"][1])["name"]
        case "bottommost":
            return max(objects, key=lambda o: o["box"][1] + o["box"][3])["name"]
        case "left_or_right" | "above_or_below":
            axis = q.task == "above_or_below"
            # Phrasings that start from the second object name it first.
            x, y = reversed(named[:2]) if re.match("Seen from|Looking from|On which", text) else named[:2]
            return q.options[not centre[x][axis] < centre[y][axis]]
        case "half":
            return "left" if centre[named[0]][0] < scene.size / 2 else "right"
        case "group":
            return GROUP_OF[named[0]]
        case "of_group":
            (name,) = [o["name"] for o in objects if o["group"] == groups_in(text)[0]]
            return name
        case "same_group":
            return "same" if GROUP_OF[named[0]] == GROUP_OF[named[1]] else "different"
        case "size":
            return by_name[named[0]]["size"]
        case "large_one":
            return max(objects, key=lambda o: max(o["box"][2:]))["name"]
        case "colour":
            return by_name[named[0]]["colour"]
        case "of_colour":
            (name,) = [o["name"] for o in objects if o["colour"] in re.findall("[a-z]+", text)]
            return name
        case "which_named":
            (name,) = set(named) & set(there)
            return name
        case "absentee":
            (name,) = set(named) - set(there)
            return name
        case "letter":
            (letter,) = [letter for letter, name in shown.items() if name in there]
            return letter
        case "any_text":
            return yes[bool(truth["digit"] or truth["word"])]
        case "parity":
            return "even" if truth["digit"]["name"] in "02468" else "odd"
        case "digit_high":
            return yes[truth["digit"]["name"] in "56789"]
        case "sign_word":
            assert len(set(re.findall(r"[a-z]+", text)) & set(q.options)) == 2
            return truth["word"]["name"]
        case "nearest":
            x, y, w, h = by_name[named[0]]["box"]

            def distance(o):
                return abs(complex(o["box"][0] + (o["box"][2] - w) / 2 - x, o["box"][1] + (o["box"][3] - h) / 2 - y))

            return min((o for o in objects if o["name"] != named[0]), key=distance)["name"]
        case "empty_half":
            side = re.search("left|right|upper|lower", text.replace("left free", "")).group()
            low, axis = side in ("left", "upper"), side in ("upper", "lower")
            spans = [(t.box[axis], t.box[axis] + t.box[axis + 2]) for t in scene.things]
            return yes[all(a >= scene.size / 2 if low else b <= scene.size / 2 for a, b in spans)]
        case "list_all":
            return ", ".join(there)
        case "caption":
            return f"{' and '.join(there)} on {truth['background']} background"


@pytest.mark.parametrize("name", TASKS)
def test_answers_are_true(asked, name):
    for scene, q in asked[name]:
        expected = oracle(scene, q)
        assert expected is not None, f"the oracle does not know {name}"
        assert correct(q, expected), f"{q} on {scene.truth()}: {expected}"


def test_absent_things_are_absent_and_plausible(asked):
    near = 0
    for scene, q in asked["which_named"]:
        (wrong,) = [name for option in q.options if option != q.answer for name in names_in(option)]
        assert wrong not in [t.name for t in scene.objects]
        near += GROUP_OF[wrong] in [t.group for t in scene.objects]
    assert 0.4 < near / len(asked["which_named"]) < 0.8
    assert {w for _, q in asked["sign_word"] for w in q.options} <= set(WORDS)


# --- what is in doubt is not asked -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task, scene",
    [
        ("leftmost", scene_of(("dog", 30, 20), ("cat", 36, 90))),  # nearly a tie
        ("leftmost", scene_of(("dog", 30, 20))),  # nothing to compare with
        ("leftmost", scene_of(("3", 20, 20), ("dog", 60, 20), ("cat", 90, 90))),  # a digit comes first
        ("topmost", scene_of(("dog", 30, 40, 28), ("cat", 80, 49, 46))),  # first by centre, not by edge
        ("left_or_right", scene_of(("dog", 50, 20), ("cat", 60, 90))),
        ("left_or_right", scene_of(("dog", 20, 20), ("dog", 90, 90))),  # which dog?
        ("above_or_below", scene_of(("dog", 20, 50), ("cat", 90, 60))),
        ("half", scene_of(("dog", 58, 20))),
        ("place", scene_of(("dog", 38, 56))),  # on the line between left and middle
        ("place", scene_of(("dog", 20, 20), ("dog", 90, 90))),
        ("where_sign", scene_of(("dog", 20, 20), ("stop", 74, 90))),
        ("where_sign", scene_of(("dog", 20, 20))),
        ("at_place", scene_of(("dog", 20, 20, 16), ("3", 20, 34, 8))),  # two things there
        ("at_place", scene_of(("dog", 56, 18), ("cat", 39, 94))),  # near a line; and
        ("count", scene_of(("dog", 20, 20), ("3", 90, 90))),  # is a digit an object?
        ("list_all", scene_of(("dog", 20, 20), ("dog", 90, 90))),
        ("list_all", scene_of(("dog", 20, 20))),  # naming one object is a suite's task
        ("large_one", scene_of(("dog", 30, 30, 42), ("cat", 80, 80, 42))),
        ("size", scene_of(("dog", 30, 30), ("cat", 80, 80))),
        ("of_colour", scene_of(("dog", 20, 20), ("lion", 90, 90))),  # both orange
        ("of_colour", scene_of(("dog", 20, 20), ("apple", 90, 90))),  # orange and red
        ("of_group", scene_of(("dog", 20, 20), ("duck", 90, 90))),  # a bird is an animal
        ("same_group", scene_of(("dog", 20, 20), ("duck", 90, 90))),
        ("nearest", scene_of(("dog", 56, 56), ("cat", 20, 56), ("car", 92, 56))),
        ("empty_half", scene_of(("dog", 56, 56))),
        ("absentee", scene_of(("dog", 20, 20))),
        ("parity", scene_of(("dog", 20, 20))),
        ("sign_word", scene_of(("dog", 20, 20))),
    ],
)
def test_nothing_in_doubt_is_asked(task, scene):
    if task == "at_place":
        assert not [q for q in draws(task, scene) if q and "cat" in q.answer]
        scene = Scene(**{f: getattr(scene, f) for f in scene.__dataclass_fields__} | {"objects": scene.objects[:1]})
        assert any(draws(task, scene)) == (scene.digit is None)
        return
    asked = [q for q in draws(task, scene) if q]
    if task == "nearest":  # the cat's nearest is clear, the dog's is not
        assert not [q for q in asked if "dog?" in q.question or "the dog" in q.question]
        return
    assert not asked


@pytest.mark.parametrize(
    "task, scene, answers",
    [
        ("leftmost", scene_of(("dog", 20, 20), ("cat", 80, 90)), {"a dog", "dog"}),
        ("topmost", scene_of(("dog", 20, 20), ("owl", 80, 90)), {"a dog", "dog"}),
        ("bottommost", scene_of(("dog", 20, 20), ("owl", 80, 90)), {"an owl", "owl"}),
        ("place", scene_of(("dog", 20, 20)), {"top left"}),
        ("at_place", scene_of(("dog", 56, 18), ("cat", 90, 18)), {"a cat", "cat"}),  # "top" may mean both
        ("count_name", scene_of(("dog", 20, 20), ("dog", 90, 90)), {"2"}),
        ("count_group", scene_of(("dog", 20, 20), ("cat", 90, 90)), {"2"}),
        ("of_colour", scene_of(("dog", 20, 20), ("frog", 90, 90)), {"a dog", "dog", "a frog", "frog"}),
        ("of_group", scene_of(("dog", 20, 20), ("car", 90, 90)), {"a dog", "dog", "a car", "car"}),
        ("same_group", scene_of(("dog", 20, 20), ("cat", 90, 90)), {"same"}),
        ("large_one", scene_of(("dog", 30, 30, 42), ("cat", 90, 90)), {"a dog", "dog"}),
        ("list_all", scene_of(("dog", 20, 20), ("owl", 90, 90)), {"a dog, an owl"}),
        ("caption", scene_of(("dog", 20, 20), ("owl", 90, 90)), {"a dog and an owl on a blue background"}),
        ("caption", scene_of(("dog", 20, 20), background="orange"), {"a dog on an orange background"}),
        ("nearest", scene_of(("dog", 20, 20), ("cat", 20, 60), ("car", 90, 90)), {"a cat", "cat", "a dog", "dog"}),
    ],
)
def test_what_is_clear_is_asked(task, scene, answers):
    assert {q.answer for q in draws(task, scene, 200) if q} == answers


def test_groups_that_overlap_are_not_counted_against_each_other(asked):
    for name in ("count_group", "more", "of_group"):
        for scene, q in asked[name]:
            present = {t.group for t in scene.objects}
            for group in groups_in(q.question):
                assert not any(group in s and (present - {group}) & s for s in SUPERCLASSES), q


# --- asking and scoring ------------------------------------------------------------------------------------------


def test_ask_about_is_deterministic_and_even(scenes):
    share = Counter()
    for i, scene in enumerate(scenes):
        questions = ask_about(scene, random.Random(i), 4)
        assert len(questions) == len({q.task for q in questions}) == 4
        assert questions == ask_about(scene, random.Random(i), 4)
        share.update(q.task for q in questions)
    mean = share.total() / len(TASKS)
    assert all(0.5 * mean < share[name] < 1.5 * mean for name in TASKS), share


def test_ask_about_keeps_to_the_given_tasks():
    scene = scene_of(("dog", 20, 20), ("cat", 90, 90))
    questions = ask_about(scene, random.Random(0), 5, ["count", "background", "parity"])
    assert {q.task for q in questions} == {"count", "background"}
    assert [q.task for q in ask_about(scene, random.Random(0), 5, "count")] == ["count"]
    assert ask_about(scene, random.Random(0), 0) == []


def test_a_task_named_twice_comes_more_often(scenes):
    first = Counter(ask_about(scene, random.Random(i), 1, ["all", "count"])[0].task for i, scene in enumerate(scenes))
    plain = Counter(ask_about(scene, random.Random(i), 1)[0].task for i, scene in enumerate(scenes))
    assert plain["count"] * 1.4 < first["count"] < plain["count"] * 2.6
    assert len(first) > 30
    both = ask_about(scene_of(("dog", 20, 20)), random.Random(0), 5, ["background", "background"])
    assert [question.task for question in both] == ["background"]


@pytest.mark.parametrize(
    "tasks, message", [(["cuont"], "no task 'cuont'; give all, or some of count, "), ([], "No task is named")]
)
def test_unknown_tasks_are_refused(tasks, message):
    with pytest.raises(InputError, match=message):
        check_tasks(tasks)
    with pytest.raises(InputError, match=message):
        ask_about(scene_of(("dog", 20, 20)), random.Random(0), 1, tasks)


@pytest.mark.parametrize(
    "kind, answer, prediction, right",
    [
        ("name", "a dog", "a dog", True),
        ("name", "a dog", " Dog. ", True),
        ("name", "an owl", "the owl", True),
        ("name", "a dog", "a dog and a cat", False),
        ("name", "a dog", "", False),
        ("yes/no", "Yes", "yes", True),
        ("yes/no", "Yes", "Yes, it is", False),
        ("number", "2", "2.", True),
        ("number", "2", "12", False),
        ("letter", "A", "a", True),
        ("place", "top left", "top  left", True),
        ("place", "top left", "left", False),
        ("names", "a dog, a cat", "a cat and a dog", True),
        ("names", "a dog, a cat", "cat, dog", True),
        ("names", "a dog, a cat", "a dog", False),
        ("names", "a dog, a cat", "a dog, a dog, a cat", False),
        ("names", "a sandwich, a hand", "a hand, a sandwich", True),
        ("caption", "a dog and a cat on a blue background", "A cat and a dog on a blue background.", True),
        ("caption", "a dog and a cat on a blue background", "a dog and a cat on a red background", False),
    ],
)
def test_correct(kind, answer, prediction, right):
    assert correct(Question("t", "?", answer, kind), prediction) is right


def test_answers_are_right_for_themselves(asked):
    assert all(correct(q, q.answer) for name in TASKS for _, q in asked[name])
    assert set(BACKGROUNDS) >= {q.answer for _, q in asked["background"]}
