"""Images and labels: loading rows, decoding, and the transforms of training and evaluation.

Rows keep their images encoded; workers decode them. Training transforms are torchvision's for now; evaluation goes
through the image processor that is saved with the model, so that there is one evaluation transform.
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_dataset, load_from_disk
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from transformers import DeiTImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .errors import InputError

# A split that was not named is looked for under these, in this order.
EVALUATION_SPLITS = ("validation", "val", "valid", "dev", "test")
LABEL_NAMES = ("label", "labels", "class", "target")
# The cut of a validation split does not follow the run's seed: runs with several seeds see the same held-out images.
SPLIT_SEED = 0
FINGERPRINT_ROWS = 256


@dataclass
class ImageData:
    """A training and a validation split, with columns `image` (encoded: bytes or path) and `label` (class index).

    Attributes:
        train, validation: rows.
        class_names: names in the order of the label's indices.
        source: what the user named, for summaries and cards.
        validation_source: where the validation rows come from, in words.
    """

    train: Dataset
    validation: Dataset
    class_names: list[str]
    source: str
    validation_source: str

    def fingerprint(self) -> str:
        """A hash of classes, lengths and evenly spaced training rows: the same data gives the same hash anywhere."""
        digest = hashlib.sha256(repr((self.class_names, len(self.train), len(self.validation))).encode())
        for row in np.linspace(0, len(self.train) - 1, min(FINGERPRINT_ROWS, len(self.train))).astype(int):
            digest.update(str(self.train[int(row)]["label"]).encode())
            digest.update(_encoded_bytes(self.train[int(row)]["image"]))
        return digest.hexdigest()[:16]


def load_image_data(
    dataset_name: str | None = None,
    *,
    dataset_config_name: str | None = None,
    train_dir: str | None = None,
    validation_dir: str | None = None,
    train_split: str = "train",
    validation_split: str | None = None,
    validation_fraction: float = 0.1,
    image_column: str | None = None,
    label_column: str | None = None,
) -> ImageData:
    """Load images and labels from the embedded digits, a Hub dataset, a local folder, parquet, or a folder per class.

    The validation split is the one named; else `validation`, else `test`; else a stratified cut of the training split,
    always the same one.

    Raises:
        InputError: a source that does not exist, columns or splits that are missing or ambiguous, fewer than two
            classes, or validation labels that training does not know.
    """
    if train_dir is not None:
        splits, source = _load_folders(train_dir, validation_dir), train_dir
        validation_split = validation_split or ("validation" if validation_dir else None)
    else:
        splits, source = _load_named(dataset_name, dataset_config_name), dataset_name
    if train_split not in splits:
        raise InputError(f"train_split {train_split!r} is not in {source!r}; it has: {', '.join(splits)}")
    splits = {name: _select_columns(rows, image_column, label_column) for name, rows in splits.items()}
    train, validation, split = _choose_splits(splits, train_split, validation_split, validation_fraction)
    validation_source = f"split {split!r}" if split else f"{validation_fraction:.0%} of split {train_split!r}"
    train, validation = _encode_labels(train, validation)
    _check_labels(train, train_split)
    _check_labels(validation, validation_source)
    class_names = train.features["label"].names
    _check_classes(train, validation, class_names, source, is_cut=split is None)
    return ImageData(train, validation, class_names, source, validation_source)


def load_digits() -> Dataset:
    """The embedded default: scikit-learn's 1,797 handwritten digits, 8×8 grey, as PNG bytes (UCI ML, Alpaydin 1998)."""
    from sklearn import datasets as sklearn_datasets

    digits = sklearn_datasets.load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    rows = {"image": [{"bytes": _png(image), "path": None} for image in pixels], "label": digits.target.tolist()}
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    return Dataset.from_dict(rows, features=features)


def decode_image(image: dict) -> PIL.Image.Image:
    """An encoded row image, `{"bytes", "path"}`, as an upright RGB image: what a viewer or a pipeline shows."""
    decoded = PIL.Image.open(io.BytesIO(_encoded_bytes(image)))
    return PIL.ImageOps.exif_transpose(decoded).convert("RGB")


def evaluation_processor(
    image_size: int, crop_pct: float = 0.875, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD
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


def training_transform(
    image_size: int,
    random_crop_scale: tuple[float, float] = (0.08, 1.0),
    horizontal_flip_prob: float = 0.5,
    rand_augment_magnitude: float = 9.0,
    random_erasing_prob: float = 0.25,
    mean=IMAGENET_DEFAULT_MEAN,
    std=IMAGENET_DEFAULT_STD,
) -> Callable[[PIL.Image.Image], torch.Tensor]:
    """The training transform of one image (paper, Table 9), to float pixels (3, image_size, image_size), normalised."""
    bicubic = InterpolationMode.BICUBIC
    steps = [
        v2.RandomResizedCrop(image_size, scale=tuple(random_crop_scale), interpolation=bicubic),
        v2.RandomHorizontalFlip(horizontal_flip_prob),
    ]
    if rand_augment_magnitude > 0:
        # torchvision counts strength in 31 steps, the recipe in 10.
        steps.append(v2.RandAugment(num_ops=2, magnitude=round(3 * rand_augment_magnitude), interpolation=bicubic))
    steps += [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(list(mean), list(std)),
        v2.RandomErasing(random_erasing_prob, value="random"),
    ]
    return v2.Compose(steps)


def evaluation_transform(processor) -> Callable[[PIL.Image.Image], torch.Tensor]:
    """One image through a saved image processor, to float pixels (3, height, width)."""
    return lambda image: processor(image, return_tensors="pt")["pixel_values"][0]


def mixing(num_classes: int, mixup_alpha: float, cutmix_alpha: float) -> Callable | None:
    """Mixup or cutmix of a batch, one or the other with probability ½ (paper, Table 9); None if both are off.

    The result takes `(pixel_values, labels)` and returns mixed pixels and labels as (batch, classes) probabilities.
    """
    mixes = [v2.MixUp(alpha=mixup_alpha, num_classes=num_classes)] if mixup_alpha > 0 else []
    mixes += [v2.CutMix(alpha=cutmix_alpha, num_classes=num_classes)] if cutmix_alpha > 0 else []
    return v2.RandomChoice(mixes) if mixes else None


class ImageDataset(torch.utils.data.Dataset):
    """Rows decoded and transformed one by one: `pixel_values` and `labels`.

    Args:
        rows: a split of [`ImageData`].
        transform: from an RGB image to a float tensor (3, height, width).
    """

    def __init__(self, rows: Dataset, transform: Callable[[PIL.Image.Image], torch.Tensor]):
        self.rows = rows
        self.transform = transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        row = self.rows[int(index)]
        return {"pixel_values": self.transform(decode_image(row["image"])), "labels": row["label"]}


def collate(samples: list[dict]) -> dict[str, torch.Tensor]:
    """A batch: `pixel_values` (batch, 3, height, width) and `labels` (batch,)."""
    return {
        "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
        "labels": torch.tensor([sample["labels"] for sample in samples]),
    }


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _encoded_bytes(image: dict) -> bytes:
    return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()


def _load_named(name: str, config_name: str | None) -> dict[str, Dataset]:
    if name == "digits":
        return {"train": load_digits()}
    path = Path(name).expanduser()
    if not path.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1 or path.suffix == ".parquet"):
        raise InputError(f"dataset_name {name!r} does not exist; give a folder, a parquet file or a Hub dataset's name")
    try:
        if path.is_file() and path.suffix == ".parquet":
            return dict(load_dataset("parquet", data_files={"train": str(path)}))
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            saved = load_from_disk(str(path))
            return dict(saved) if isinstance(saved, DatasetDict) else {"train": saved}
        return dict(load_dataset(str(path) if path.exists() else name, config_name))
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        where = "could not be read" if path.exists() else "was not found here, nor could it be read from the Hub"
        raise InputError(f"dataset_name {name!r} {where} ({type(error).__name__}: {reason})") from error


def _load_folders(train_dir: str, validation_dir: str | None) -> dict[str, Dataset]:
    files = {}
    for split, argument, folder in (
        ("train", "train_dir", train_dir),
        ("validation", "validation_dir", validation_dir),
    ):
        if folder is None:
            continue
        path = Path(folder).expanduser()
        if not path.is_dir():
            raise InputError(f"{argument} {folder!r} is not a folder; give one with a subfolder of images per class")
        if (path / "train").is_dir():
            raise InputError(
                f"{argument} {folder!r} has a subfolder 'train', which would become a class; pass --train_dir "
                f"{path / 'train'} and --validation_dir, or the whole as --dataset_name {folder}"
            )
        files[split] = str(path.resolve() / "**")
    try:
        return dict(load_dataset("imagefolder", data_files=files, drop_labels=False))
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        folders = " and ".join(repr(folder) for folder in (train_dir, validation_dir) if folder)
        raise InputError(f"no images could be read from {folders} ({type(error).__name__}: {reason})") from error


def _select_columns(rows: Dataset, image_column: str | None, label_column: str | None) -> Dataset:
    """The two columns under the names `image` and `label`, the image undecoded."""
    features = rows.features
    images = [name for name, feature in features.items() if isinstance(feature, Image)]
    labels = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    if not labels:
        plain = [name for name in LABEL_NAMES if isinstance(features.get(name), Value)]
        labels = plain[:1]
    image = _the_column("image_column", image_column, images, features)
    label = _the_column("label_column", label_column, labels, features)
    if not isinstance(features[image], Image):
        rows = rows.cast_column(image, Image())
    rows = rows.select_columns([image, label]).cast_column(image, Image(decode=False))
    taken = {image: "image", label: "label"}
    return rows.rename_columns({old: new for old, new in taken.items() if old != new})


def _the_column(argument: str, given: str | None, candidates: list[str], features: Features) -> str:
    if given is not None:
        if given not in features:
            raise InputError(f"{argument} {given!r} is not in the data; its columns are: {', '.join(features)}")
        return given
    if len(candidates) == 1:
        return candidates[0]
    found = f"several fit: {', '.join(candidates)}" if candidates else "none fits by its type"
    raise InputError(f"{argument} is not clear, {found}; choose one with --{argument} (columns: {', '.join(features)})")


def _choose_splits(splits: dict[str, Dataset], train_split: str, validation_split: str | None, fraction: float):
    """Training rows, validation rows, and the name of the split these are, None for a cut of the training split."""
    train = splits[train_split]
    if validation_split is not None:
        if validation_split not in splits:
            raise InputError(f"validation_split {validation_split!r} is not in the data; it has: {', '.join(splits)}")
        return train, splits[validation_split], validation_split
    for name in EVALUATION_SPLITS:
        if name in splits and name != train_split and not _unlabelled(splits[name]):
            return train, splits[name], name
    return *_cut(train, fraction), None


def _cut(rows: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    if len(rows) < 2:
        raise InputError(f"the training split has {len(rows)} image; at least two are needed to hold one out")
    stratified = {"stratify_by_column": "label"} if isinstance(rows.features["label"], ClassLabel) else {}
    try:
        parts = rows.train_test_split(test_size=fraction, seed=SPLIT_SEED, **stratified)
    except ValueError:  # a class with a single image, or fewer held-out images than classes
        parts = rows.train_test_split(test_size=fraction, seed=SPLIT_SEED)
    return parts["train"], parts["test"]


def _labels(rows: Dataset) -> np.ndarray:
    return np.asarray(rows.with_format("numpy", columns=["label"])["label"][:])


def _unlabelled(rows: Dataset) -> bool:
    labels = rows.with_format(None)["label"][:1]
    return len(rows) == 0 or labels[0] is None or labels[0] == -1


def _check_labels(rows: Dataset, where: str):
    if len(rows) == 0:
        raise InputError(f"{where} has no images")
    if None in set(rows.with_format(None)["label"][:]) or _labels(rows).min() < 0:
        raise InputError(f"{where} has images without a label; choose another split with --validation_split")


def _encode_labels(train: Dataset, validation: Dataset) -> tuple[Dataset, Dataset]:
    """Labels that are not ClassLabel yet (strings, integers) become indices into the sorted classes of training."""
    if isinstance(train.features["label"], ClassLabel):
        return train, validation
    classes = sorted(value for value in set(train["label"][:]) if value is not None)
    index = {value: position for position, value in enumerate(classes)}
    feature = ClassLabel(names=[str(value) for value in classes])

    def encode(rows):
        column = rows["label"][:]
        unknown = sorted({str(value) for value in column if value not in index})
        if unknown:
            raise InputError(f"validation has labels that training does not know: {', '.join(unknown[:10])}")
        return rows.remove_columns("label").add_column("label", [index[value] for value in column], feature=feature)

    return encode(train), encode(validation)


def _check_classes(train: Dataset, validation: Dataset, class_names: list[str], source: str, is_cut: bool):
    theirs = validation.features["label"].names
    if theirs != class_names:
        raise InputError(
            f"validation has the classes {theirs[:10]}, training has {class_names[:10]}; they must be equal"
        )
    trained, validated = set(_labels(train).tolist()), set(_labels(validation).tolist())
    if len(trained) < 2:
        names = ", ".join(class_names[index] for index in trained)
        raise InputError(f"{source!r} has one class only ({names}); a classifier needs at least two")
    missing = [class_names[index] for index in sorted(validated - trained)]
    if missing and not is_cut:  # a cut may well take a class's only image
        raise InputError(f"validation has classes without a training image: {', '.join(missing[:10])}")
