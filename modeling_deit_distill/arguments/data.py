"""Arguments of the data."""

from dataclasses import dataclass, fields
from typing import Annotated

from transformers.hf_argparser import HfArg

from ..errors import InputError
from ..fields import Choice, Range, check_fields
from .types import DATA


@dataclass
class DataArguments:
    """Where images and labels come from.

    Raises:
        InputError: no source, two sources, or values outside their range.
    """

    dataset_name: Annotated[str | None, Choice(DATA)] = HfArg(
        default=None, help="'digits' (embedded), a Hub dataset, a local folder, a parquet file or a webdataset's tar."
    )
    dataset_config_name: Annotated[str | None, DATA] = HfArg(default=None, help="Configuration of the Hub dataset.")
    train_dir: Annotated[str | None, Choice(DATA)] = HfArg(default=None, help="Training images, one folder per class.")
    validation_dir: Annotated[str | None, DATA] = HfArg(default=None, help="Validation images, one folder per class.")
    train_csv: Annotated[str | None, Choice(DATA)] = HfArg(
        default=None, help="CSV file of paths, relative to it, and labels."
    )
    validation_csv: Annotated[str | None, DATA] = HfArg(default=None, help="CSV file of validation images.")
    unlabeled_dir: str | None = HfArg(
        default=None,
        help="Folder of more training images, at any depth, without labels: the student learns the teacher's answers "
        "about them.",
    )
    train_split: Annotated[str, DATA] = HfArg(default="train", help="Split to train on.")
    validation_split: Annotated[str | None, DATA] = HfArg(
        default=None, help="Split to evaluate on; else validation, test, or a cut of the training split."
    )
    validation_fraction: Annotated[float, Range(above=0, below=1), DATA] = HfArg(
        default=0.1, help="Share of the training split that is held out if there is no other split."
    )
    group_by: Annotated[str | None, DATA] = HfArg(
        default=None,
        help="Keep images of one object together when images are held out: a column, or a regular "
        "expression in the image's path. Images with the same value (the first group, or the "
        "match) stay together.",
    )
    image_column: Annotated[str | None, DATA] = HfArg(default=None, help="Column of images, where several exist.")
    label_column: Annotated[str | None, DATA] = HfArg(default=None, help="Column of labels, where several exist.")
    streaming: Annotated[bool, DATA] = HfArg(
        default=False, help="Read training images as a stream, without storing them; needs max_steps."
    )
    crop_pct: Annotated[float | None, Range(at_least=0.1, at_most=1)] = HfArg(
        default=None,
        help="Evaluation resizes the shorter side to image_size / crop_pct, then crops. Default: "
        "0.875, or that of the checkpoint to start from.",
    )

    def __post_init__(self):
        check_fields(self)
        if not self.dataset_name and not self.train_dir and not self.train_csv and not self.is_held_out_alone:
            raise InputError(
                "no data: give --dataset_name (e.g. digits), --train_dir with one folder per class, or --train_csv"
            )
        if self.validation_dir and self.validation_csv and self.is_held_out_alone:
            raise InputError("validation_dir and validation_csv are both given; drop one")
        if self.validation_dir and not self.train_dir and not self.is_held_out_alone:
            raise InputError("validation_dir goes with train_dir; for a dataset_name use --validation_split")
        if self.validation_csv and not self.train_csv and not self.is_held_out_alone:
            raise InputError("validation_csv goes with train_csv; for a dataset_name use --validation_split")
        uncut = [
            name
            for name in ("validation_dir", "validation_csv", "validation_split", "streaming")
            if getattr(self, name)
        ]
        if self.group_by is not None and uncut:
            raise InputError(f"group_by is about cutting the training split; with {uncut[0]} nothing is cut: drop one")

    @property
    def is_held_out_alone(self) -> bool:
        """Whether there are held-out images and none to train on: a finished model can be judged on them."""
        is_trained = self.dataset_name or self.train_dir or self.train_csv
        return not is_trained and bool(self.validation_dir or self.validation_csv)

    @property
    def sources(self) -> dict[str, object]:
        """Where images and labels come from: the arguments of `data.sources.load_image_data`."""
        sources = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "crop_pct"}
        if self.is_held_out_alone:
            sources |= {"train_dir": self.validation_dir, "train_csv": self.validation_csv}
        return sources
