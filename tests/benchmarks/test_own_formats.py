"""Small copies in each data set's own format, evaluated to scores worked out by hand; broken rows are counted."""

import gzip
import json

import numpy as np
import pytest
from copies import RGB, fill, write

from mmpt import evaluate as module
from mmpt.benchmarks import BENCHMARKS
from mmpt.benchmarks.classes import CIFAR_100
from mmpt.errors import InputError
from mmpt.scoring import COGNITION, PERCEPTION
from mmpt.suites import ASKED


def test_mme(tmp_path, answer):
    ask = "{} Please answer yes or no.\t{}"
    fill(tmp_path / "existence", a="red", b="green", c="blue", d="red")
    for name in "abc":
        write(tmp_path / "existence" / f"{name}.txt", [ask.format(f"Is it {name}?", "Yes"), ask.format("Not?", "No")])
    write(tmp_path / "existence" / "d.txt", ["a line without a tab", ask.format("Not?", "No")])
    fill(tmp_path / "artwork" / "images", e="green")
    apart = tmp_path / "artwork" / "questions_answers_YN"
    apart.mkdir()
    write(apart / "e.txt", [ask.format("Art?", "Yes"), ask.format("No art?", "No")])
    write(apart / "f.txt", [ask.format("Art?", "Yes"), ask.format("No art?", "Perhaps")])

    def said(colour, *pairs):
        return {(colour, f"{text} Please answer yes or no."): what for text, what in pairs}

    table = said("red", ("Is it a?", "Yes"), ("Not?", "No")) | said("green", ("Is it b?", "Yes"), ("Not?", "Yes"))
    table |= said("blue", ("Is it c?", "No"), ("Not?", "maybe")) | said("green", ("Art?", "yes."), ("No art?", "no"))
    result = answer("mme", tmp_path, table)
    figures = result["figures"]
    assert figures["existence acc"] == pytest.approx(50) and figures["existence acc+"] == pytest.approx(100 / 3)
    assert figures["perception"] == pytest.approx(50 + 100 / 3 + 200) and "cognition" not in figures
    assert result["n"] == 8 and result["unparsed"] == 12.5 and result["choice"]["figures"]["artwork acc"] == 50
    # twelve subtasks, a line of d and its fellow, an answer of f, and its fellow without a picture
    missing = len(PERCEPTION + COGNITION) - 2
    assert result["broken"] == missing + 4
    assert any("d.txt, line 1: " in p for p in result["problems"])
    assert "existence/d.jpg#2: its fellow on the picture is missing." in result["problems"]
    assert any(p.startswith("artwork/f.jpg#1: There is no file") for p in result["problems"])
    limited = answer("mme", tmp_path, table, limit=1)
    assert limited["n"] == 4 and limited["figures"]["artwork"] == 200


def test_a_folder_of_mme_without_its_pictures(tmp_path, answer):
    texts = tmp_path / "artwork" / "questions_answers_YN"
    texts.mkdir(parents=True)
    write(texts / "a.txt", ["Art? Please answer yes or no.\tYes", "No art? Please answer yes or no.\tNo"])
    with pytest.raises(InputError, match="Nothing of .* can be used"):
        answer("mme", tmp_path, {})


def test_all_of_pope_is_read_before_the_first_answer(tmp_path, answer):
    fill(tmp_path / "val2014", a="red")
    write(tmp_path / "coco_pope_random.json", [{"question_id": 1, "image": "a.jpg", "text": "A car?", "label": "yes"}])
    with pytest.raises(InputError, match="coco_pope_popular.json cannot be read"):
        next(BENCHMARKS["pope"].rows(tmp_path))


def test_pope(tmp_path, answer, capsys):
    fill(tmp_path / "val2014", COCO_val2014_000000310196="red", COCO_val2014_000000210789="blue")
    names = ("COCO_val2014_000000310196.jpg", "COCO_val2014_000000210789.jpg")
    for split in ("random", "popular", "adversarial"):
        rows = [
            {"question_id": i + 1, "image": names[i // 2], "text": f"Is there a {thing} in the image?", "label": label}
            for i, (thing, label) in enumerate([("car", "yes"), ("dog", "no"), ("cup", "yes"), ("bed", "no")])
        ]
        write(tmp_path / f"coco_pope_{split}.json", rows)
    with (tmp_path / "coco_pope_popular.json").open("a") as file:
        file.write('{"question_id": 5,\n' + json.dumps({"question_id": 6, "image": "none.jpg", "text": "Is there?"}))
        file.write("\n" + json.dumps({"question_id": 1, "image": names[0], "text": "Is it?", "label": "yes"}))
        file.write("\n" + json.dumps({"question_id": 7, "image": "none.jpg", "text": "Is it?", "label": "yes"}))
    said = {("red", "car"): "Yes", ("red", "dog"): "Yes", ("blue", "cup"): "No, none", ("blue", "bed"): "No"}
    said = {(colour, f"Is there a {thing} in the image?"): text for (colour, thing), text in said.items()}
    result = answer("pope", tmp_path, said, batch=1)
    assert result["n"] == 12 and result["source"] == str(tmp_path)
    for split in ("random", "popular", "adversarial"):
        assert result["figures"][f"{split} F1"] == result["figures"][f"{split} accuracy"] == 50
    assert result["figures"]["mean F1"] == result["figures"]["random yes"] == 50
    told = ["coco_pope_popular.json, line 5: it is no JSON object.", "line 6: label is None",
            "'popular-1' comes twice", "popular-7: There is no file"]  # fmt: skip
    assert result["broken"] == 4 and all(words in p for words, p in zip(told, result["problems"]))
    assert "4 row(s) cannot be used and are left out:\n" in capsys.readouterr().err
    assert "12 questions, from" in module.render(result) and "4 row(s) broken" in module.render(result)
    limited = answer("pope", tmp_path, said, limit=2)
    assert limited["n"] == 6 and limited["figures"]["mean F1"] == pytest.approx(200 / 3)
    assert limited["broken"] == 3  # of the rows that were read; the picture was not asked for


def test_vsr(tmp_path, answer):
    fill(tmp_path / "images", **{"000000050403": "red", "000000401552": "green"})
    row = {"image": "000000050403.jpg", "image_link": "http://images.cocodataset.org/train2017/000000050403.jpg",
           "caption": "The teddy bear is in front of the person.", "label": 1, "relation": "in front of",
           "annotator_id": 31, "vote_true_validator_id": [2, 6], "vote_false_validator_id": []}  # fmt: skip
    other = row | {"image": "000000401552.jpg", "caption": "The umbrella is far away.", "label": 0}
    write(tmp_path / "test.jsonl", [row, other, row | {"label": 2}, row | {"caption": " "}, "", row])
    ask = "{} Is this statement true or false?".format
    said = {("red", ask(row["caption"])): "False", ("green", ask(other["caption"])): "It is false."}
    result = answer("vsr", tmp_path, said)
    assert result["n"] == 3 and result["figures"]["accuracy"] == pytest.approx(100 / 3) and result["broken"] == 2
    assert result["choice"]["figures"]["accuracy"] == pytest.approx(200 / 3)


def test_snli_ve(tmp_path, answer):
    fill(tmp_path / "flickr30k-images", **{"4705552913": "blue"})
    row = {"Flickr30K_ID": "4705552913", "pairID": "4705552913.jpg#2r1n", "gold_label": "neutral", "sentence1": "A.",
           "annotator_labels": ["neutral"], "captionID": "4705552913.jpg#2", "sentence2": "Women wait."}  # fmt: skip
    rows = [row, row | {"pairID": "4705552913.jpg#2r1e", "gold_label": "entailment", "sentence2": "People stand."}]
    rows += [row | {"pairID": "x", "gold_label": "-"}, row | {"pairID": "y", "Flickr30K_ID": "1"}]
    write(tmp_path / "snli_ve_test.jsonl", rows)
    said = {("blue", ASKED["snli-ve"].format("Women wait.")): "Neutral",
            ("blue", ASKED["snli-ve"].format("People stand.")): "contradiction"}  # fmt: skip
    result = answer("snli-ve", tmp_path, said)
    assert result["n"] == 2 and result["figures"]["accuracy"] == 50 and result["broken"] == 2
    assert result["problems"][0].startswith("The true answer of 'x' is '-'; it is one of entailment")


def cifar(colour, *labels):
    return bytes(labels) + np.broadcast_to(np.uint8(RGB[colour])[:, None, None], (3, 32, 32)).tobytes()


def test_cifar(tmp_path, answer):
    (tmp_path / "test_batch.bin").write_bytes(cifar("red", 3) + cifar("green", 8) + cifar("blue", 10))
    ten = ASKED["cifar-10"].format("airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck")
    result = answer("cifar-10", tmp_path, {("red", ten): "A cat.", ("green", ten): "a truck"})
    assert result["n"] == 2 and result["figures"]["accuracy"] == 50 and result["broken"] == 1
    assert "picture 3: label is 10; it is one of 0 to 9" in result["problems"][0]
    fine = [CIFAR_100.index("pickup truck"), CIFAR_100.index("aquarium fish")]
    assert len(CIFAR_100) == 100 and fine == [58, 1]
    (tmp_path / "test.bin").write_bytes(cifar("red", 18, fine[0]) + cifar("blue", 1, fine[1]))
    said = {("red", ASKED["cifar-100"]): "It is a Pickup truck.", ("blue", ASKED["cifar-100"]): "fish"}
    result = answer("cifar-100", tmp_path, said)
    assert result["figures"]["accuracy"] == 50 and result["unparsed"] == 50
    (tmp_path / "test.bin").write_bytes(cifar("red", 18, 1)[:-1])
    with pytest.raises(InputError, match="test.bin has 3073 bytes, no multiple of 3074; give cifar-100-binary"):
        answer("cifar-100", tmp_path, said)


@pytest.mark.parametrize("pack", [gzip.compress, bytes])
def test_mnist(tmp_path, answer, pack):
    suffix = ".gz" if pack is gzip.compress else ""
    pixels = bytes(16) + bytes([0] * 784 + [255] * 784)
    (tmp_path / f"t10k-images-idx3-ubyte{suffix}").write_bytes(pack(pixels))
    (tmp_path / f"t10k-labels-idx1-ubyte{suffix}").write_bytes(pack(bytes(8) + bytes([7, 1])))
    pictures = [row.picture() for row in BENCHMARKS["mnist"].rows(tmp_path)]
    assert [p.getpixel((5, 5)) for p in pictures] == [(0, 0, 0), (255, 255, 255)]
    assert {p.size for p in pictures} == {(28, 28)}
    said = {(colour, ASKED["mnist"]): "a 7" for colour in RGB}
    assert answer("mnist", tmp_path, said)["figures"]["accuracy"] == 50
    (tmp_path / f"t10k-labels-idx1-ubyte{suffix}").write_bytes(pack(bytes(8) + bytes([7])))
    with pytest.raises(InputError, match="do not hold as many pictures as labels"):
        answer("mnist", tmp_path, said)


def test_textvqa(tmp_path, answer):
    fill(tmp_path / "train_images", **{"003a8ae2ef43b901": "red"})
    row = {"question": "what is the brand of this camera?", "image_id": "003a8ae2ef43b901", "question_id": 34602,
           "image_classes": ["Camera"], "question_tokens": ["what"], "set_name": "val", "image_width": 1024,
           "answers": ["nous les gosses"] + ["dakota"] * 3 + ["clos culombu"] * 6}  # fmt: skip
    rows = [row, row | {"question_id": 34603, "answers": []}, row | {"question_id": 34604, "answers": [3]}]
    write(tmp_path / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "dataset_name": "textvqa", "data": rows})
    result = answer("textvqa", tmp_path, {("red", row["question"]): "Dakota"})
    assert result["n"] == 1 and result["figures"]["accuracy"] == pytest.approx(90) and result["broken"] == 2
    assert "choice" not in result
    for other in ([row], {"data": row}):
        write(tmp_path / "TextVQA_0.5.1_val.json", other)
        with pytest.raises(InputError, match="TextVQA_0.5.1_val.json has no list 'data'; give TextVQA_0.5.1_val.json"):
            answer("textvqa", tmp_path, {})


def test_vqav2(tmp_path, answer):
    fill(tmp_path / "val2014", COCO_val2014_000000262148="green")
    questions = [
        {"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000 + i} for i in (0, 1)
    ]
    people = [{"answer": text, "answer_confidence": "yes", "answer_id": i + 1}
              for i, text in enumerate(["down"] * 2 + ["at table"] * 8)]  # fmt: skip
    annotation = {"question_type": "none of the above", "multiple_choice_answer": "down", "answers": people,
                  "image_id": 262148, "answer_type": "other", "question_id": 262148000}  # fmt: skip
    write(tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json", {"task_type": "Open-Ended", "questions": questions})
    write(tmp_path / "v2_mscoco_val2014_annotations.json", {"annotations": [annotation]})
    result = answer("vqav2", tmp_path, {("green", "Where is he looking?"): "down"})
    assert result["n"] == 1 and result["figures"]["accuracy"] == pytest.approx(60) and result["broken"] == 1
    assert "row 2: the annotations have no answers to 262148001." in result["problems"][0]


def test_gqa(tmp_path, answer):
    fill(tmp_path / "images", n161313="blue", n200001="red")
    row = {
        "imageId": "n161313",
        "question": "Is it overcast?",
        "answer": "no",
        "isBalanced": True,
        "fullAnswer": "No,",
    }
    rows = {"201307251": row, "201307252": row | {"imageId": "n200001", "question": "Which?", "answer": "cat"}, "3": 7}
    write(tmp_path / "testdev_balanced_questions.json", rows)
    result = answer("gqa", tmp_path, {("blue", "Is it overcast?"): "No.", ("red", "Which?"): "a cat"})
    assert result["n"] == 2 and result["figures"]["accuracy"] == 50 and result["broken"] == 1


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_folder_with_something_else(tmp_path, name, answer):
    with pytest.raises(InputError, match=f"^There is no folder {tmp_path / 'none'}; give one with "):
        answer(name, tmp_path / "none", {})
    with pytest.raises(InputError, match="; give |; put them there"):
        answer(name, tmp_path, {})


def test_nothing_that_can_be_used(tmp_path, answer):
    fill(tmp_path / "images")
    write(tmp_path / "test.jsonl", ["{"])
    with pytest.raises(InputError, match="Nothing of .* can be used. .*test.jsonl, line 1: it is no JSON object"):
        answer("vsr", tmp_path, {})
