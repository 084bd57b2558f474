"""Where a picture comes from: an example, a scene drawn from its seed, or a visitor's file."""

from functools import lru_cache

import gradio as gr
from gradio.utils import get_upload_folder, is_in_or_equal

from app.state import alert, open_upload
from mmpt.errors import InputError
from mmpt.scenes import make_scene
from mmpt.tiny.describe import describe

EXAMPLE_SEEDS = (0, 4, 13, 20, 34, 56)
SIZE = 336  # pixels: scenes as they are shown
MAX_SEED = 2**31 - 1
UNKNOWN = "Not known: only drawn scenes come with their truth."
KEEP = "any"  # as a number of objects: what the seed says


class Picture(gr.Image):
    """Hands over the uploaded file as it is, so that nothing but `open_picture` decodes it.

    Any path can come over the API; only of uploads and of what was shown is the file looked at.
    """

    is_template = True  # shown by the parent's frontend

    def preprocess(self, payload):
        places = get_upload_folder(), self.GRADIO_CACHE
        if payload and not any(is_in_or_equal(payload.path, place) for place in places):
            raise gr.Error("This is no picture that was uploaded here.")
        return payload and payload.path


@lru_cache(64)
def scene(seed: int, n_objects: int | None = None):
    """Picture and true description of a scene."""
    drawn = make_scene(seed, SIZE, n_objects=n_objects)
    return drawn.image, describe(drawn)


# Each of the three ways to a new picture returns (picture, truth, origin, what is wrong). The origin is the part of a
# link that leads to the same picture, and empty where none does.


def show_example(event: gr.SelectData):
    seed = EXAMPLE_SEEDS[event.index]
    return *scene(seed), origin(seed), ""


def draw(seed: float | None, objects: str | int):
    problem = None
    if seed is None or not 0 <= seed <= MAX_SEED or seed != int(seed):
        problem = f"The seed is {seed}; give a whole number from 0 to {MAX_SEED}."
    elif objects != KEEP and objects not in range(1, 6):
        problem = f"{objects:g} objects were asked for; a scene holds 1 to 5."
    if problem:
        return gr.skip(), gr.skip(), gr.skip(), alert(problem)
    n_objects = None if objects == KEEP else int(objects)
    return *scene(int(seed), n_objects), origin(int(seed), n_objects), ""


def check_upload(path: str | None):
    try:
        if path:
            open_upload(path)
    except InputError as error:
        return None, "", "", alert(error)
    return gr.skip(), UNKNOWN if path else "", "", ""


def origin(seed: int, n_objects: int | None = None) -> str:
    """`origin(7, 2)` → "seed=7&objects=2"."""
    return f"seed={seed}" + (f"&objects={n_objects}" if n_objects else "")
