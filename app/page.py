"""The page: a picture, a question, and the answers of the untouched and of the tuned model side by side."""

from functools import cache, partial

import gradio as gr

from mmpt.ask import check_question, open_picture
from mmpt.errors import InputError
from mmpt.scenes import make_scene
from mmpt.tiny.describe import describe

EXAMPLE_SEEDS = (0, 4, 13, 20, 34, 56)
SIZE = 336  # pixels: scenes as they are shown
MAX_SEED = 2**31 - 1
QUESTIONS = (
    "Describe the picture.",
    "How many objects are in the picture?",
    "What colour is the background?",
    "What is the leftmost object?",
    "Name the object closest to the upper edge.",
)
UNKNOWN = "Not known: only drawn scenes come with their truth."
INTRO = """# mmpt: ask before and after prompt tuning
The same small multimodal model answers twice: as it was, and with a few learned prompts in every layer. Choose, draw
or upload a picture, ask, and compare."""
FOOTER = """Pictures of objects: [OpenMoji](https://openmoji.org) 17, CC BY-SA 4.0. \
Language model: SmolLM2-135M-Instruct, Apache-2.0."""
CSS = """
.answer textarea {font-size: 1.15rem}
.message p {border-left: 4px solid #b42318; padding: .5rem .75rem; font-weight: 600}
.examples .grid-wrap {min-height: 0 !important}
.examples .grid-container {grid-template: none / repeat(auto-fill, minmax(76px, 1fr)) !important}
.examples .thumbnail-item {aspect-ratio: 1; height: auto}
"""


class Picture(gr.Image):
    """Hands over the uploaded file as it is, so that nothing but `open_picture` decodes it."""

    is_template = True  # shown by the parent's frontend

    def preprocess(self, payload):
        return payload and payload.path


@cache
def scene(seed: int, n_objects: int | None = None):
    """Picture and true description of a scene."""
    drawn = make_scene(seed, SIZE, n_objects=n_objects)
    return drawn.image, describe(drawn)


# Each of the three ways to a new picture returns (picture, truth, what is wrong).


def show_example(event: gr.SelectData):
    return *scene(EXAMPLE_SEEDS[event.index]), ""


def draw(seed: float | None, objects: float):
    if seed is None or seed != int(seed) or not 0 <= seed <= MAX_SEED:
        return gr.skip(), gr.skip(), f"The seed is {seed}; give a whole number from 0 to {MAX_SEED}."
    return *scene(int(seed), int(objects)), ""


def check_upload(path: str | None):
    try:
        if path:
            _open(path)
    except InputError as error:
        return None, "", str(error)
    return gr.skip(), UNKNOWN if path else "", ""


def _open(path):
    try:
        return open_picture(path)
    except InputError as error:  # without the server's path
        raise InputError(str(error).replace(str(path), "The file")) from error


def answers(backbone, adapter: str | None, picture: str | None, question: str | None):
    """(message, untouched answer, tuned answer); without an adapter the last is empty."""
    try:
        if picture is None:
            raise InputError("There is no picture yet: choose an example, draw a scene or upload a file.")
        image, question = _open(picture), check_question(question or "")
        with backbone.use(None):
            base = backbone.answer([image], [question])[0]
        if adapter is None:
            return "", base, ""
        with backbone.use(adapter):
            return "", base, backbone.answer([image], [question])[0]
    except InputError as error:
        return str(error), "", ""


def build(backbone, adapter: str | None) -> gr.Blocks:
    """The page over a loaded backbone; `adapter` is the name of its loaded adapter, or None."""
    first_picture, first_truth = scene(EXAMPLE_SEEDS[0])
    with gr.Blocks(title="mmpt", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(INTRO)
        with gr.Tab("Ask"), gr.Row():
            with gr.Column(min_width=300):
                picture = Picture(
                    first_picture, label="Picture", format="png", sources=["upload", "webcam", "clipboard"],
                    height=SIZE + 4, alt_text="The picture that is asked about", buttons=["download", "fullscreen"],
                )  # fmt: skip
                problem = gr.Markdown(elem_classes="message")
                gr.Markdown("Examples")
                gallery = gr.Gallery(
                    [scene(seed)[0] for seed in EXAMPLE_SEEDS], label="Examples", show_label=False, height="auto",
                    allow_preview=False, interactive=False, buttons=[], elem_classes="examples",
                )  # fmt: skip
                with gr.Accordion("Draw a new scene", open=False):
                    with gr.Row():
                        seed = gr.Number(label="Seed", value=7, precision=0, min_width=100)
                        objects = gr.Slider(1, 5, 3, step=1, label="Objects", min_width=120)
                    drawn = gr.Button("Draw this scene")
            with gr.Column(min_width=300):
                question = gr.Textbox(label="Question", value=QUESTIONS[0], lines=2, max_lines=4)
                gr.Examples([[q] for q in QUESTIONS], question, label="Try one of these")
                button = gr.Button("Ask", variant="primary")
                message = gr.Markdown(elem_classes="message")
                with gr.Row():
                    base = gr.Textbox(
                        label="Before tuning (untouched model)", lines=3, elem_classes="answer", min_width=200
                    )
                    tuned = gr.Textbox(
                        label=f"After tuning ({adapter})" if adapter else "After tuning (no adapter loaded)", lines=3,
                        elem_classes="answer", min_width=200,
                    )  # fmt: skip
                truth = gr.Textbox(first_truth, label="What is really in the picture", lines=3, interactive=False)
        gr.Markdown(FOOTER)
        new, answered = [picture, truth, problem], [message, base, tuned]
        quick = {"outputs": new, "show_progress": "hidden", "trigger_mode": "always_last"}
        gallery.select(show_example, None, **quick)
        drawn.click(draw, [seed, objects], **quick)
        picture.input(check_upload, picture, **quick)
        # Answers about another picture or to another question would be misread: they go at once.
        asked_anew = [gallery.select, drawn.click, picture.input, question.change]
        gr.on(asked_anew, None, None, answered, js="() => ['', '', '']")
        ask = partial(answers, backbone, adapter)
        gr.on([button.click, question.submit], ask, [picture, question], answered, concurrency_id="model")
    return page.queue(default_concurrency_limit=1, max_size=64)


def launch(page: gr.Blocks, **options) -> None:
    """Serve the page; `options` go to `gr.Blocks.launch`."""
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    page.launch(
        theme=theme, css=CSS, max_file_size="16mb", footer_links=[], run_history=False, ssr_mode=False, **options
    )
