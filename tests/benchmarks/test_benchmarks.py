"""Small copies in each data set's own format, and as the hub has them, evaluated to scores worked out by hand.

Pictures have one colour; the model answers by a table (colour, question) → answer, so that a question that is asked on
the wrong picture or in other words is a KeyError.
"""

import gzip
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value, load_dataset
from PIL import Image as Pillow

from mmpt import evaluate as module
from mmpt.benchmarks import BENCHMARKS, windows
from mmpt.benchmarks.classes import CIFAR_100
from mmpt.benchmarks.rows import Row
from mmpt.benchmarks.vqa import BRIEFLY
from mmpt.errors import InputError
from mmpt.scoring import COGNITION, PERCEPTION
from mmpt.suites import ASKED, SuiteQuestion

RGB = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}
BACKBONE = SimpleNamespace(name="table", model=SimpleNamespace(device=torch.device("cpu")))


def png(colour):
    content = io.BytesIO()
    Pillow.new("RGB", (12, 9), RGB[colour]).save(content, "PNG")
    return content.getvalue()


def fill(folder, **pictures):
    """Pictures by name, without suffix, in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, colour in pictures.items():
        Pillow.new("RGB", (12, 9), RGB[colour]).save(folder / f"{name}.jpg")


def write(file, rows):
    """JSON, or JSONL where `rows` is a list; a text stays as it is."""
    lines = rows if isinstance(rows, list) else [rows]
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in lines) + "\n")


def colour_of(image):
    return min(RGB, key=lambda name: sum(abs(a - b) for a, b in zip(RGB[name], image.getpixel((4, 4)))))


@pytest.fixture
def answer(monkeypatch):
    """`answer(suite, folder, said)`: what `evaluate` returns for a model that says `said`, and chooses likewise."""

    def run(suite, folder, said, **options):
        class Known:
            def __init__(self, backbone, images, questions):
                asked = [(colour_of(i), q.removesuffix(BRIEFLY)) for i, q in zip(images, questions)]
                self.said = [said[key] for key in asked]

            def answer(self, max_new_tokens):
                return self.said

        monkeypatch.setattr(module, "read", Known)
        monkeypatch.setattr(module, "likeliest", lambda reading, options: [row[0] for row in options])
        return module.evaluate(BACKBONE, suite, data=folder, **options)

    return run


def copy(folder, split, columns, **features):
    """A parquet file as the hub has it."""
    folder.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(columns, features=Features(features)).to_parquet(folder / f"{split}-00000-of-00001.parquet")


# --- in their own formats ---


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


# --- as the hub has them ---

TEXT, NUMBER = Value("string"), Value("int64")
YES_NO_COLUMNS = {"question_id": TEXT, "image": Image(), "question": TEXT, "answer": TEXT, "category": TEXT}


def test_mme_of_the_hub(tmp_path, answer):
    columns = {"question_id": ["OCR/1.jpg"] * 2 + ["OCR/2.jpg"] * 2, "question": ["A?", "B?"] * 2,
               "answer": ["Yes", "No"] * 2, "category": ["OCR"] * 4,
               "image": [{"bytes": png("red")}] * 2 + [{"bytes": b"broken"}] * 2}  # fmt: skip
    copy(tmp_path / "data", "test", columns, **YES_NO_COLUMNS)
    result = answer("mme", tmp_path, {("red", "A?"): "yes", ("red", "B?"): "yes"})
    assert result["figures"]["OCR"] == 50 and result["broken"] == 2
    assert "OCR/2.jpg cannot be read as a picture" in result["problems"][0]


def test_pope_of_the_hub(tmp_path, answer):
    for split in ("random", "popular", "adversarial"):
        columns = {"question_id": ["1", "2"], "question": ["A?", "B?"], "answer": ["yes", "no"],
                   "image_source": ["COCO_1"] * 2, "category": [split] * 2,
                   "image": [{"bytes": png("green")}] * 2}  # fmt: skip
        copy(tmp_path / "Full", split, columns, **YES_NO_COLUMNS, image_source=TEXT)
    result = answer("pope", tmp_path, {("green", "A?"): "Yes", ("green", "B?"): "No"})
    assert result["n"] == 6 and result["figures"]["mean F1"] == 100


def test_snli_ve_of_the_hub(tmp_path, answer):
    columns = {"image": [{"bytes": png("red")}], "filename": ["1.jpg"], "premise": ["x"], "hypothesis": ["A man."],
               "label": [2], "id": [0]}  # fmt: skip
    names = ClassLabel(names=["entailment", "neutral", "contradiction"])
    texts = dict.fromkeys(("filename", "premise", "hypothesis"), TEXT)
    copy(tmp_path, "test", columns, image=Image(), label=names, id=NUMBER, **texts)
    result = answer("snli-ve", tmp_path, {("red", ASKED["snli-ve"].format("A man.")): "contradiction"})
    assert result["figures"]["accuracy"] == 100


@pytest.mark.parametrize("name, image, label, right", [
    ("cifar-10", "img", "label", "bird"), ("cifar-100", "img", "fine_label", "baby"), ("mnist", "image", "label", "2")
])  # fmt: skip
def test_classes_of_the_hub(tmp_path, answer, name, image, label, right):
    copy(tmp_path, "test", {image: [{"bytes": png("red")}], label: [2]}, **{image: Image(), label: NUMBER})
    rows = list(BENCHMARKS[name].rows(tmp_path))
    assert rows[0].question.answers == (right,) and colour_of(rows[0].picture()) == "red"


def test_open_questions_of_the_hub(tmp_path, answer):
    picture, person = [{"bytes": png("red")}], {"answer": TEXT, "answer_confidence": TEXT, "answer_id": NUMBER}
    columns = {"image_id": ["a1"], "question_id": [7], "question": ["Brand?"], "answers": [["kodak"] * 10]}
    copy(tmp_path / "t", "validation", columns | {"image": picture},
         image_id=TEXT, question_id=Value("int32"), question=TEXT, answers=List(TEXT), image=Image())  # fmt: skip
    assert answer("textvqa", tmp_path / "t", {("red", "Brand?"): "Kodak"})["figures"]["accuracy"] == 100
    people = [{"answer": "red", "answer_confidence": "yes", "answer_id": i} for i in range(10)]
    columns |= {"image_id": [42], "answers": [people], "image": picture}
    copy(tmp_path / "v", "validation", columns,
         image_id=NUMBER, question_id=NUMBER, question=TEXT, answers=List(person), image=Image())  # fmt: skip
    assert answer("vqav2", tmp_path / "v", {("red", "Brand?"): "blue"})["figures"]["accuracy"] == 0
    copy(
        tmp_path / "g" / "testdev_balanced_images", "testdev", {"id": ["n1"], "image": picture}, id=TEXT, image=Image()
    )
    columns = {"id": ["1", "2"], "imageId": ["n1", "n2"], "question": ["What?"] * 2, "answer": ["cup"] * 2}
    copy(tmp_path / "g" / "testdev_balanced_instructions", "testdev", columns, **dict.fromkeys(columns, TEXT))
    result = answer("gqa", tmp_path / "g", {("red", "What?"): "Cup"})
    assert result["figures"]["accuracy"] == 100 and "row 2: there is no picture n2" in result["problems"][0]


def test_a_stream(tmp_path, answer, monkeypatch):
    columns = {"question_id": ["OCR/1.jpg"] * 2, "question": ["A?", "B?"], "answer": ["Yes", "No"],
               "category": ["OCR"] * 2, "image": [{"bytes": png("red")}] * 2}  # fmt: skip
    copy(tmp_path, "test", columns, **YES_NO_COLUMNS)
    files, asked = str(next(tmp_path.glob("*.parquet"))), []
    stream = load_dataset("parquet", data_files=files, split="train", streaming=True)
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **options: asked.append((args, options)) or stream)
    result = answer("mme", None, {("red", "A?"): "yes", ("red", "B?"): "no"})
    assert asked == [(("lmms-lab/MME", None), {"split": "test", "streaming": True})]
    assert result["source"] == "lmms-lab/MME" and result["figures"]["OCR"] == 200 and result["broken"] == 0

    def breaks_off(decoded):
        yield from ()
        raise ConnectionError("it broke off\nsomewhere")

    monkeypatch.setattr("datasets.load_dataset", lambda *args, **options: SimpleNamespace(decode=breaks_off))
    with pytest.raises(InputError, match=r"ylecun/mnist cannot be read from the hub \(it broke off\); go online, or"):
        answer("mnist", None, {})


def test_vsr_of_the_hub_has_links(answer, monkeypatch):
    coco = "http://images.cocodataset.org/train2017/{}.jpg".format
    row = {"image": "1.jpg", "image_link": coco(1), "caption": "It is so.", "label": 1}
    rows = [row, row | {"image": "2.jpg", "image_link": coco(2)}, row | {"image": "3.jpg", "image_link": "file:///x"}]

    def urlopen(link, timeout):
        if link != coco(1):
            raise OSError("not found")
        return io.BytesIO(png("green"))

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    stream = SimpleNamespace(decode=lambda decoded: iter(rows))
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **options: stream)
    result = answer("vsr", None, {("green", ASKED["vsr"].format("It is so.")): "true"})
    assert result["n"] == 1 and result["figures"]["accuracy"] == 100
    assert result["problems"] == [f"vsr-2: {coco(2)} cannot be fetched (not found).",
                                  "vsr-3: file:///x is no link to http://images.cocodataset.org/."]  # fmt: skip


def test_pictures_are_read_window_by_window():
    """Of many rows only two windows are ever begun ahead of the answers; one picture is read once a window."""
    read = []

    def rows():
        for i in range(100):
            question = SuiteQuestion(str(i), f"p{i // 2}", "?", ("yes",))
            yield Row(question, lambda i=i: read.append(i) or Pillow.new("RGB", (1, 1)))

    for number, (questions, pictures) in enumerate(windows(rows(), 10, []), 1):
        assert [q.id for q in questions] == [str(i) for i in range(10 * number - 10, 10 * number)]
        assert len(pictures) == 5 and len(read) <= 5 * (number + 1)
    assert len(read) == 50


# --- what cannot be used ---


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


@pytest.mark.hub
@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_first_rows_of_the_hub(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    problems = []
    rows = BENCHMARKS[name].usable(BENCHMARKS[name].rows(), 2, problems)
    try:
        first = next(rows)
    except InputError as error:
        pytest.skip(str(error))
    assert first.picture().mode == "RGB" and first.question.answers and not problems
