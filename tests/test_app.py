import os
import shutil
from contextlib import contextmanager

import gradio as gr
import pytest
from PIL import Image

from app.page import EXAMPLE_SEEDS, answers, build, draw, example, launch, open_upload
from mmpt.errors import InputError

PICTURE = Image.new("RGB", (40, 40), "red")


class Echo:
    """Stands for a backbone: says which adapter was asked what."""

    active = "m2pt"

    @contextmanager
    def use(self, adapter):
        before, self.active = self.active, adapter
        yield self
        self.active = before

    def answer(self, images, questions, max_new_tokens=64):
        return [f"{self.active or 'base'} on {image.size[0]} px: {q}" for image, q in zip(images, questions)]


def test_both_models_answer():
    echo = Echo()
    assert answers(echo, "m2pt", PICTURE, " What? ") == ("base on 40 px: What?", "m2pt on 40 px: What?")
    assert echo.active == "m2pt"
    assert answers(echo, None, PICTURE, "What?") == ("base on 40 px: What?", "")


@pytest.mark.parametrize(
    "image, question, sentence",
    [
        (None, "What?", "no picture yet"),
        (PICTURE, "   ", "question is empty"),
        (PICTURE, "x" * 2001, "2001 characters"),
    ],
)
def test_mistakes_are_one_sentence(image, question, sentence):
    with pytest.raises(gr.Error, match=sentence):
        answers(Echo(), "m2pt", image, question)


def test_upload_of_no_picture(tmp_path):
    file = tmp_path / "notes.png"
    file.write_text("not a picture")
    with pytest.raises(gr.Error, match="^'The file cannot be read as a picture"):
        open_upload(str(file))
    PICTURE.save(file)
    assert open_upload(str(file))[0].size == (40, 40)


def test_drawn_scenes_tell_the_truth():
    image, truth = draw(7, 2)
    assert image.size == (336, 336) and "two objects" in truth
    assert draw(7, 2)[0].tobytes() == image.tobytes()
    for seed in (-1, None, 1.5, 2**31):
        with pytest.raises(gr.Error, match="whole number"):
            draw(seed, 2)


def chromium():
    return shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def url():
    page = build(Echo(), "m2pt")
    launch(page, prevent_thread_lock=True, quiet=True)
    yield page.local_url
    page.close()


@pytest.fixture(scope="module")
def browser():
    if chromium() is None:
        if os.environ.get("CI"):
            pytest.fail("There is no browser; CI needs Debian's chromium.")
        pytest.skip("There is no chromium or google-chrome, so the page is not tested in a browser.")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
        browser = playwright.chromium.launch(executable_path=chromium(), args=flags)
        yield browser
        browser.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_asking_on_the_page(url, browser, width, tmp_path):
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(url)
    page.get_by_label("What is really in the picture").wait_for()
    page.get_by_label("Question", exact=True).fill("Where is it?")
    page.get_by_role("button", name="Ask", exact=True).click()
    after = page.get_by_label("After tuning (m2pt)")
    page.wait_for_function("e => e.value !== ''", arg=after.element_handle())
    assert after.input_value() == "m2pt on 336 px: Where is it?"
    assert page.get_by_label("Before tuning").input_value() == "base on 336 px: Where is it?"

    page.locator("button.thumbnail-item, .thumbnail-item").nth(2).click()
    truth = page.get_by_label("What is really in the picture")
    expected = example(EXAMPLE_SEEDS[2])[1]
    page.wait_for_function("([e, t]) => e.value === t", arg=[truth.element_handle(), expected])

    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n no more")
    page.get_by_text("Your own picture, or a new scene").click()
    page.locator("input[type=file]").first.set_input_files(str(broken))
    page.get_by_text("cannot be read as a picture").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if folder := os.environ.get("MMPT_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/app-{width}.png", full_page=True)
    page.close()


def test_wrong_adapter_is_one_sentence(capsys, monkeypatch):
    from app.__main__ import main

    monkeypatch.setattr("mmpt.backbones.load", lambda name: (_ for _ in ()).throw(InputError("No such thing.")))
    assert main(["--backbone", "nowhere"]) == 2
    assert capsys.readouterr().err == "app: No such thing.\n"
