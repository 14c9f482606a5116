"""Held-out images, seen through the image processor that is saved with the model."""

import functools
from collections.abc import Callable

import PIL.Image
import torch
from datasets import Dataset
from transformers import DeiTImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..errors import LocalInputError
from .bad_images import describe_row
from .decoding import BadImageError, decode_image

DEFAULT_CROP_PCT = 0.875  # paper: evaluation crops 224 pixels from a shorter side of 256


def evaluation_processor(
    image_size: int, crop_pct: float = DEFAULT_CROP_PCT, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD
) -> DeiTImageProcessor:
    """The evaluation transform: shorter side to image_size / crop_pct, centre crop, ImageNet statistics (Table 9).

    It is saved with the model. The library's default for DeiT squashes images and normalises otherwise.
    """
    return DeiTImageProcessor(
        do_convert_rgb=True,
        size={"shortest_edge": int(image_size / crop_pct)},
        resample=PIL.Image.Resampling.BICUBIC,
        crop_size={"height": image_size, "width": image_size},
        image_mean=list(mean),
        image_std=list(std),
    )


def evaluation_transform(processor) -> Callable[[PIL.Image.Image], torch.Tensor]:
    """One image through a saved image processor, to float pixels (3, height, width)."""
    return functools.partial(_process, processor)  # a lambda could not be sent to a spawned worker


def _process(processor, image: PIL.Image.Image) -> torch.Tensor:
    return processor(image, return_tensors="pt")["pixel_values"][0]


def evaluation_view(processor) -> str:
    """How a saved image processor shows an image, in words: answers about one view say nothing about another."""
    return " ".join(f"{name} {dict(getattr(processor, name, None) or {})}" for name in ("size", "crop_size"))


class EvaluationDataset(torch.utils.data.Dataset):
    """Rows of a split decoded and transformed one by one: `pixel_values` (3, height, width) float, and `labels`.

    Raises:
        InputError: a broken image, which would make every figure wrong.
    """

    def __init__(self, rows: Dataset, transform: Callable[[PIL.Image.Image], torch.Tensor]):
        self.rows = rows
        self.transform = transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        row = self.rows[int(index)]
        try:
            return {"pixel_values": self.transform(decode_image(row["image"])), "labels": row["label"]}
        except BadImageError as error:
            raise LocalInputError(
                f"validation {describe_row(self.rows, index)} is broken: {error}; remove it"
            ) from error
