"""What all visitors share, a model with its adapters, and what each keeps: the last question that was answered.

A model has one active adapter at a time, so whoever uses it holds its lock. There are two of them over the same
weights: short questions need not wait for a long look inside.
"""

import html
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory

import gradio as gr
from PIL import Image

from mmpt.ask import open_picture
from mmpt.backbones import ASSETS, Backbone, adapter_folder, method_of
from mmpt.errors import InputError

NONE = "none"  # as an adapter: the untouched model
MAX_TUNED = 6  # adapters of visitors that are kept
MAX_KEPT = 6  # results of looks inside, 10 to 20 MB each on "tiny"
SHOWN = 672  # pixels: the longer side of a picture in a figure


@dataclass(frozen=True)
class Asked:
    """A question that was answered; `answers` are by adapter, "none" for none."""

    picture: str  # path
    question: str
    answers: dict[str, str]

    def __hash__(self):  # by which Gradio sees that it has changed
        return hash((self.picture, self.question, *self.answers.items()))

    def image(self) -> Image.Image:
        """The picture as it was given.

        Raises:
            InputError: it is gone.
        """
        return open_upload(self.picture)

    def shown(self) -> Image.Image:
        """The picture as it is shown, small enough for a figure."""
        image = self.image()
        image.thumbnail((SHOWN, SHOWN))
        return image


def known(adapter: str) -> str | None:
    """The adapter as a backbone names it."""
    return None if adapter == NONE else adapter


def twin(backbone: Backbone) -> Backbone:
    """Another model over the very same weights: adapters, hooks and modes of one are not the other's."""
    weights = {id(tensor): tensor for tensor in (*backbone.model.parameters(), *backbone.model.buffers())}
    return Backbone(backbone.name, deepcopy(backbone.model, weights), deepcopy(backbone.processor))


class Lane:
    """A model that one visitor uses at a time."""

    def __init__(self, backbone: Backbone, folders: dict[str, Path]):
        self.backbone, self.folders, self.lock = backbone, folders, threading.Lock()

    @contextmanager
    def loaded(self, *adapters: str) -> Iterator[Backbone]:
        """Within the context the backbone is the caller's alone, and can `use` the adapters.

        Raises:
            InputError: there is no such adapter (any more), or it does not fit the backbone.
        """
        with self.lock:
            for adapter in adapters:
                if adapter not in (NONE, *self.folders):
                    names = ", ".join((NONE, *self.folders))
                    raise InputError(f"The adapter {adapter!r} is not there, or not any more; choose one of {names}.")
                if adapter != NONE:
                    self.backbone.add_adapter(self.folders[adapter])
            yield self.backbone

    @contextmanager
    def use(self, adapter: str) -> Iterator[Backbone]:
        """The same with that adapter active."""
        with self.loaded(adapter) as backbone, backbone.use(known(adapter)):
            yield backbone

    def drop(self, adapter: str) -> None:
        """Forget a loaded adapter."""
        with self.lock:
            if adapter in getattr(self.backbone.model, "peft_config", {}):
                self.backbone.model.delete_adapter(adapter)


class Studio:
    """The model and its adapters.

    Args:
        backbone: without an adapter.
        adapters: shipped names or folders beside those that are shipped for this backbone; the first is compared with
            the untouched model at the start.
    """

    def __init__(self, backbone: Backbone, adapters: list[str | Path] = ()):
        self.plain = twin(backbone)  # what tuning starts from
        folders = [adapter_folder(adapter) for adapter in adapters]
        if backbone.name == "tiny":
            shipped = sorted(path.parent for path in ASSETS.glob("adapters/*/adapter_config.json"))
            folders += [folder for folder in shipped if method_of(folder) != "MPT4LM"]  # whose LLM has no projector
        self.folders = {folder.name.replace(".", "_"): folder for folder in folders}
        self.tuned: list[str] = []
        self.work = TemporaryDirectory(prefix="mmpt-app-", ignore_cleanup_errors=True)  # of what visitors tune
        self.runs: dict = {}  # tuning runs by session
        self.asking, self.looking = Lane(backbone, self.folders), Lane(twin(backbone), self.folders)
        self.first = next(iter(self.folders), NONE) if adapters else NONE
        self._kept, self._keeping = OrderedDict(), threading.Lock()

    def choices(self) -> list[tuple[str, str]]:
        """(label, value) of a picker."""
        return [("untouched model", NONE)] + [(name, name) for name in self.folders]

    def add_tuned(self, folder: Path) -> str:
        """Offer a visitor's adapter, under its folder's name; the oldest beyond `MAX_TUNED` goes, with its folder."""
        self.folders[folder.name] = folder
        self.tuned.append(folder.name)
        while len(self.tuned) > MAX_TUNED:
            oldest = self.tuned.pop(0)
            gone = self.folders.pop(oldest)
            for lane in (self.asking, self.looking):
                lane.drop(oldest)
            shutil.rmtree(gone, ignore_errors=True)
        return folder.name

    def keep(self, key: tuple, make: Callable):
        """`make()`, or what it gave for the same key a short while ago."""
        with self._keeping:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        value = make()
        with self._keeping:
            self._kept[key] = value
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return value


def open_upload(path: str | None) -> Image.Image:
    """A visitor's picture.

    Raises:
        InputError: there is none, or it cannot be read; the server's path is not in the sentence.
    """
    if not path:
        raise InputError("There is no picture yet: choose an example, draw a scene or upload a file.")
    try:
        return open_picture(path)
    except InputError as error:
        raise InputError(str(error).replace(str(path), "The file")) from error


def alert(problem: InputError | str) -> str:
    """A sentence that a screen reader reads out when it appears."""
    return f'<p role="alert">{html.escape(str(problem))}</p>'


def told(outputs: int) -> Callable:
    """What a visitor got wrong becomes the first output, empty otherwise; the function's own `outputs` then stay."""

    def decorate(function):
        @wraps(function)
        def run(*args, **kwargs):
            try:
                return "", *function(*args, **kwargs)
            except InputError as error:
                return alert(error), *[gr.skip()] * outputs

        return run

    return decorate
