"""Exercises of notebook 1: cutting a picture into patches, and putting what was seen among the words."""

from torch import Tensor

from mmpt.exercises.check import exercise, tensor


def _picture(rng):
    p = rng.choice((2, 4))
    return tensor(rng, 3, p * rng.randint(2, 4), p * rng.randint(5, 6)), p


def _channels_last(pixels, p):
    return patches(pixels, p).view(-1, 3, p * p).transpose(1, 2).flatten(1)


def _down_first(pixels, p):
    _, H, W = pixels.shape
    return patches(pixels, p).view(H // p, W // p, -1).transpose(0, 1).flatten(0, 1)


def _plain_reshape(pixels, p):
    return pixels.reshape(-1, 3 * p * p)


@exercise(
    "patches",
    _picture,
    (_channels_last, "inside a patch the colours come first: all of red, then green, then blue, as in (3, p, p)."),
    (_down_first, "the order is that of reading, row by row; these patches run down the columns."),
    (_plain_reshape, "a reshape alone takes pixels that follow each other in memory, and those lie in one line of the "
                     "picture, not in one square."),
)  # fmt: skip
def patches(pixels: Tensor, p: int) -> Tensor:
    C, H, W = pixels.shape
    blocks = pixels.view(C, H // p, p, W // p, p)
    return blocks.permute(1, 3, 0, 2, 4).reshape(-1, C * p * p)


def _sequence(rng):
    n, before, after = rng.randint(2, 5), rng.randint(1, 4), rng.randint(1, 4)
    is_image = tensor(rng, before + n + after) > 9
    is_image[before : before + n] = True
    return tensor(rng, len(is_image), 4), is_image, tensor(rng, n, 4)


def _at_the_front(embeds, is_image, features):
    embeds[: len(features)] = features
    return embeds


def _added(embeds, is_image, features):
    embeds[is_image] += features
    return embeds


@exercise(
    "merge",
    _sequence,
    (_at_the_front, "the picture belongs where is_image is True; this puts it at the front."),
    (_added, "the features replace the embeddings of the placeholders; this adds the two."),
)
def merge(embeds: Tensor, is_image: Tensor, features: Tensor) -> Tensor:
    merged = embeds.clone()
    merged[is_image] = features
    return merged
