"""Ask: two models answer the same question on the same picture, side by side, word by word."""

import threading
from collections.abc import Iterator
from functools import partial
from queue import SimpleQueue

import gradio as gr
import torch
from PIL import Image
from transformers import StoppingCriteriaList, TextStreamer

from app.pictures import EXAMPLE_SEEDS, KEEP, SIZE, Picture, check_upload, draw, origin, scene, show_example
from app.state import Asked, Lane, Studio, alert, known, open_upload, told
from mmpt.ask import check_question
from mmpt.errors import InputError
from mmpt.explain.checks import compare

MAX_NEW_TOKENS = 64
MAX_TOKENS = 256  # of a question; what attention keeps of a look grows with their square
RUNNERS = 3  # beside each model's own answer
QUESTIONS = (
    "Describe the picture.",
    "How many objects are in the picture?",
    "What colour is the background?",
    "What is the leftmost object?",
    "Name the object closest to the upper edge.",
)


class _Pieces(TextStreamer):
    """Puts the text into a queue, word by word."""

    def __init__(self, tokenizer, queue):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.queue = queue

    def on_finalized_text(self, text, stream_end=False):
        self.queue.put(text)


def stream(lane: Lane, adapter: str, image: Image.Image, question: str) -> Iterator[str]:
    """The greedy answer as far as it is written, again and again; its last state is that of `Backbone.answer`.

    Closing the generator stops the writing within a token and frees the lane.
    """
    pieces, stop = SimpleQueue(), threading.Event()

    def write():
        try:
            with lane.use(adapter, text_only=True) as backbone, torch.inference_mode():
                backbone.model.generate(
                    **backbone.inputs([image], [question]),
                    max_new_tokens=MAX_NEW_TOKENS,
                    do_sample=False,
                    eos_token_id=backbone.end_ids,
                    streamer=_Pieces(backbone.processor.tokenizer, pieces),
                    stopping_criteria=StoppingCriteriaList(
                        [lambda ids, scores, **_: torch.full((len(ids),), stop.is_set(), device=ids.device)]
                    ),
                )
            pieces.put(None)
        except Exception as error:  # raised again where the answer is read
            pieces.put(error)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        text = ""
        while (piece := pieces.get()) is not None:
            if isinstance(piece, Exception):
                raise piece
            text += piece
            yield text.strip()
        writer.join()
        yield text.strip()
    finally:
        stop.set()  # without waiting, since Gradio closes generators in the thread that serves everybody


def ask(studio: Studio, picture: str | None, question: str | None, left: str, right: str):
    """Yields, as they come: message, left answer, right answer, and at last what was `Asked` and no ratings yet."""
    texts = ["", ""]
    try:
        image, question = open_upload(picture), check_question(question or "")
        if (n := len(studio.plain.processor.tokenizer(question)["input_ids"])) > MAX_TOKENS:
            raise InputError(f"The question has {n} tokens; ask with at most {MAX_TOKENS}.")
        for side, adapter in enumerate((left, right)):
            for texts[side] in stream(studio.asking, adapter, image, question):
                yield "", *texts, gr.skip(), gr.skip()
        yield "", *texts, Asked(picture, question, dict(zip((left, right), texts))), {}
    except InputError as error:
        yield alert(error), "", "", gr.skip(), gr.skip()


def rate(studio: Studio, asked: Asked | None, picture: str | None, question: str | None, left: str, right: str):
    """(message, two {answer: probability}, both by adapter): the answers and their runners-up, under either model.

    Beside another model one tuned with MPT4LM rates its own answers only. Empty where there is no answer to this
    question, or another one has been put meanwhile; what was said about that stays.
    """
    now = picture, (question or "").strip(), {left, right}
    if asked is None or now != (asked.picture, asked.question, {*asked.answers}):
        return gr.skip(), None, None, {}
    return _ratings(studio, asked, left, right)


@told(3)
def _ratings(studio, asked, left, right):
    alike = studio.text_only(left) == studio.text_only(right)
    found, lane = [], studio.looking
    with lane.loaded(left, right):
        for group in ([left, right],) if alike else ([left], [right]):
            adapters, greedy = zip(*((known(adapter), asked.answers[adapter]) for adapter in group))
            backbone = lane.backbone_of(group[0])
            options = {"greedy": greedy, "runners": RUNNERS, "max_new_tokens": MAX_NEW_TOKENS}
            found.append(compare(backbone, asked.image(), asked.question, adapters, **options))
    ratings = [dict(zip(part.answers, row)) for part in found for row in part.probabilities.tolist()]
    return *ratings, dict(zip((left, right), ratings))


def tab(studio: Studio, asked: gr.State, rated: gr.State, write: str) -> dict:
    """Lay the tab out; `write` is the script that counts the question and puts it into the address.

    Returns what the page's link needs of it; `other`: when a visitor turns to something else.
    """
    image, description = scene(EXAMPLE_SEEDS[0])
    models, answers, ratings = [], [], []
    with gr.Row():
        with gr.Column(min_width=300):
            picture = Picture(
                image, label="Picture", format="png", sources=["upload", "webcam", "clipboard"], height=SIZE + 4,
                alt_text="The picture that is asked about", buttons=["download", "fullscreen"],
            )  # fmt: skip
            problem = gr.HTML(elem_classes="message")
            gr.Markdown("Examples")
            gallery = gr.Gallery(
                [scene(seed)[0] for seed in EXAMPLE_SEEDS], label="Examples", show_label=False, height="auto",
                allow_preview=False, interactive=False, buttons=[], elem_classes="examples",
            )  # fmt: skip
            with gr.Accordion("Draw a new scene", open=False):
                with gr.Row():
                    seed = gr.Number(label="Seed", value=7, precision=0, min_width=100)
                    objects = gr.Dropdown([KEEP, 1, 2, 3, 4, 5], value=KEEP, label="Objects", min_width=100)
                drawn = gr.Button("Draw this scene")
            place = gr.Textbox(origin(EXAMPLE_SEEDS[0]), visible="hidden")
        with gr.Column(min_width=300, scale=2):
            question = gr.Textbox(label="Question", value=QUESTIONS[0], lines=2, max_lines=4)
            tries = gr.Dataset(components=[question], samples=[[q] for q in QUESTIONS], label="Try one of these")
            button = gr.Button("Ask", variant="primary")
            message = gr.HTML(elem_classes="message")
            with gr.Row():
                for name, adapter in zip("AB", ("none", studio.first)):
                    with gr.Column(min_width=240):
                        models.append(gr.Dropdown(studio.choices(), value=adapter, label=f"Model {name}"))
                        answers.append(gr.Textbox(label=f"Answer of model {name}", lines=3, elem_classes="answer"))
                        ratings.append(
                            gr.Label(
                                label=f"How probable to model {name}",
                                show_heading=False,
                                num_top_classes=RUNNERS + 1,
                                elem_classes="ratings",
                            )
                        )
            truth = gr.Textbox(description, label="What is really in the picture", lines=2, interactive=False)
    new, answered = [picture, truth, place, problem], [message, *answers, asked, rated]
    quick = {"outputs": new, "show_progress": "hidden", "trigger_mode": "always_last"}
    # A deferred click would come with the first one's place.
    gallery.select(show_example, None, **quick | {"trigger_mode": "multiple"})
    drawn.click(draw, [seed, objects], **quick)
    picture.input(check_upload, picture, **quick)
    tries.click(lambda sample: sample[0], tries, question, show_progress="hidden", queue=False)
    given = [picture, question, *models]
    rates = {"fn": partial(rate, studio), "inputs": [asked, *given], "outputs": [message, *ratings, rated],
             "concurrency_id": "looking", "show_progress_on": ratings}  # fmt: skip
    # What one event starts runs in order: the link is there before the answer.
    gr.on([button.click, question.submit], None, [place, question, *models], None, js=write)
    run = gr.on(
        [button.click, question.submit], partial(ask, studio), given, answered, concurrency_id="asking",
        show_progress="minimal", show_progress_on=answers, trigger_mode="always_last", api_name="ask",
    )  # fmt: skip
    rated_run = run.success(**rates, api_name="rate")
    # Answers about another picture, to another question or of another model, such as one just tuned, would be misread:
    # they go at once, and none follows. A word may still be on its way when the cancelling is done: it goes, too.
    other = [gallery.select, drawn.click, picture.input]
    changed = [*other, question.change, *(m.change for m in models)]
    quiet = {"show_progress": "hidden", "trigger_mode": "multiple"}
    gr.on(
        changed, None, None, [message, *answers, *ratings], js="() => ['', '', '', {}, {}]", cancels=[run, rated_run],
        **quiet,
    )  # fmt: skip
    late = """async () => {
      const asked = window.mmptAsked;
      await new Promise(done => setTimeout(done, 300));
      return asked && asked === window.mmptAsked ? ['', '', {}, {}] : [];
    }"""  # of a question that was put meanwhile, or by the page's link, the answer stays
    gr.on(changed, None, None, [*answers, *ratings], js=late, **quiet)
    asks = {"fn": partial(ask, studio), "inputs": given, "outputs": answered, "concurrency_id": "asking"}
    return {"asks": asks, "rates": rates, "new": new, "models": models, "question": question,
            "place": place, "other": [*other, question.input, tries.click, *(m.input for m in models)]}  # fmt: skip
