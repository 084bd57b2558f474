"""Golden cases worked out by hand from the rules of each benchmark."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmpt.__main__ import main
from mmpt.bootstrap import bootstrap
from mmpt.errors import InputError
from mmpt.predictions import read_answered
from mmpt.scoring import (
    METRICS,
    Answered,
    mme_official,
    one_of,
    pope_official,
    score,
)
from mmpt.vqa import normalise, soft_accuracy


@pytest.mark.parametrize(
    "text, strict, mme, pope",
    [
        ("Yes", "yes", "yes", "yes"),
        ("no.", "no", "no", "no"),
        ("No, there is not.", "no", "no", "no"),
        ("I know it", None, None, "yes"),
        ("none", None, "no", "yes"),
        ("know", None, "no", "yes"),
        ("Yes and no", None, "yes", "no"),
        ("It is not. Yes.", "yes", None, "no"),
        ("", None, None, "yes"),
        ("eyes", None, "yes", "yes"),
        (" yes", "yes", "yes", "yes"),
    ],
)
def test_what_yes_and_no_are_to_each_parser(text, strict, mme, pope):
    assert (one_of("yes", "no")(text), mme_official(text), pope_official(text)) == (strict, mme, pope)


def test_classes_of_two_words():
    parse = one_of("truck", "pickup truck", "ray")
    assert parse("It is a Pickup truck.") == "pickup truck" and parse("a truck") == "truck"
    assert parse("array") is None and parse("a ray on a truck") is None


def paired(subtask, *pictures):
    return [
        Answered(f"{subtask}{i}{j}", said, (true,), subtask, f"{subtask}/{i}.png")
        for i, picture in enumerate(pictures)
        for j, (true, said) in enumerate(picture)
    ]


def test_mme():
    pictures = [("Yes", "yes"), ("No", "no")], [("Yes", "Yes."), ("No", "Yes")], [("Yes", "none"), ("No", "none")]
    rows = paired("existence", *pictures) + paired("numerical_calculation", [("Yes", "Yes"), ("No", "No")])
    strict, official = score("mme", rows)["figures"], score("mme", rows, "official")["figures"]
    assert strict["existence acc"] == pytest.approx(50)
    assert strict["existence acc+"] == pytest.approx(100 / 3)
    assert strict["perception"] == strict["existence"] == pytest.approx(50 + 100 / 3)
    assert strict["cognition"] == 200
    assert official["existence acc"] == pytest.approx(200 / 3)  # "none" is a no there
    assert score("mme", rows)["unparsed"] == 25
    assert score("mme", rows)["chance"]["existence"] == 50


def test_pope():
    said = {"random": "yyyn nnny", "adversarial": "yyyy yyyy"}
    rows = [
        Answered(f"{split}{i}", {"y": "yes", "n": "no"}[letter], ("yes" if i < 4 else "no",), split)
        for split, letters in said.items()
        for i, letter in enumerate(letters.replace(" ", ""))
    ]
    figures = score("pope", rows)["figures"]
    assert figures["random accuracy"] == figures["random precision"] == figures["random recall"] == 75
    assert figures["random F1"] == 75 and figures["random yes"] == 50
    assert figures["adversarial precision"] == 50 and figures["adversarial recall"] == 100
    assert figures["adversarial F1"] == pytest.approx(200 / 3) and figures["adversarial yes"] == 100
    assert figures["mean F1"] == pytest.approx((75 + 200 / 3) / 2)
    assert score("pope", rows)["chance"]["mean F1"] == pytest.approx(200 / 3)


def test_an_answer_that_cannot_be_read_is_the_wrong_one_to_pope():
    rows = [Answered(str(i), "yes", ("yes",), "random") for i in range(10)]
    rows += [Answered(str(i), "perhaps", ("no",), "random") for i in range(10, 20)]
    figures = score("pope", rows)["figures"]
    assert figures["random accuracy"] == figures["random precision"] == figures["random yes"] == 50
    assert figures["random recall"] == 100 and figures["mean F1"] == pytest.approx(200 / 3)


@pytest.mark.parametrize("matches, expected", [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqa_leaves_one_person_out(matches, expected):
    assert soft_accuracy("Red.", ("red",) * matches + ("blue",) * (10 - matches)) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The Two  dogs", "2 dogs"),
        ("none", "0"),
        ("x-y", "x y"),
        ("- x-y", "xy"),  # one mark next to a space deletes all of its kind
        ("1,000", "1000"),
        ("3.5 m.", "3.5 m"),
        ("it's 5:30\n", "it's 5:30"),
        ("wont", "won't"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("yes/no", "yes no"),
        ("an apple, a pear", "apple pear"),
    ],
)
def test_vqa_normalises(text, expected):
    assert normalise(text) == expected


def test_gqa_vsr_and_snli_ve():
    gqa = [Answered("1", " Dog. ", ("dog",)), Answered("2", "dogs", ("dog",)), Answered("3", "", ("cat",))]
    assert score("gqa", gqa)["figures"]["accuracy"] == pytest.approx(100 / 3)
    assert score("gqa", gqa)["unparsed"] == pytest.approx(100 / 3)
    assert score("gqa", gqa)["chance"]["accuracy"] == pytest.approx(200 / 3)
    vsr = [Answered("1", "True", ("True",)), Answered("2", "untrue", ("False",)), Answered("3", "true", ("False",))]
    assert score("vsr", vsr)["figures"]["accuracy"] == pytest.approx(100 / 3)
    said = ("entailment", "It is a contradiction.", "neutral or entailment")
    snli = [Answered(str(i), text, (("entailment", "contradiction", "neutral")[i],)) for i, text in enumerate(said)]
    assert score("snli_ve", snli)["figures"]["accuracy"] == pytest.approx(200 / 3)
    assert score("snli_ve", snli)["unparsed"] == pytest.approx(100 / 3)


def family(picture, *rows):
    """(id, prediction, entailed) of questions on one picture, whose true answers are all "yes"."""
    return [Answered(f"{picture}{id}", said, ("yes",), "", picture, tuple(picture + other for other in entailed))
            for id, said, entailed in rows]  # fmt: skip


def test_gqas_consistency():
    rows = family("x", ("a", "yes", "bc"), ("b", "yes", "c"), ("c", "no", ""))  # a: 1 of 2; b: 0 of 1; c entails none
    rows += family("y", ("a", "yes", "ab"), ("b", "yes", ""), ("c", "no", "ab"))  # a: 1 of 1; c is wrong: not counted
    result = score("gqa", rows, draws=200)
    assert result["figures"] == {"accuracy": pytest.approx(400 / 6), "consistency": pytest.approx(50)}
    assert score("gqa", rows[:1])["figures"] == {"accuracy": 100}  # none of what it entails was asked
    low, high = result["interval"]["consistency"]
    assert (low, high) == (25, 100)  # pictures are drawn whole: x alone has 25, y alone 100


def test_types_of_questions():
    rows = [Answered(str(i), said, ("yes",), group) for i, (said, group) in enumerate([("yes", "a"), ("no", "b")])]
    assert score("gqa", rows)["figures"] == {"accuracy": 50, "a accuracy": 100, "b accuracy": 0}
    blank = [Answered("1", "the", ("",) * 10)]  # nothing is left of it: it cannot be read
    assert score("vqa", blank)["figures"] == {"accuracy": 0} and score("vqa", blank)["unparsed"] == 100


def test_intervals_hold_the_binomial_ones():
    rows = [Answered(str(i), "True" if i < 80 else "False", ("true",)) for i in range(100)]
    low, high = score("vsr", rows)["interval"]["accuracy"]
    assert low == pytest.approx(80 - 1.96 * 4, abs=2) and high == pytest.approx(80 + 1.96 * 4, abs=2)


def resampled(rows, spread):
    """What bootstrap draws: (D, N) how often each row counts, and the interval of `spread(weights)`."""
    seen = []

    def figures(rows, weights):
        seen.append(weights)
        return {"": spread(weights)}

    interval = bootstrap(figures, [(row, "yes") for row in rows], 200, 0)[""]
    return np.concatenate(seen), interval


def test_what_the_bootstrap_draws():
    mme = [row for name in ("count", "scene") for row in paired(name, *[[("Yes", "Yes"), ("No", "No")]] * 5)]
    weights, _ = resampled(mme, lambda weights: weights[:, 0])
    assert (weights[:, ::2] == weights[:, 1::2]).all()  # pairs
    assert (weights[:, :10].sum(1) == 10).all() and (weights.sum(1) == 20).all()  # so many of each subtask
    pope = [Answered(f"{split}{i}", "", ("yes",), split, str(i)) for split in "abc" for i in range(4)]
    weights, interval = resampled(pope, lambda weights: weights[:, 0])
    assert (weights[:, :4] == weights[:, 4:8]).all() and (weights[:, :4] == weights[:, 8:]).all()
    assert interval == pytest.approx(np.quantile(weights[:, 0], (0.025, 0.975)))
    assert weights.mean(0) == pytest.approx(np.ones(12), abs=0.3)


def test_questions_count_as_often_as_they_are_drawn():
    """Figures with weights are those of rows that are repeated."""
    rows = paired("count", *[[("yes", a), ("no", b)] for a, b in (("yes", "no"), ("yes", "yes"), ("no", "no"))])
    rows += [Answered(f"x{i}", said, ("yes",), "scene", "x") for i, said in enumerate(("yes", "no"))]
    drawn = [2, 2, 0, 0, 1, 1, 3, 3]  # of count one of three pairs is right, as drawn two of three
    for metric in METRICS.values():
        parsed = [(row, row.prediction) for row in rows]
        again = [
            (replace(row, id=f"{row.id}-{k}", picture=f"{row.picture}-{k}"), said)
            for (row, said), n in zip(parsed, drawn)
            for k in range(n)
        ]
        weighted = metric.figures(parsed, np.array([drawn], float))
        plain = metric.figures(again, np.ones((1, len(again))))
        assert {name: value[0] for name, value in weighted.items()} == pytest.approx(
            {name: value[0] for name, value in plain.items()}
        )


def test_samples_without_a_kind_of_question_say_nothing_of_it():
    """Where pictures are asked in several groups, one of them may not be drawn at all."""
    asked = [("exist", "a"), ("exist", "b"), ("query", "a"), ("query", "c"), ("query", "d")]
    rows = [Answered(f"{i}", "yes", ("yes",), kind, picture) for i, (kind, picture) in enumerate(asked)]
    result = score("gqa", rows)
    assert result["interval"] == {name: [100, 100] for name in result["figures"]}
    assert score("pope", [Answered("a", "no", ("yes",), "random")])["interval"]["random precision"] == [0, 0]
    entailing = [Answered(f"{i}", "yes", ("yes",), "", f"{i}", ("x",) * (i == 0)) for i in range(4)]
    entailing.append(Answered("x", "yes", ("yes",), "", "0"))
    assert score("gqa", entailing)["interval"]["consistency"] == [100, 100]
    splits = [Answered(f"{i}", "yes", ("yes",), "random", f"{i}") for i in range(4)]
    splits.append(Answered("y", "yes", ("yes",), "popular", "0"))
    assert score("pope", splits)["interval"]["mean F1"] == [100, 100]


MME = "a.png\tIs it? Please answer yes or no.\tYes\t{}\na.png\tIs it not?\tNo\tno\n"


def test_files(tmp_path, capsys):
    (tmp_path / "existence.txt").write_text(MME.format("none"))
    (tmp_path / "count.txt").write_text(MME.format("Yes"))
    assert main(["score", "--metric", "mme", str(tmp_path / "existence.txt"), "--parser", "official"]) == 0
    out = capsys.readouterr().out
    assert "existence acc " in out and "parser official" in out
    same = str(tmp_path / "count.txt")
    assert main(["score", "--metric", "mme", same, "--json", same]) == 2 and "Yes" in Path(same).read_text()
    assert "holds the predictions; give another file" in capsys.readouterr().err
    assert score("mme", read_answered("mme", tmp_path))["figures"]["perception"] == 200 + 50
    lines = [{"id": 1, "prediction": "Yes", "answer": "yes", "category": "random"},
             {"id": 2, "prediction": "No", "answer": "yes", "split": "popular"}]  # fmt: skip
    (tmp_path / "pope.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert main(["score", "--metric", "pope", str(tmp_path / "pope.jsonl"), "--json", str(tmp_path / "out.json")]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["figures"]["mean F1"] == 50
    lines = [{"id": 1, "prediction": "red", "answer": "red", "imageId": 7, "entailed": [2]},
             {"id": 2, "prediction": "no", "answer": "yes", "imageId": 7}]  # fmt: skip
    (tmp_path / "gqa.jsonl").write_text("\n".join(map(json.dumps, lines)))
    figures = score("gqa", read_answered("gqa", tmp_path / "gqa.jsonl"))["figures"]
    assert figures == {"accuracy": 50, "consistency": 0}
    (tmp_path / "vsr.jsonl").write_text('{"id": 1, "prediction": "True", "answer": "true", "imageId": null}')
    assert [row.picture for row in read_answered("vsr", tmp_path / "vsr.jsonl")] == [""]  # unknown


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "There is nothing to score"),
        (paired("existence", [("Yes", "yes")]), "has 1 question"),
        (paired("dancing", [("Yes", "yes"), ("No", "no")]), "belongs to 'dancing'"),
        (paired("count", [("Yes", "yes"), ("Perhaps", "no")]), "is 'perhaps'; it is one of yes, no"),
        (paired("count", [("Yes", "yes"), ("No", "no")]) * 2, "comes twice"),
    ],
)
def test_what_cannot_be_scored(rows, message):
    with pytest.raises(InputError, match=message):
        score("mme", rows)


@pytest.mark.parametrize(
    "metric, name, text, message",
    [
        ("mme", "count.txt", "a.png\tIs it?\tYes\n", "line 1 has 3 parts"),
        ("mme", "none.txt", None, "cannot be read"),
        ("vqa", "x.jsonl", '{"id": 1, "prediction": "x"}', "answer one or answers a list"),
        ("vqa", "x.jsonl", '{"id": 1, "prediction": 3, "answer": "x"}', "prediction is a text"),
        ("vqa", "x.jsonl", '{"id": 1}', "has no 'prediction'"),
        ("gqa", "x.jsonl", '{"id": 1, "prediction": "x", "answer": "x", "entailed": 2}', "entailed is 2; give a list"),
        ("pope", "x.jsonl", '{"id": 1, "prediction": "x", "answer": "x", "split": null}', "category is None; give"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, metric, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_answered(metric, tmp_path / name)


def test_vqa_wants_ten_peoples_answers():
    with pytest.raises(InputError, match=r"'1' has 3 true answer\(s\); give those of 10 people"):
        score("vqa", [Answered("1", "red", ("red",) * 3)])


def test_parsers_that_do_not_exist():
    with pytest.raises(InputError, match="There is no 'official' parser for this metric; choose one of strict"):
        score("vsr", [Answered("1", "True", ("true",))], "official")
    with pytest.raises(InputError, match="There is no metric 'bleu'"):
        score("bleu", [])
