"""Small encoded images, and rows of them."""

import io

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
from datasets import ClassLabel, Dataset, Features, Image, Value

from modeling_deit_distill.data.decoding import decode_image


def encode(image: PIL.Image.Image, format: str = "PNG", **options) -> dict:
    buffer = io.BytesIO()
    image.copy().save(buffer, format=format, **options)  # Pillow leaves one format's settings on what it saved
    return {"bytes": buffer.getvalue(), "path": None}


def grey(level: int, size=(4, 4)) -> PIL.Image.Image:
    return PIL.Image.new("RGB", size, (level, level, level))


def rows(labels: list, classes: list[str] | None = None, *, label="label", start=0, **columns) -> Dataset:
    """Rows with one image each, of grey level `start`, `start` + 1, ...; `columns`: name=(values, feature)."""
    plain = Value("string" if any(isinstance(value, str) for value in labels) else "int64")
    features = {"image": Image(), label: ClassLabel(names=classes) if classes else plain}
    values = {"image": [encode(grey(start + index)) for index in range(len(labels))], label: labels}
    for name, (content, feature) in columns.items():
        values[name], features[name] = content, feature
    return Dataset.from_dict(values, features=Features(features))


def picture(width: int, height: int) -> PIL.Image.Image:
    noise = np.random.RandomState(0).randint(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
    return PIL.Image.fromarray(noise).resize((width, height))


def level(row: dict) -> int:
    return decode_image(row["image"]).getpixel((0, 0))[0]


def undecoded(images: list[dict | None], labels: list[int] | None = None) -> Dataset:
    """Rows as `load_image_data` returns them; each row's label is its own number unless given."""
    values = {"image": images, "label": list(range(len(images))) if labels is None else labels}
    return Dataset.from_dict(values, features=Features({"image": Image(decode=False), "label": Value("int64")}))


def with_bad_rows(number: int, bad: dict[int, bytes]) -> Dataset:
    """Rows of which those in `bad` cannot be read; row i is a plain image of grey level i, of label i, in `i.png`."""
    images = [{"bytes": bad.get(row, encode(grey(row))["bytes"]), "path": f"{row}.png"} for row in range(number)]
    return undecoded(images)
