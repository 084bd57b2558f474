import os
import shutil
from contextlib import contextmanager

import pytest
from PIL import Image

from app.page import EXAMPLE_SEEDS, UNKNOWN, answers, build, check_upload, draw, launch, scene
from mmpt.errors import InputError


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


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    return str(tmp_path / "red.png")


def test_both_models_answer(picture):
    echo = Echo()
    assert answers(echo, "m2pt", picture, " What? ") == ("", "base on 40 px: What?", "m2pt on 40 px: What?")
    assert echo.active == "m2pt"
    assert answers(echo, None, picture, "What?") == ("", "base on 40 px: What?", "")


@pytest.mark.parametrize(
    "given, question, sentence",
    [
        (False, "What?", "There is no picture yet: choose an example"),
        (True, "   ", "The question is empty; ask"),
        (True, None, "The question is empty; ask"),
        (True, "x" * 2001, "The question has 2001 characters; ask with at most 2000"),
    ],
)
def test_mistakes_are_one_sentence(picture, given, question, sentence):
    message, *rest = answers(Echo(), "m2pt", picture if given else None, question)
    assert message.startswith(sentence) and rest == ["", ""]


def test_upload(tmp_path, picture):
    assert check_upload(picture)[1:] == (UNKNOWN, "")
    assert check_upload(None)[1:] == ("", "")
    broken = tmp_path / "notes.png"
    broken.write_text("not a picture")
    shown, truth, message = check_upload(str(broken))
    assert (shown, truth) == (None, "") and message.startswith("The file cannot be read as a picture; give")
    assert answers(Echo(), None, str(broken), "What?")[0] == message


def test_drawn_scenes_tell_the_truth():
    image, truth, problem = draw(7, 2)
    assert image.size == (336, 336) and "two objects" in truth and problem == ""
    assert draw(7, 2)[0].tobytes() == image.tobytes()
    for seed in (-1, None, 1.5, 2**31):
        assert draw(seed, 2)[2] == f"The seed is {seed}; give a whole number from 0 to 2147483647."


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


def value(page, label, expected):
    """Wait until the box of that label reads as expected."""
    box = page.get_by_label(label)
    page.wait_for_function("([e, text]) => e.value === text", arg=[box.element_handle(), expected], timeout=20_000)


@pytest.mark.parametrize("width", [1280, 390])
def test_asking_on_the_page(url, browser, width, tmp_path):
    page = browser.new_page(viewport={"width": width, "height": 900})
    foreign, errors = [], []
    page.on("request", lambda r: foreign.append(r.url) if not r.url.startswith((url, "data:", "blob:")) else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    page.get_by_label("What is really in the picture").wait_for()
    page.get_by_label("Question", exact=True).fill("Where is it?")
    page.get_by_role("button", name="Ask", exact=True).click()
    value(page, "Before tuning", "base on 336 px: Where is it?")
    value(page, "After tuning (m2pt)", "m2pt on 336 px: Where is it?")
    if folder := os.environ.get("MMPT_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/app-{width}.png", full_page=True)

    page.locator(".examples button").nth(2).click()
    value(page, "What is really in the picture", scene(EXAMPLE_SEEDS[2])[1])
    value(page, "After tuning (m2pt)", "")  # an answer about another picture is gone

    page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n no more")
    page.locator("input[type=file]").first.set_input_files(str(broken))
    page.get_by_text("The file cannot be read as a picture").wait_for()
    if folder:
        page.screenshot(path=f"{folder}/app-{width}-broken.png", full_page=True)
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_text("There is no picture yet").wait_for()

    Image.new("RGB", (50, 60), "blue").save(tmp_path / "blue.png")
    page.locator("input[type=file]").first.set_input_files(str(tmp_path / "blue.png"))
    value(page, "What is really in the picture", UNKNOWN)
    page.get_by_role("button", name="Ask", exact=True).click()
    value(page, "After tuning (m2pt)", "m2pt on 50 px: Where is it?")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert foreign == [] and errors == []  # works without a network
    page.close()


def test_wrong_adapter_is_one_sentence(capsys, monkeypatch):
    from app.__main__ import main

    monkeypatch.setattr("mmpt.backbones.load", lambda name: (_ for _ in ()).throw(InputError("No such thing.")))
    assert main(["--backbone", "nowhere"]) == 2
    assert capsys.readouterr().err == "app: No such thing.\n"


def test_taken_port_is_one_sentence(capsys, monkeypatch):
    import socket

    from app.__main__ import main

    monkeypatch.setattr("mmpt.backbones.load", lambda name: Echo())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["--adapter", "none", "--port", str(taken.getsockname()[1])]) == 2
    error = capsys.readouterr().err
    assert error.startswith("app: The page cannot be served on 127.0.0.1, port ") and "give another --host" in error
    assert main(["--adapter", "none", "--port", "99999"]) == 2
    assert "port 99999" in capsys.readouterr().err
