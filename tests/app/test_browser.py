"""The real page in a browser, on the embedded model: `MMPT_SCREENSHOTS=FOLDER` keeps what it looks like."""

import os
import shutil

import pytest
from PIL import Image

from app.page import TABS, build, launch
from app.pictures import EXAMPLE_SEEDS, UNKNOWN, scene
from app.state import Studio, twin

WAIT = 90_000  # ms, for a model on a busy machine


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        if os.environ.get("CI"):
            pytest.fail("There is no browser; CI needs Debian's chromium.")
        pytest.skip("There is no chromium or google-chrome, so the page is not tested in a browser.")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url(tiny, browser):
    page = build(Studio(twin(tiny), ["m2pt"]))
    launch(page, prevent_thread_lock=True, quiet=True)
    yield page.local_url
    page.close()


@pytest.fixture
def visit(url, browser):
    """Opens the page; in the end nothing foreign was asked for, nothing failed, nothing is wider than the window."""
    foreign, errors, pages = [], [], []

    def visit(query="", width=1280):
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.set_default_timeout(WAIT)
        page.on("request", lambda r: foreign.append(r.url) if not r.url.startswith((url, "data:", "blob:")) else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url + query)
        page.get_by_role("tab", name="Ask").wait_for()
        page.wait_for_function("window.mmptRead")  # what the link says stands on the page, and replaces nothing later
        pages.append((page, width))
        return page

    yield visit
    for page, width in pages:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.close()
    assert foreign == [] and errors == []  # works without a network


def until(page, label, test):
    """Wait until the text of the box of that label, as `e.value`, passes."""
    box = page.get_by_label(label, exact=True)
    box.wait_for()
    page.wait_for_function(f"e => {test}", arg=box.element_handle())
    return box.input_value()


def ask(page, question):
    page.get_by_label("Question", exact=True).fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()
    page.wait_for_function("document.querySelectorAll('.ratings [class*=confidence]').length > 1")  # the last to come
    return [until(page, f"Answer of model {name}", "e.value != ''") for name in "AB"]


def picture_of(page, name):
    if folder := os.environ.get("MMPT_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def figure(page):
    """Wait for the first figure of the open tab."""
    page.locator(".js-plotly-plot .main-svg:visible").first.wait_for()


def test_asking_and_every_look_inside(visit):
    page = visit()
    page.locator(".examples button").nth(2).click()
    until(page, "What is really in the picture", f"e.value === {scene(EXAMPLE_SEEDS[2])[1]!r}")
    first, second = ask(page, "What is the leftmost object?")
    assert first and second and first != second
    assert f"seed={EXAMPLE_SEEDS[2]}&question=What+is+the+leftmost+object" in page.url
    picture_of(page, "ask")
    with page.expect_download() as file:
        page.get_by_role("button", name="Save answers (JSON)").click()
    assert second in file.value.path().read_text()

    page.get_by_role("tab", name="Prompts").click()
    page.get_by_text(f"m2pt answered “{second}”").first.wait_for()
    page.get_by_role("checkbox", name="T1", exact=True).uncheck()
    until(page, "Answer with these prompts", "e.value != ''")
    page.get_by_text("had a probability of").wait_for()
    page.get_by_role("button", name="Measure the effect of each single prompt").click()
    figure(page)
    picture_of(page, "prompts")

    page.get_by_role("tab", name="Attention").click()
    figure(page)
    page.get_by_text("The textual prompts stand before the picture").first.wait_for()
    picture_of(page, "attention")

    page.get_by_role("tab", name="Attribution").click()
    page.get_by_role("button", name="Compute", exact=True).click()
    figure(page)
    page.get_by_text("The values miss the difference by").wait_for()
    picture_of(page, "attribution")

    page.get_by_role("tab", name="Table").click()
    figure(page)
    assert "tab=table" in page.url
    page.get_by_text("tuned", exact=True).locator("visible=true").first.click()
    page.locator(".cell-menu-button:visible").first.click()
    page.get_by_text("Sort descending", exact=True).click()
    page.locator(".virtual-row[data-index='0']").get_by_text("134958528").wait_for()  # as text, 990720 would be first

    page.get_by_role("tab", name="Ask").click()
    page.get_by_label("Question", exact=True).fill("What else?")
    for name in "AB":  # an answer to another question is gone
        until(page, f"Answer of model {name}", "e.value === ''")


def test_a_look_that_was_open_before_the_answer(visit):
    page = visit()
    page.get_by_label("Question", exact=True).fill("What is the leftmost object?")
    page.get_by_role("button", name="Copy a link to this").click()
    page.wait_for_function("location.search.includes('leftmost')")  # asked or not
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_role("tab", name="Attention").click()
    figure(page)  # as soon as the answer is there
    page.get_by_role("slider", name="Layer").or_(page.get_by_label("Layer (0: mean over all)")).locator(
        "visible=true"
    ).last.press("ArrowRight")
    page.locator(".js-plotly-plot:visible").get_by_text("layer 1").first.wait_for()


def test_an_answer_under_way_does_not_come_after_another_question(visit):
    page = visit()
    page.get_by_role("button", name="Ask", exact=True).click()
    until(page, "Answer of model A", "e.value != ''")
    page.get_by_label("Question", exact=True).press_sequentially(" Now?")
    until(page, "Answer of model A", "e.value === ''")
    page.wait_for_timeout(4000)
    for name in "AB":
        assert page.get_by_label(f"Answer of model {name}", exact=True).input_value() == ""
    first, second = ask(page, "What colour is the background?")
    assert first and second


def test_a_run_is_stopped(visit):
    page = visit("?tab=tune")
    page.get_by_role("button", name="Tune", exact=True).click()
    page.get_by_text("Asking fresh questions, before tuning").wait_for()
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_text("Stopped. No adapter was made").wait_for()


def test_a_broken_file_and_a_phone(visit, tmp_path):
    page = visit(width=360)
    page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n no more")
    page.locator("input[type=file]").first.set_input_files(str(broken))
    page.get_by_text("The file cannot be read as a picture").wait_for()
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_text("There is no picture yet").wait_for()
    page.wait_for_timeout(1500)  # nothing that follows an answer takes the sentence away
    assert page.get_by_text("There is no picture yet").is_visible()
    picture_of(page, "phone")
    Image.new("RGB", (50, 60), "blue").save(tmp_path / "blue.png")
    page.locator("input[type=file]").first.set_input_files(str(tmp_path / "blue.png"))
    until(page, "What is really in the picture", f"e.value === {UNKNOWN!r}")


def test_a_link_restores_a_view(visit):
    page = visit(
        "?seed=13&objects=2&question=What+colour+is+the+background%3F&left=m2pt-carry&right=m2pt&tab=attention"
    )
    figure(page)  # the question was asked again
    page.get_by_text("The textual prompts stand after the picture").wait_for()  # m2pt-carry is looked into
    page.get_by_role("tab", name="Ask").click()
    until(page, "What is really in the picture", f"e.value === {scene(13, 2)[1]!r}")
    assert page.get_by_label("Model A", exact=True).input_value() == "m2pt-carry"
    for name in "AB":
        until(page, f"Answer of model {name}", "e.value != ''")


def test_an_adapter_of_mpt4lm(visit):
    page = visit("?seed=13&question=What+colour+is+the+background%3F&left=m2pt&right=mpt4lm-background&tab=attention")
    figure(page)
    page.get_by_role("radio", name="mpt4lm-background").locator("visible=true").click()
    page.get_by_text("This model was tuned with MPT4LM").wait_for()
    page.locator(".strip").get_by_text("background", exact=True).click()
    page.get_by_text("read “background”").first.wait_for()
    picture_of(page, "mpt4lm")


def test_every_tab_opens_before_anything_is_asked(visit):
    page = visit()
    for name in (*TABS[1:], TABS[0]):
        page.get_by_role("tab", name=name.capitalize()).click()
        page.wait_for_function(f"location.search.includes('tab={name}')")
