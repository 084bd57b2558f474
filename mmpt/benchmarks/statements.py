"""Is it so? VSR (Liu et al., TACL 2023) and SNLI-VE (Xie et al., 2019), asked in the words of our miniatures."""

import io
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from mmpt.ask import MAX_BYTES, decode_picture
from mmpt.benchmarks.rows import Row, each, json_lines, label, number_or_text, picture_at, picture_in, pictures_of
from mmpt.errors import InputError
from mmpt.files import field
from mmpt.suites import ASKED, ENTAILMENT, TRUE_FALSE, SuiteQuestion

VSR_WANTED = "VSR's test.jsonl (of splits/zeroshot or splits/random) and images/ or trainval2017/"
SNLI_VE_WANTED = "snli_ve_test.jsonl and Flickr30K's flickr30k-images/"
COCO = "http://images.cocodataset.org/"


def vsr(folder: Path) -> Iterator[Row | InputError]:
    pictures = pictures_of(folder, "images", "trainval2017")
    return _vsr(json_lines(folder / "test.jsonl", VSR_WANTED), lambda row: picture_at(pictures, field(row, "image")))


def vsr_hub(rows) -> Iterator[Row | InputError]:
    """The zero-shot split; the hub has no pictures of it, only links to COCO's."""
    return _vsr(rows(None, "test"), lambda row: partial(_fetch, field(row, "image_link")))


def _vsr(rows, picture):
    """Rows of VSR, which have no ids: they are numbered."""

    def ask(found):
        number, row = found
        truth = label(row, "label", TRUE_FALSE[::-1])
        text = ASKED["vsr"].format(field(row, "caption"))
        return Row(SuiteQuestion(f"vsr-{number}", field(row, "image"), text, (truth,), TRUE_FALSE), picture(row))

    return each(((where, (number, row)) for number, (where, row) in enumerate(rows, 1)), ask)


def _fetch(link):
    if not link.startswith((COCO, COCO.replace("http:", "https:"))):
        raise InputError(f"{link} is no link to {COCO}.")
    try:
        with urllib.request.urlopen(link, timeout=30) as answer:
            content = answer.read(MAX_BYTES)
    except OSError as error:
        raise InputError(f"{link} cannot be fetched ({error}).") from None
    return decode_picture(io.BytesIO(content), link)


def snli_ve(folder: Path) -> Iterator[Row | InputError]:
    pictures = pictures_of(folder, "flickr30k-images", "flickr30k_images", "images")

    def ask(row):
        name = field(row, "Flickr30K_ID").removesuffix(".jpg")
        question = _entailment(row, "pairID", name, "sentence2", field(row, "gold_label"))
        return Row(question, picture_at(pictures, f"{name}.jpg"))

    return each(json_lines(folder / "snli_ve_test.jsonl", SNLI_VE_WANTED), ask)


def snli_ve_hub(rows) -> Iterator[Row | InputError]:
    def ask(row):
        name = field(row, "filename")
        question = _entailment(row, "id", name, "hypothesis", label(row, "label", ENTAILMENT))
        return Row(question, picture_in(row, "image", name))

    return each(rows(None, "test"), ask)


def _entailment(row, id, picture, hypothesis, answer):
    text = ASKED["snli-ve"].format(field(row, hypothesis))
    return SuiteQuestion(number_or_text(row, id), picture, text, (answer,), ENTAILMENT)
