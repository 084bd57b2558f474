"""Pictures of one's own: both formats are read, unusable rows are told, each epoch sees every row once."""

import json
import os

import pytest
from helpers import tiny_backbone

from mmpt.data import Example, conversation, read_examples
from mmpt.errors import InputError
from mmpt.m2pt import M2PTConfig
from mmpt.scenes import make_scene
from mmpt.train import TrainConfig, train


@pytest.fixture
def folder(tmp_path):
    """Three pictures, seven questions."""
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = []
    for name, n in (("a.png", 3), ("b.png", 3), ("c.png", 1)):
        make_scene(ord(name[0])).image.save(folder / name)
        rows += [{"image": name, "question": f"{name} {i}?", "answer": f"yes {i}"} for i in range(n)]
    write(folder, rows)
    return folder


def write(folder, rows):
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_folder(folder):
    examples, problems = read_examples(folder, turns=2)
    assert not problems
    assert [(e.path.name, len(e.turns)) for e in examples] == [
        ("a.png", 2), ("a.png", 1), ("b.png", 2), ("b.png", 1), ("c.png", 1)
    ]  # fmt: skip
    assert examples[2].turns == (("b.png 0?", "yes 0"), ("b.png 1?", "yes 1"))
    assert examples[2].image.tobytes() == make_scene(ord("b")).image.tobytes()


def test_llava_json(folder):
    said = [("human", "<image>\nWhat is it?"), ("gpt", "A cat."), ("human", "Why?"), ("gpt", "Look.")]
    row = {"id": "1", "image": "a.png", "conversations": [{"from": who, "value": text} for who, text in said]}
    (folder / "llava.json").write_text(json.dumps([row, row | {"image": "b.png"}]))
    examples, problems = read_examples(folder / "llava.json", turns=1)
    assert not problems
    turns = (("What is it?", "A cat."), ("Why?", "Look."))  # a conversation stays whole
    assert examples == [Example(folder / "a.png", turns), Example(folder / "b.png", turns)]


def test_vision_flan(tmp_path):
    """Its JSON and, beside it, what its archive unpacks to; ids are shared by many rows of a task."""
    (tmp_path / "images_191task_1k").mkdir()
    make_scene(1).image.save(tmp_path / "images_191task_1k" / "PACS+guitar_830.png")
    row = {
        "id": "PACS+guitar_image_category_classification",
        "task_name": "PACS+guitar_image_category_classification",
        "image": "PACS+guitar_830.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat style is it?\nOptions:\n(a) Sketch\n(b) Cartoon"},
            {"from": "gpt", "value": "(a) Sketch"},
        ],
    }
    system = [{"from": "system", "value": "Be brief."}, *row["conversations"]]
    alone = {key: value for key, value in row.items() if key != "image"}
    other = row | {"image": "none.png"}
    (tmp_path / "annotation_191-task_1k.json").write_text(
        json.dumps([row, row | {"conversations": system}, alone, other, row | {"conversations": ["text"]}])
    )
    examples, problems = read_examples(tmp_path / "annotation_191-task_1k.json")
    question = "What style is it?\nOptions:\n(a) Sketch\n(b) Cartoon"
    path = tmp_path / "images_191task_1k" / "PACS+guitar_830.png"
    assert examples == [
        Example(path, ((question, "(a) Sketch"),)),
        Example(path, ((f"Be brief.\n{question}", "(a) Sketch"),)),
    ]
    told = ["row 3: it has no image", "row 4: There is no file", "row 5: conversations must alternate"]
    assert len(problems) == 3 and all(words in problem for words, problem in zip(told, problems))


def test_a_picture_in_two_folders_is_not_guessed(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        make_scene(1).image.save(tmp_path / name / "x.png")
    said = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "This."}]
    (tmp_path / "x.json").write_text(json.dumps([{"image": "x.png", "conversations": said}]))
    with pytest.raises(InputError, match="x.png is in .*a and in .*b; leave one of them"):
        read_examples(tmp_path / "x.json")


def test_a_folder_beside_that_may_not_be_looked_into(folder, monkeypatch):
    (folder / "lost+found").mkdir()
    stat = os.stat

    def closed(path, **kwargs):
        if f"lost+found{os.sep}" in str(path):
            raise PermissionError(13, "Permission denied")
        return stat(path, **kwargs)

    monkeypatch.setattr(os, "stat", closed)
    good = {"image": "a.png", "question": "What?", "answer": "this"}
    write(folder, [good, good | {"image": "none.png"}])
    examples, problems = read_examples(folder)
    assert len(examples) == 1 and "There is no file" in problems[0]


def test_what_cannot_be_used_is_told_and_the_rest_kept(folder):
    (folder / "broken.png").write_bytes(b"no picture")
    good = {"image": "a.png", "question": "What?", "answer": "this"}
    rows = [good, {**good, "image": "broken.png"}, {**good, "image": "none.png"}, {**good, "answer": 3}, {}, 7]
    rows += [good | {"answer": "<image>"}, good | {"question": "What \ud83d?"}]
    write(folder, rows)
    with (folder / "questions.jsonl").open("a") as file:
        file.write("{half a line\n")
    examples, problems = read_examples(folder)
    assert examples == [Example(folder / "a.png", (("What?", "this"),))]
    told = ["cannot be read as a picture", "There is no file", "answer is 3", "image is None", "no JSON"]
    told += ["an answer holds <image>", r"'\ud83d' is half of a character", "no JSON"]
    assert len(problems) == len(told)
    for number, (problem, words) in enumerate(zip(problems, told), 2):
        assert problem.startswith(f"questions.jsonl, row {number}: ") and words in problem


def test_a_file_of_another_editor(folder):
    """With a byte order mark, Windows' ends of lines, a blank line, LLaVA's mark, and U+2028 in a text."""
    rows = [{"image": "a.png", "question": f"<image>\nWhat {i}?", "answer": "this\u2028that"} for i in range(2)]
    text = "\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    for file in folder.glob("*.jsonl"):
        file.unlink()
    (folder / "questions.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n")
    examples, problems = read_examples(folder)
    turns = (("What 0?", "this\u2028that"), ("What 1?", "this\u2028that"))
    assert examples == [Example(folder / "a.png", turns)] and problems == []


def test_a_picture_in_the_place_of_its_name(folder):
    good = {"image": "a.png", "question": "What?", "answer": "this"}
    write(folder, [good, good | {"image": "A" * 9000}])
    examples, problems = read_examples(folder)
    assert len(examples) == 1 and "too long" in problems[0]


@pytest.mark.parametrize(
    "said, words",
    [
        ([("gpt", "A"), ("human", "B")], "alternate"),
        ([("human", "B")], "alternate"),
        ([("human", "B"), ("gpt", 3)], "alternate"),
        ([("human", "<image>"), ("gpt", "A")], "empty"),
        (None, "give a list"),
    ],
)
def test_broken_conversations(folder, said, words):
    said = said and [{"from": who, "value": text} for who, text in said]
    (folder / "llava.json").write_text(json.dumps([{"image": "a.png", "conversations": said}]))
    with pytest.raises(InputError, match=f"Nothing in .*llava.json can be tuned on. llava.json, row 1: .*{words}"):
        read_examples(folder / "llava.json")


def test_where_there_is_nothing(folder, tmp_path):
    with pytest.raises(InputError, match="There is nothing to tune on at .*none; give a folder"):
        read_examples(tmp_path / "none")
    with pytest.raises(InputError, match="holds 0 .jsonl files"):
        read_examples(tmp_path)
    for text, words in (("{", "is no JSON"), ("{}", "holds no list"), ("[]", "It is empty")):
        (folder / "x.json").write_text(text)
        with pytest.raises(InputError, match=words):
            read_examples(folder / "x.json")
    with pytest.raises(InputError, match="tasks and scenes are of drawn pictures"):
        TrainConfig("x", data=folder, tasks=["count"])


def test_every_epoch_has_every_row_once_in_another_order(folder):
    config = TrainConfig("x", pictures=2, data=folder)
    examples, _ = read_examples(folder, turns=1)
    seen = [conversation(config, step, i, examples)[1][0][0] for step in range(7) for i in range(2)]
    assert sorted(seen[:7]) == sorted(seen[7:]) == sorted(e.turns[0][0] for e in examples)
    assert seen[:7] != seen[7:]


def test_a_run_on_ones_own_pictures(folder, tmp_path, capsys):
    backbone = tiny_backbone()
    with (folder / "questions.jsonl").open("a") as file:
        file.write("broken\n")
    config = TrainConfig(tmp_path / "out", steps=12, pictures=5, lr=0.03, projector_lr=0.01, data=folder, log_every=1)
    train(backbone, M2PTConfig(num_textual_prompts=3, num_visual_prompts=2), config)
    assert "1 row(s) cannot be used and are left out:\nquestions.jsonl, row 8" in capsys.readouterr().err
    losses = [json.loads(line)["loss"] for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 0.3
    assert json.loads((tmp_path / "out" / "training.json").read_text())["config"]["data"] == str(folder)


def test_only_the_same_data_are_gone_on_with(folder, tmp_path, monkeypatch):
    def tune(data, **changes):
        config = TrainConfig(tmp_path / "out", steps=1, pictures=1, data=data, **changes)
        return train(tiny_backbone(), M2PTConfig(num_textual_prompts=3, num_visual_prompts=2), config)

    tune(folder)
    monkeypatch.chdir(tmp_path)
    tune("mine/", resume=True)
    with (folder / "questions.jsonl").open("a") as file:
        file.write('{"image": "c.png", "question": "More?", "answer": "yes"}\n')
    with pytest.raises(InputError, match="holds another run: examples_hash was '.*' and is '"):
        tune(folder, resume=True)
