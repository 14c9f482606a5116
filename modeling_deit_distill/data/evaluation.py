"""Held-out images, seen through the image processor that is saved with the model."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import PIL.Image
import torch
from datasets import Dataset
from transformers import DeiTImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..errors import InputError, LocalInputError
from .bad_images import describe_row
from .columns import label_column
from .datasets import in_shared_memory, label_of
from .decoding import BadImageError, decode_image

DEFAULT_CROP_PCT = 0.875  # paper: evaluation crops 224 pixels from a shorter side of 256


def check_normalisation(mean: Sequence[float], std: Sequence[float], whose: str):
    """Refuse statistics that would make pixels infinite or NaN.

    Args:
        mean, std: of each channel.
        whose: they are, in words.

    Raises:
        InputError: a mean that is not finite, or a deviation that is not above 0.
    """
    for name, values in (("image_mean", mean), ("image_std", std)):
        are_numbers = all(isinstance(each, (int, float)) and abs(each) < float("inf") for each in values)
        if not are_numbers or name == "image_std" and min(values) <= 0:
            wanted = "numbers above 0" if name == "image_std" else "finite numbers"
            remedy = f"it must be {wanted}: correct preprocessor_config.json"
            raise InputError(f"{whose} has {name} {list(values)}; {remedy}")


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

    Args:
        rows: with `image` and `label`.
        transform: from an RGB image to `pixel_values`.
        classes: for each class of the rows the label that stands for it; by default the same.

    Raises:
        InputError: a broken image, which would make every figure wrong.
    """

    def __init__(
        self,
        rows: Dataset,
        transform: Callable[[PIL.Image.Image], torch.Tensor],
        classes: Sequence[int] | None = None,
    ):
        self.rows = rows
        self.transform = transform
        self.classes = classes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        row = self.rows[int(index)]
        try:
            label = row["label"] if self.classes is None else self.classes[row["label"]]
            return {"pixel_values": self.transform(decode_image(row["image"])), "labels": label}
        except BadImageError as error:
            raise LocalInputError(
                f"validation {describe_row(self.rows, index)} is broken: {error}; remove it"
            ) from error


class ImageDataset(torch.utils.data.Dataset):
    """Images without labels, decoded and transformed as those of [`EvaluationDataset`]; a bad one is no error.

    A sample holds its `row`, and either `pixel_values` (3, height, width) float or `error`, the reason in words.

    Args:
        images: encoded, `{"bytes", "path"}`; or a reason in words, for one that is not to be opened.
        transform: from an RGB image to `pixel_values`.
    """

    def __init__(self, images: Sequence[dict | str], transform: Callable[[PIL.Image.Image], torch.Tensor]):
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> dict:
        image = self.images[row]
        if isinstance(image, str):
            return {"row": row, "error": image}
        try:
            return {"row": row, "pixel_values": self.transform(decode_image(image))}
        except BadImageError as error:
            return {"row": row, "error": str(error)}


def collate_images(samples: list[dict]) -> dict:
    """A batch of [`ImageDataset`].

    Returns:
        `rows` of the images that could be read and their `pixel_values` (images, 3, height, width), None if none
        could; `errors`, reasons by row.

    Raises:
        InputError: images of several sizes.
    """
    read = [sample for sample in samples if "pixel_values" in sample]
    if len(shapes := {tuple(sample["pixel_values"].shape) for sample in read}) > 1:
        raise LocalInputError(
            f"the image processor makes images of several sizes ({', '.join(map(str, sorted(shapes)))}), which do not "
            "fit into one batch; give --batch_size 1"
        )
    batch = {
        "rows": [sample["row"] for sample in read],
        "pixel_values": torch.stack([sample["pixel_values"] for sample in read]) if read else None,
        "errors": {sample["row"]: sample["error"] for sample in samples if "error" in sample},
    }
    return in_shared_memory(batch)


def chosen_set(sets, chosen):
    """What Trainer evaluates on: one of its `eval_dataset` by name, another set, or (None) its own."""
    named = sets[chosen] if isinstance(chosen, str) else chosen
    return sets if named is None else named


def labels_of(dataset) -> np.ndarray:
    """The labels (images,) of an evaluation set; no image of an [`EvaluationDataset`] is decoded for them."""
    if isinstance(dataset, EvaluationDataset):
        return label_column(dataset.rows)
    return np.array([label_of(sample) for sample in dataset])
