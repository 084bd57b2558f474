import gradio as gr
import pytest
import torch
from gradio.utils import get_upload_folder

from app.ask import ask, rate, stream
from app.export import save_answers
from app.link import restore
from app.pictures import EXAMPLE_SEEDS, KEEP, UNKNOWN, Picture, check_upload, draw, origin, scene
from app.state import Asked, open_upload
from mmpt.explain.targets import token_log_probabilities


def test_the_stream_ends_at_the_answer(studio, picture):
    image = open_upload(picture)
    for adapter in ("none", "one"):
        texts = list(stream(studio.asking, adapter, image, "What?"))
        with studio.asking.use(adapter) as backbone:
            assert texts[-1] == backbone.answer([image], ["What?"], max_new_tokens=8)[0]


def test_an_answer_comes_word_by_word(tiny, picture):
    from app.state import Lane

    texts = list(stream(Lane(tiny, {}), "none", open_upload(picture), "Describe the picture."))
    assert len(texts) > 3 and all(b.startswith(a) for a, b in zip(texts, texts[1:]))


def test_a_closed_stream_frees_the_model(studio, picture):
    running = stream(studio.asking, "one", open_upload(picture), "What?")
    next(running)
    assert studio.asking.lock.locked()
    running.close()
    assert studio.asking.lock.acquire(timeout=10)  # within a token
    studio.asking.lock.release()


def test_both_models_answer(studio, picture):
    *_, last = ask(studio, picture, " What? ", "none", "two")
    message, left, right, asked, rated = last
    assert (
        message == ""
        and rated == {}
        and asked == Asked(picture, "What?", {"none": left, "two": right})
        and left != right
    )


@pytest.mark.parametrize(
    "given, question, adapter, sentence",
    [
        (False, "What?", "one", "There is no picture yet: choose an example"),
        (True, "   ", "one", "The question is empty; ask"),
        (True, None, "one", "The question is empty; ask"),
        (True, "x" * 2001, "one", "The question has 2001 characters; ask with at most 2000"),
        (True, "What?", "three", "The adapter &#x27;three&#x27; is not there"),
    ],
)
def test_mistakes_are_one_sentence(studio, picture, given, question, adapter, sentence):
    *_, (message, left, right, *_) = ask(studio, picture if given else None, question, adapter, "one")
    assert sentence in message and (left, right) == ("", "")


def test_probabilities(studio, asked):
    given = asked.picture, asked.question, "none", "one"
    message, left, right, both = rate(studio, asked, *given)
    assert message == "" and both == {"none": left, "one": right} and left.keys() == right.keys()
    assert {*asked.answers.values()} <= {*left}  # what was shown is rated, and not written anew
    image = open_upload(asked.picture)
    for adapter, rated in both.items():
        with studio.asking.use(adapter) as backbone:
            for answer, probability in rated.items():
                logp = token_log_probabilities(backbone, [image], [asked.question], [answer])[0].sum()
                assert probability == pytest.approx(logp.exp().item(), rel=1e-3, abs=1e-30)
    torch.testing.assert_close(list(right.values()), sorted(right.values(), reverse=True))


def test_a_question_of_too_many_tokens(studio, picture):
    *_, (message, *_) = ask(studio, picture, "what " * 60, "none", "one")
    assert "The question has 299 tokens; ask with at most 256." in message


def test_no_other_file_of_the_server_is_shown(picture):
    shown = Picture().postprocess(picture)
    shown.path = f"{get_upload_folder()}/scene.png"
    assert Picture().preprocess(shown) == shown.path
    shown.path = picture
    with pytest.raises(gr.Error, match="no picture that was uploaded"):
        Picture().preprocess(shown)


def test_probabilities_of_another_question_are_not_shown(studio, asked):
    assert rate(studio, asked, asked.picture, "What else?", "none", "one") == (gr.skip(), None, None, {})
    assert rate(studio, asked, asked.picture, asked.question, "none", "two") == (gr.skip(), None, None, {})
    assert rate(studio, None, asked.picture, asked.question, "none", "one") == (gr.skip(), None, None, {})


def test_upload(tmp_path, picture):
    assert check_upload(picture)[1:] == (UNKNOWN, "", "")
    assert check_upload(None)[1:] == ("", "", "")
    broken = tmp_path / "notes.png"
    broken.write_text("not a picture")
    shown, truth, place, message = check_upload(str(broken))
    assert (shown, truth, place) == (None, "", "") and "The file cannot be read as a picture; give" in message


def test_drawn_scenes_tell_the_truth():
    image, truth, place, problem = draw(7, 2)
    assert image.size == (336, 336) and "two objects" in truth and problem == "" and place == "seed=7&objects=2"
    assert draw(7, 2)[0].tobytes() == image.tobytes()
    assert draw(7, KEEP)[:3] == (*scene(7), "seed=7")
    for seed in (-1, None, 1.5, 2**31):
        assert f"The seed is {seed}; give a whole number from 0 to 2147483647." in draw(seed, 2)[-1]


def test_a_link_restores_a_view(studio):
    query = {"seed": "7", "objects": "2", "question": "Where?", "left": "two", "right": "none", "tab": "tune"}
    *shown, question, left, right, tab, again = restore(studio, ["ask", "tune"], query)
    assert shown == [*scene(7, 2), origin(7, 2), ""]
    assert (question, left.value, right.value, tab, again) == ("Where?", "two", "none", "tune", True)


def test_a_link_to_a_model_that_is_gone_says_so(studio):
    *_, problem, _, left, right, _, _ = restore(studio, ["ask"], {"left": "one", "right": "tuned-1"})
    assert "The model &#x27;tuned-1&#x27; of the link is not there" in problem
    assert (left.value, right.value) == ("one", studio.first)


@pytest.mark.parametrize(
    "query", [{}, {"seed": "x"}, {"seed": "1e99", "tab": "?"}, {"seed": "4", "objects": "9"}, {"seed": "nan"}]
)
def test_what_a_link_says_wrongly_is_as_on_a_fresh_page(studio, query):
    image, truth, place, problem, question, left, right, tab, again = restore(studio, ["ask", "tune"], query)
    assert (image, truth) == scene(EXAMPLE_SEEDS[0]) and bool(problem) == bool(query)
    assert (left.value, right.value, tab, again) == ("none", "one", None, False)


def test_answers_as_json(asked):
    import json
    from pathlib import Path

    message, path = save_answers(asked, {"none": {"a cat": 0.5}})
    row = json.loads(Path(path).read_text())
    assert message == "" and row["answers"] == asked.answers and row["probabilities"] == {"none": {"a cat": 0.5}}
    assert row["picture"] == "scene.png" and row["question"] == "What?"
    assert "ask a question first" in save_answers(None, {})[0]
