"""Tune: a short run on chosen tasks, on a model of its own over the same frozen weights."""

import json
import shutil
import threading
import time
from itertools import count
from pathlib import Path

import gradio as gr
from peft import PeftConfig

from app import export
from app.pictures import MAX_SEED
from app.state import Studio, alert, twin
from mmpt import figures
from mmpt.backbones import Backbone
from mmpt.errors import InputError
from mmpt.methods import METHODS
from mmpt.scenes import SEEDS
from mmpt.tasks import TASKS, check_tasks, correct, questions_of
from mmpt.train import TrainConfig, train

FRESH = "a written instruction (a fresh start)"
MAX_STEPS = 200
WAIT = 0.5  # seconds between two looks at the run
DEFAULT = ("background", "count", "leftmost")
_numbers = count(1)


class Stopped(Exception):
    """The visitor stopped the run."""


class Stoppable(Backbone):
    """A backbone that makes no more batches once `stop` is set, so that a run on it ends within two steps."""

    stop: threading.Event

    def training_inputs(self, images, conversations):
        if self.stop.is_set():
            raise Stopped
        return super().training_inputs(images, conversations)


def questions(tasks: tuple[str, ...], n: int):
    """`n` fresh (picture, question) of each task, never tuned on."""
    firsts = (SEEDS["validation"] + (number << 20) for number in range(len(tasks)))
    return [(s.image, q) for name, first in zip(tasks, firsts) for s, q in questions_of(name, n, first)]


def accuracy(backbone: Backbone, asked, stop: threading.Event) -> float:
    """Share of the questions that are answered right."""
    right = 0
    for image, question in asked:
        if stop.is_set():
            raise Stopped
        right += correct(question, backbone.answer([image], [question.question], max_new_tokens=24)[0])
    return right / len(asked)


class Run:
    """A tuning run in a thread of its own; `state` says what it does.

    `before` and `after` (shares), `since` (when its steps began), `folder` of the adapter and `error` are None until
    they are known.
    """

    def __init__(self, studio: Studio, tasks, start: str, n_questions: int = 4, **options):
        """`options` go to `TrainConfig`."""
        self.studio, self.start, self.n_questions, self.options = studio, start, n_questions, options
        self.tasks, self.stop = check_tasks(dict.fromkeys(tasks or ())), threading.Event()
        names = (f"tuned-{number}" for number in _numbers)
        self.out = Path(studio.work.name) / next(name for name in names if name not in studio.folders)
        self.before = self.after = self.folder = self.error = self.since = None
        self.state = "asking fresh questions, before tuning"
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def losses(self) -> list[float]:
        """Of every step so far."""
        path = self.out / "log.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line)["loss"] for line in text.splitlines(keepends=True) if line.endswith("}\n")]

    def _work(self):
        try:
            asked = questions(self.tasks, self.n_questions)
            untuned = twin(self.studio.plain)
            if self.start != FRESH:
                untuned.add_adapter(self._start())
            self.before = accuracy(untuned, asked, self.stop)
            del untuned
            plain = twin(self.studio.plain)
            backbone = Stoppable(plain.name, plain.model, plain.processor, quantize=plain.quantize)
            backbone.stop, method = self.stop, METHODS["m2pt"]
            configuration, options = method.configure(backbone.processor.tokenizer), method.rates | self.options
            if self.start != FRESH:
                configuration = PeftConfig.from_pretrained(self._start())
                configuration.inference_mode, options["start"] = False, self._start()
            self.state, self.since = "tuning", time.monotonic()
            train(
                backbone,
                configuration,
                TrainConfig(self.out, tasks=self.tasks, save_every=MAX_STEPS, log_every=1, **options),
            )
            self.state = "asking fresh questions, after tuning"
            self.after = accuracy(backbone, asked, self.stop)
            self.folder = self.out
        except Exception as error:  # told by whoever waits for the run
            self.error = error
            shutil.rmtree(self.out, ignore_errors=True)

    def _start(self):
        if self.start not in self.studio.folders:
            raise InputError(f"The adapter {self.start!r} is not there any more; start from another.")
        return self.studio.folders[self.start]


def tune(studio: Studio, session: str, tasks, start: str, steps: int, pictures: int, seed: float | None):
    """Yields as it goes on: message, state in words, loss curve, model A, model B, where to start, adapter file.

    Closing the generator ends the run; so does `stop` of the same session.
    """
    same = [gr.skip()] * 4
    try:
        if seed is None or not 0 <= seed <= MAX_SEED or seed != int(seed):
            raise InputError(f"The seed is {seed}; give a whole number from 0 to {MAX_SEED}.")
        run = Run(studio, tasks, start, steps=int(steps), pictures=int(pictures), seed=int(seed))
    except InputError as error:
        yield alert(error), "", None, *same
        return
    studio.runs[session], started, drawn = run, time.monotonic(), 0
    try:
        while run.thread.is_alive():
            losses = run.losses()
            curve = _curve(losses) if len(losses) > drawn else gr.skip()
            drawn = len(losses)
            yield "", _words(run, losses, int(steps), time.monotonic() - started), curve, *same
            run.thread.join(WAIT)
    finally:
        run.stop.set()  # without waiting, since Gradio closes generators in the thread that serves everybody
        if studio.runs.get(session) is run:
            del studio.runs[session]
    if isinstance(run.error, Stopped):
        yield "", "Stopped. No adapter was made, and the models are as they were.", gr.skip(), *same
    elif isinstance(run.error, InputError):
        yield alert(run.error), "", gr.skip(), *same
    elif run.error:
        raise run.error
    else:
        name = studio.add_tuned(run.folder)
        file = shutil.make_archive(export.new_file(name), "zip", run.folder.parent, run.folder.name)
        n = len(run.tasks) * run.n_questions
        words = (
            f"Done: {run.after:.0%} of {n} fresh questions right, {run.before:.0%} before tuning. **{name}** "
            "is model B of the tab *Ask* now, and can be chosen there like the others."
        )
        pickers = gr.Dropdown(choices=studio.choices()), gr.Dropdown(choices=studio.choices(), value=name)
        pickers += (gr.Dropdown(choices=starts(studio)),)
        yield "", words, _curve(run.losses()), *pickers, gr.DownloadButton(value=file, interactive=True)


def stop(studio: Studio, session: str) -> str:
    """End the session's run within two steps; the words to show meanwhile."""
    run = studio.runs.get(session)
    if run is None:
        return "Nothing is being tuned."
    run.stop.set()
    return "Stopping ..."


def tab(studio: Studio, models: list[gr.Dropdown]) -> gr.Dropdown:
    """Lay the tab out; `models` are the pickers that the result is offered in. Returns that of where to start."""
    gr.Markdown(
        "Tune prompts of your own on a few tasks, on pictures that are drawn for it. The models of the other tabs "
        "stay as they are, and others can go on asking."
    )
    with gr.Row():
        with gr.Column(min_width=280):
            labels = [(f"{name}: {task.description}", name) for name, task in TASKS.items()]
            tasks = gr.Dropdown(labels, value=list(DEFAULT), multiselect=True, label="Tasks")
            start = gr.Dropdown(starts(studio), value=FRESH, label="Start from")
            steps = gr.Slider(2, MAX_STEPS, 30, step=1, label="Steps", info="2 to 5 seconds each on a small machine")
            pictures = gr.Slider(1, 8, 4, step=1, label="Pictures a step")
            seed = gr.Number(0, label="Seed", precision=0)
            with gr.Row():
                press = gr.Button("Tune", variant="primary")
                halt = gr.Button("Stop", variant="stop")
        with gr.Column(min_width=300, scale=2):
            message = gr.HTML(elem_classes="message")
            state = gr.Markdown("Nothing has been tuned yet.", elem_classes="about")
            curve = gr.Plot(label="Loss", show_label=False)
            file = gr.DownloadButton("Download the adapter (ZIP)", interactive=False)

    def run(tasks, start, steps, pictures, seed, request: gr.Request):
        yield from tune(studio, request.session_hash, tasks, start, steps, pictures, seed)

    def end(request: gr.Request):
        return stop(studio, request.session_hash)

    press.click(
        run, [tasks, start, steps, pictures, seed], [message, state, curve, *models, start, file],
        concurrency_id="tuning", show_progress="hidden", trigger_mode="once",
    )  # fmt: skip
    halt.click(end, None, state, queue=False, show_progress="hidden")
    return start


def starts(studio: Studio) -> list[str]:
    """What a run can start from."""
    return [FRESH, *(name for name in list(studio.folders) if name in studio.starts)]


def _curve(losses):
    return figures.loss(list(range(1, len(losses) + 1)), losses)


def _words(run, losses, steps, seconds):
    if run.state != "tuning" or not losses:
        return f"{run.state.capitalize()} ... {seconds:.0f} s"
    step = (time.monotonic() - run.since) / len(losses)
    left = f", about {(steps - len(losses)) * step:.0f} s left" if len(losses) < steps else ""
    before = f" Before tuning {run.before:.0%} of the fresh questions were answered right."
    return f"Step {len(losses)} of {steps}, loss {losses[-1]:.2f}{left}.{before}"
