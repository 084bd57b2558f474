"""The data sets as the hub has them: from parquet files, from a stream, and (marked hub) the hub itself."""

import io
import socket
from types import SimpleNamespace

import pytest
from copies import colour_of, copy, png
from datasets import ClassLabel, Image, List, Value, load_dataset
from PIL import Image as Pillow

from mmpt.benchmarks import BENCHMARKS, windows
from mmpt.benchmarks.rows import Row
from mmpt.errors import InputError
from mmpt.suites import ASKED, SuiteQuestion

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


def test_a_file_that_is_not_whole(tmp_path, answer):
    (tmp_path / "test-0.parquet").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(InputError, match=r"cannot be read \(.*\); copy it again \(git lfs pull\)"):
        answer("mnist", tmp_path, {})


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


@pytest.fixture(scope="module")
def online():
    try:
        socket.create_connection(("huggingface.co", 443), timeout=5).close()
    except OSError as error:
        pytest.skip(f"the hub cannot be reached: {error}")


@pytest.mark.hub
@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_first_row_of_the_hub_itself(name, online, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    problems = []
    first = next(BENCHMARKS[name].usable(BENCHMARKS[name].rows(), 2, problems))
    assert first.picture().mode == "RGB" and first.question.answers and not problems
