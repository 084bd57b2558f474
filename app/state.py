"""What all visitors share, a model with its adapters, and what each keeps: the last question that was answered.

A model has one active adapter at a time, so whoever uses it holds its lock. There are two of them over the same
weights: short questions need not wait for a long look inside.
"""

import html
import json
import os
import re
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
import torch
from PIL import Image

from mmpt.adapters import adapter_folder, free_name, method_of
from mmpt.ask import open_picture
from mmpt.backbones import Backbone
from mmpt.errors import InputError
from mmpt.files import ASSETS
from mmpt.mpt4lm.backbone import without_projector

NONE = "none"  # as an adapter: the untouched model
MAX_TUNED = 6  # adapters of visitors that are kept
MAX_KEPT, MAX_BYTES = 6, 2**30  # results of looks inside: 10 to 20 MB each on "tiny", gigabytes on a 7B
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


def is_text_only(folder: Path) -> bool:
    """Whether the adapter is one of MPT4LM, whose LLM has no projector."""
    return method_of(folder) == "MPT4LM"


def twin(backbone: Backbone) -> Backbone:
    """Another model over the very same weights: adapters, hooks and modes of one are not the other's."""
    weights = {id(tensor): tensor for tensor in (*backbone.model.parameters(), *backbone.model.buffers())}
    for module in backbone.model.modules():
        if hasattr(module, "init_8bit_state"):  # bitsandbytes moves the numbers there in the first call
            if module.weight.CB is not None:
                module.init_8bit_state()
            weights |= {id(tensor): tensor for tensor in (module.state.CB, module.state.SCB)}
    model, processor = deepcopy(backbone.model, weights), deepcopy(backbone.processor)
    return Backbone(backbone.name, model, processor, quantize=backbone.quantize)


class Lane:
    """A model that one visitor uses at a time; `text` is its LLM without a projector, for adapters of MPT4LM."""

    def __init__(self, backbone: Backbone, folders: dict[str, Path], text: Backbone | None = None):
        self.backbone, self.folders, self.text, self.lock = backbone, folders, text, threading.Lock()

    def backbone_of(self, adapter: str) -> Backbone:
        """What an adapter is for."""
        return self.text if adapter != NONE and is_text_only(self.folders[adapter]) else self.backbone

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
                    self.backbone_of(adapter).add_adapter(self.folders[adapter], adapter)
            yield self.backbone

    @contextmanager
    def use(self, adapter: str, text_only: bool = False) -> Iterator[Backbone]:
        """The same with that adapter active; `text_only`: one of MPT4LM will do.

        Raises:
            InputError: as `loaded`, or the adapter is one of MPT4LM where it will not do.
        """
        with self.loaded(adapter):
            backbone = self.backbone_of(adapter)
            if backbone is self.text and not text_only:
                raise InputError(
                    f"{adapter} was tuned with MPT4LM, for which this view is not there: its LLM has no projector and "
                    "no prompts in its layers. The tab “Attention” shows from which words and patches its visual "
                    "prompts were made."
                )
            with backbone.use(known(adapter)):
                yield backbone

    def drop(self, adapter: str) -> None:
        """Forget a loaded adapter."""
        with self.lock:
            model = self.backbone.model
            loaded = getattr(model, "peft_config", {})
            if [*loaded] == [adapter]:
                self.backbone.model = model.unload()  # PEFT cannot go on without any
            elif adapter in loaded:
                model.delete_adapter(adapter)  # visitors tune with M²PT


class Studio:
    """The model and its adapters.

    Args:
        backbone: without an adapter.
        adapters: shipped names or folders beside those that are shipped for this backbone; the first is compared with
            the untouched model at the start.
    """

    def __init__(self, backbone: Backbone, adapters: list[str | Path] = ()):
        self.plain = twin(backbone)  # what tuning starts from
        folders = [Path(os.path.abspath(adapter_folder(adapter))) for adapter in adapters]
        homes = (backbone.name, f"{backbone.name}-text")
        folders += sorted(
            path.parent
            for path in ASSETS.glob("adapters/*/adapter_config.json")
            if json.loads(path.read_text())["base_model_name_or_path"] in homes
        )
        self.folders = {}
        for folder in folders:
            self.folders[free_name(folder, self.folders)] = folder
        self.tuned: list[str] = []
        self.work = TemporaryDirectory(prefix="mmpt-app-", ignore_cleanup_errors=True)  # of what visitors tune
        self.runs: dict = {}  # tuning runs by session
        self.texts = {name for name, folder in self.folders.items() if is_text_only(folder)}
        self.starts = {name for name, folder in self.folders.items() if method_of(folder) == "M2PT"}  # of tuning
        self.asking, self.looking = (
            Lane(model, self.folders, without_projector(twin(self.plain)) if self.texts else None)
            for model in (backbone, twin(backbone))
        )
        self.first = next(iter(self.folders), NONE) if adapters else NONE
        self._kept, self._keeping = OrderedDict(), threading.Lock()

    def choices(self) -> list[tuple[str, str]]:
        """(label, value) of a picker."""
        return [("untouched model", NONE)] + [
            (f"{name} (MPT4LM)" if self.text_only(name) else name, name) for name in list(self.folders)
        ]

    def text_only(self, adapter: str | None) -> bool:
        """Whether this is an adapter of MPT4LM."""
        return adapter in self.texts

    def add_tuned(self, folder: Path) -> str:
        """Offer a visitor's adapter, under its folder's name; the oldest beyond `MAX_TUNED` goes, with its folder."""
        self.folders[folder.name] = folder
        self.tuned.append(folder.name)
        self.starts.add(folder.name)
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
            while (
                len(self._kept) > MAX_KEPT or len(self._kept) > 1 and sum(map(_size, self._kept.values())) > MAX_BYTES
            ):
                self._kept.popitem(last=False)
        return value


def _size(kept):
    """Bytes of the tensors that it holds directly, such as attention's weights."""
    values = kept if isinstance(kept, tuple) else vars(kept).values()
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))


def open_upload(path: str | None) -> Image.Image:
    """A visitor's picture.

    Raises:
        InputError: there is none, or it cannot be read; the server's path is not in the sentence.
    """
    if not path:
        raise InputError("There is no picture yet: choose an example, draw a scene or upload a file.")
    if not os.path.exists(path):
        raise InputError("The picture is not kept here any more; choose, draw or upload it again.")
    try:
        return open_picture(path)
    except InputError as error:
        raise InputError(str(error).replace(str(path), "The file")) from error


def alert(problem: InputError | str) -> str:
    """A sentence that a screen reader reads out when it appears."""
    return f'<p role="alert">{html.escape(str(problem))}</p>'


def plain(text: str) -> str:
    """What a visitor or a model said, for Markdown: nothing in it is formatting, a picture or a link."""
    return re.sub(r"([\\`*_\[\]#|~$])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


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
