"""The page: a picture, a question, and the answers of the untouched and of the tuned model side by side."""

from functools import cache, partial

import gradio as gr

from mmpt.ask import MAX_BYTES, check_question, open_picture
from mmpt.errors import InputError
from mmpt.scenes import make_scene
from mmpt.tiny.describe import describe

EXAMPLE_SEEDS = (0, 4, 13, 20, 34, 56)
QUESTIONS = (
    "Describe the picture.",
    "How many objects are in the picture?",
    "What colour is the background?",
    "What is the leftmost object?",
    "Name the object closest to the upper edge.",
)
INTRO = """# mmpt: ask before and after prompt tuning
The same small multimodal model answers twice: as it was, and with a few learned prompts (under half a per cent of its
parameters) in every layer. Choose or upload a picture, ask, and compare."""
FOOTER = """Pictures: [OpenMoji](https://openmoji.org) 17, CC BY-SA 4.0.
Language model: SmolLM2-135M-Instruct, Apache-2.0."""
CSS = ".answer textarea {font-size: 1.15rem}"


@cache
def example(seed: int):
    """Picture and true description of an example scene."""
    scene = make_scene(seed, 336)
    return scene.image, describe(scene)


def show_example(event: gr.SelectData):
    image, truth = example(EXAMPLE_SEEDS[event.index])
    return image, truth


def draw(seed: float, objects: float):
    """A fresh scene as (picture, true description)."""
    if seed is None or seed != int(seed) or not 0 <= seed < 2**31:
        raise gr.Error("The seed must be a whole number from 0 to 2147483647.", print_exception=False)
    scene = make_scene(int(seed), 336, n_objects=int(objects))
    return scene.image, describe(scene)


def open_upload(path: str | None):
    """What the picture component shows for an uploaded file, or one sentence on what is wrong with it."""
    try:
        return (open_picture(path) if path else None), ""
    except InputError as error:
        sentence = str(error).replace(str(path), "The file")
        raise gr.Error(sentence, print_exception=False) from None


def answers(backbone, adapter, image, question):
    """(untouched, tuned) answers; without an adapter the second is empty."""
    try:
        if image is None:
            raise InputError("There is no picture yet: choose an example, upload one, or draw a scene.")
        question = check_question(question or "")
        with backbone.use(None):
            base = backbone.answer([image], [question])[0]
        if adapter is None:
            return base, ""
        with backbone.use(adapter):
            return base, backbone.answer([image], [question])[0]
    except InputError as error:
        raise gr.Error(str(error), print_exception=False) from None


def build(backbone, adapter: str | None) -> gr.Blocks:
    """The page over a loaded backbone; `adapter` is the name of its loaded adapter, or None."""
    first_picture, first_truth = example(EXAMPLE_SEEDS[0])
    with gr.Blocks(title="mmpt", analytics_enabled=False) as page:
        gr.Markdown(INTRO)
        with gr.Tab("Ask"):
            with gr.Row():
                with gr.Column(min_width=300):
                    picture = gr.Image(
                        first_picture, label="Picture", type="pil", interactive=False, height=340,
                        buttons=["download", "fullscreen"],
                    )  # fmt: skip
                    gallery = gr.Gallery(
                        [example(seed)[0] for seed in EXAMPLE_SEEDS], label="Examples", columns=6, height=110,
                        allow_preview=False, interactive=False, buttons=[],
                    )  # fmt: skip
                    with gr.Accordion("Your own picture, or a new scene", open=False):
                        upload = gr.File(label="Upload a picture", type="filepath", file_types=["image"], height=110)
                        with gr.Row():
                            seed = gr.Number(label="Seed", value=7, precision=0, minimum=0, min_width=100)
                            objects = gr.Slider(1, 5, 3, step=1, label="Objects", min_width=120)
                        drawn = gr.Button("Draw this scene")
                with gr.Column(min_width=300):
                    question = gr.Textbox(label="Question", value=QUESTIONS[0], lines=2, max_lines=4)
                    gr.Examples([[q] for q in QUESTIONS], question, label="Try one of these")
                    button = gr.Button("Ask", variant="primary")
                    base = gr.Textbox(label="Before tuning (untouched model)", lines=2, elem_classes="answer")
                    tuned = gr.Textbox(
                        label=f"After tuning ({adapter})" if adapter else "After tuning (no adapter loaded)", lines=2,
                        elem_classes="answer",
                    )  # fmt: skip
                    truth = gr.Textbox(
                        first_truth, label="What is really in the picture (known for drawn scenes)", lines=3
                    )
        gr.Markdown(FOOTER)
        gallery.select(show_example, None, [picture, truth])
        drawn.click(draw, [seed, objects], [picture, truth])
        upload.upload(open_upload, upload, [picture, truth])
        ask = partial(answers, backbone, adapter)
        gr.on([button.click, question.submit], ask, [picture, question], [base, tuned], concurrency_id="model")
    return page.queue(default_concurrency_limit=1, max_size=64)


def launch(page: gr.Blocks, **options) -> None:
    """Serve the page; `options` go to `gr.Blocks.launch`."""
    page.launch(css=CSS, max_file_size=MAX_BYTES // 4, footer_links=[], ssr_mode=False, **options)
