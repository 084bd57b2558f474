"""Which class? CIFAR-10, CIFAR-100 (Krizhevsky, 2009) and MNIST (LeCun et al., 1998), asked in the words of our
miniatures. Their own formats are the binary ones, a fixed number of bytes a picture."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from mmpt.benchmarks.rows import Row, each, label, picture_in
from mmpt.errors import InputError
from mmpt.suites import ASKED, DIGITS, SuiteQuestion

CIFAR_10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR_100 = tuple(
    name.replace("_", " ")
    for name in """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
    """.split()
)
CIFAR_10_WANTED = "cifar-10-batches-bin with its test_batch.bin"
CIFAR_100_WANTED = "cifar-100-binary with its test.bin"
MNIST_WANTED = "t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, packed (.gz) or not"


def cifar_10(folder: Path) -> Iterator[Row | InputError]:
    return _drawn(_cifar(folder / "test_batch.bin", CIFAR_10_WANTED, 1), "cifar-10", CIFAR_10)


def cifar_10_hub(rows) -> Iterator[Row | InputError]:
    return _sent(rows(None, "test"), "cifar-10", CIFAR_10, "img", "label")


def cifar_100(folder: Path) -> Iterator[Row | InputError]:
    return _drawn(_cifar(folder / "test.bin", CIFAR_100_WANTED, 2), "cifar-100", CIFAR_100)


def cifar_100_hub(rows) -> Iterator[Row | InputError]:
    return _sent(rows(None, "test"), "cifar-100", CIFAR_100, "img", "fine_label")


def mnist(folder: Path) -> Iterator[Row | InputError]:
    files = folder / "t10k-images-idx3-ubyte", folder / "t10k-labels-idx1-ubyte"
    return _drawn(_mnist(*files), "mnist", DIGITS)


def mnist_hub(rows) -> Iterator[Row | InputError]:
    return _sent(rows(None, "test"), "mnist", DIGITS, "image", "label")


def _drawn(placed, name, classes):
    """Rows with the bytes of a picture, (H, W) or (H, W, 3), in the field "pixels"."""

    def picture(row, id):
        return lambda: Image.fromarray(row["pixels"]).convert("RGB")

    return _numbered(placed, name, classes, "label", picture)


def _sent(placed, name, classes, image, column):
    """Rows of the hub, with a file of a picture in the field `image`."""
    return _numbered(placed, name, classes, column, lambda row, id: picture_in(row, image, id))


def _numbered(placed, name, classes, column, picture):
    """Rows whose class is a number in `column`; they have no ids but their places."""
    text = ASKED[name].format(", ".join(classes))

    def ask(found):
        number, row = found
        id = f"{name}-{number}"
        return Row(SuiteQuestion(id, id, text, (label(row, column, classes),), classes), picture(row, id))

    return each(((where, (number, row)) for number, (where, row) in enumerate(placed)), ask)


def _cifar(file, wanted, n_labels):
    """Records of CIFAR's binary format: labels of a byte each, the last the finest; then 3 × 32 × 32 bytes."""
    data, size = _bytes(file, wanted), n_labels + 3 * 32 * 32
    if len(data) % size:
        raise InputError(f"{file} has {len(data)} bytes, no multiple of {size}; give {wanted}, whole.")
    for number, record in enumerate(np.frombuffer(data, np.uint8).reshape(-1, size), 1):
        pixels = record[n_labels:].reshape(3, 32, 32).transpose(1, 2, 0)
        yield f"{file}, picture {number}", {"label": int(record[n_labels - 1]), "pixels": pixels}


def _mnist(images, labels):
    """MNIST's idx files: a head of 16 and of 8 bytes; then 28 × 28 bytes and 1 byte a picture."""
    pixels, marks = _bytes(images, MNIST_WANTED)[16:], _bytes(labels, MNIST_WANTED)[8:]
    if len(pixels) != 28 * 28 * len(marks):
        raise InputError(f"{images} and {labels} do not hold as many pictures as labels; give {MNIST_WANTED}, whole.")
    for number, picture in enumerate(np.frombuffer(pixels, np.uint8).reshape(-1, 28, 28)):
        yield f"{images}, picture {number + 1}", {"label": marks[number], "pixels": picture}


def _bytes(file, wanted):
    packed = file.with_name(file.name + ".gz")
    try:
        return file.read_bytes() if file.is_file() else gzip.decompress(packed.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file} cannot be read ({error}); give {wanted}.") from None
