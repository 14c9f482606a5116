"""How often an export decides as PyTorch does, on real images."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch

from ..data.bad_images import BadImageError
from ..data.decoding import decode_image
from ..data.sources import load_image_data
from ..data.unlabelled import UNREADABLE, FoundImages, RowImages, find_images
from ..errors import InputError, one_line
from ..modeling_deit_distill import DeiTDistillForImageClassification

# The word for the held-out images of the embedded default, and their share in its recipe.
DIGITS, DIGITS_FRACTION = "digits", 0.2
MAX_IMAGES = 200
MIN_AGREEMENT = 0.97


@dataclass(frozen=True)
class Agreement:
    """An export beside PyTorch.

    Attributes:
        images: that both answered.
        equal: of them, images with the same decision.
        largest: difference of two probabilities.
    """

    images: int
    equal: int
    largest: float

    @property
    def share(self) -> float:
        """Of equal decisions, from 0 to 1."""
        return self.equal / self.images

    def __str__(self) -> str:
        return f"{self.equal:,} of {self.images:,} decisions are PyTorch's, probabilities within {self.largest:.4f}"


def chosen_images(names: Sequence[str]) -> tuple[FoundImages | RowImages, list[int]]:
    """Images by folders and files, or by the word `digits`; and which of them are looked at, evenly spaced.

    Of these, images that cannot be read are left out and counted in `skipped`, as files that are no images are.

    Raises:
        InputError: no images, or none that can be read.
    """
    if list(names) == [DIGITS]:
        images = RowImages(load_image_data(DIGITS, validation_fraction=DIGITS_FRACTION).validation)
    else:
        images = find_images(list(names))
    number = min(len(images), MAX_IMAGES)
    rows = _readable(images, [index * len(images) // number for index in range(number)])
    if not rows:
        raise InputError(f"--images: none of {number:,} can be read ({images.skipped}); give others")
    return images, rows


def _readable(images: FoundImages | RowImages, rows: Sequence[int]) -> list[int]:
    """The rows that can be read; the others are added to `images.skipped`."""
    readable = []
    for row in rows:
        try:
            reason = encoded if isinstance(encoded := images[row], str) else None
            if reason is None:
                decode_image(encoded)
                readable.append(row)
        except BadImageError as error:
            reason = one_line(error)
        if reason is not None:
            images.skipped.add(UNREADABLE, f"{images.name(row)} ({reason})")
    return readable


def decoded(images: Sequence[dict | str], rows: Sequence[int]) -> Iterator[tuple[int, PIL.Image.Image]]:
    """Row and image, in RGB, of those that can be read."""
    for row in rows:
        try:
            if not isinstance(encoded := images[row], str):
                yield row, decode_image(encoded)
        except BadImageError:
            continue


@torch.inference_mode()
def compare(
    model: DeiTDistillForImageClassification,
    processor,
    answers: Mapping[str, Callable[[PIL.Image.Image], np.ndarray]],
    images: Iterator[PIL.Image.Image],
) -> dict[str, Agreement]:
    """The agreement of each export with the model.

    Args:
        model, processor: in PyTorch.
        answers: by name; from an RGB image to logits (classes,).
        images: in RGB.

    Raises:
        InputError: none of the images can be read.
    """
    expected, found = [], {name: [] for name in answers}
    for image in images:
        logits = model(processor(image, return_tensors="pt")["pixel_values"]).logits[0]
        expected.append(logits.softmax(dim=0).numpy())
        for name, answer in answers.items():
            found[name].append(torch.from_numpy(answer(image)).softmax(dim=0).numpy())
    if not expected:
        raise InputError("none of the images can be read, so decisions cannot be compared; give others by --images")
    expected = np.stack(expected)
    return {name: _agreement(np.stack(rows), expected) for name, rows in found.items()}


def check_agreement(name: str, agreement: Agreement, least: float):
    """Refuse an export that decides otherwise too often.

    Raises:
        InputError: a share of equal decisions below `least`.
    """
    if not agreement.share >= least:
        raise InputError(
            f"{name}: only {agreement}, {agreement.share:.1%} where at least {least:.0%} are asked for; nothing was "
            f"written: leave it out by --precisions, or accept it by --min_agreement {_rounded_down(agreement.share)}"
        )


def _agreement(found: np.ndarray, expected: np.ndarray) -> Agreement:
    equal = found.argmax(axis=1) == expected.argmax(axis=1)
    return Agreement(len(equal), int(equal.sum()), float(np.abs(found - expected).max()))


def _rounded_down(share: float) -> float:
    return int(share * 100) / 100
