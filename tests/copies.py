"""Small copies of data sets: pictures of one colour, text files, parquet files (pytest's pythonpath holds tests/)."""

import io
import json

from datasets import Dataset, Features
from PIL import Image

RGB = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}


def png(colour):
    content = io.BytesIO()
    Image.new("RGB", (12, 9), RGB[colour]).save(content, "PNG")
    return content.getvalue()


def fill(folder, **pictures):
    """Pictures by name, without suffix, in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, colour in pictures.items():
        Image.new("RGB", (12, 9), RGB[colour]).save(folder / f"{name}.jpg")


def write(file, rows):
    """JSON, or JSONL where `rows` is a list; a text stays as it is."""
    lines = rows if isinstance(rows, list) else [rows]
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in lines) + "\n")


def colour_of(image):
    return min(RGB, key=lambda name: sum(abs(a - b) for a, b in zip(RGB[name], image.getpixel((4, 4)))))


def copy(folder, split, columns, **features):
    """A parquet file as the hub has it."""
    folder.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(columns, features=Features(features)).to_parquet(folder / f"{split}-00000-of-00001.parquet")
