"""Images and labels: load rows, decode once, crop every view of an image that the batch wants.

Rows keep their images encoded; workers decode and crop, to uint8, and the device does the rest (`augmentation.py`).
Evaluation goes through the image processor that is saved with the model, so that there is one evaluation transform.
"""

import functools
import glob
import hashlib
import io
import itertools
import math
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_dataset, load_from_disk
from datasets import config as datasets_config
from datasets.distributed import split_dataset_by_node
from datasets.exceptions import DatasetsError
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from huggingface_hub import constants as hub_constants
from torchvision.io import ImageReadMode, decode_jpeg
from transformers import DeiTImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import logging

from .errors import InputError, LocalInputError
from .views import AugmentationSettings, View, crop_box, draw, draw_replacement, draw_uniforms

logger = logging.get_logger(__name__)

# A split that was not named is looked for under these, in this order.
EVALUATION_SPLITS = ("validation", "val", "valid", "dev", "test")
LABEL_NAMES = ("label", "labels", "class", "target")
# The cut of a validation split does not follow the run's seed: runs with several seeds see the same held-out images.
SPLIT_SEED = 0
FINGERPRINT_ROWS = 256
DEFAULT_CROP_PCT = 0.875  # paper: evaluation crops 224 pixels from a shorter side of 256
# Where Pillow finds an image's orientation; looking only there saves a parse of most files.
ORIENTATION_KEYS = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
MAX_REPLACEMENTS = 10
MAX_DECODED = 4
IMAGE_SUFFIXES = {suffix.lower() for suffix in ImageFolder.EXTENSIONS}
# In place of the bytes of an image whose path leads out of its dataset.
REFUSED = b"refused"
SHUFFLE_BUFFER = 10_000  # encoded images of a stream, about 1 GB of ImageNet
STREAM_TRIAL = 1000  # images of a stream before it is judged by its bad ones


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
        """A hash of classes, labels and evenly spaced training images: the same data gives the same hash anywhere."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        digest.update(_labels(self.train).tobytes() + _labels(self.validation).tobytes())
        for row in np.linspace(0, len(self.train) - 1, min(FINGERPRINT_ROWS, len(self.train))).astype(int):
            digest.update(_readable_bytes(self.train[int(row)]["image"]))
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
    streaming: bool = False,
) -> ImageData:
    """Load images and labels from the embedded digits, a Hub dataset, a local folder, parquet, or a folder per class.

    The validation split is the one named; else `validation`, else `test`; else a stratified cut of the training split,
    always the same one. With `streaming` the training split is never stored: `train` is a stream, and the validation
    split, which must exist, is.

    Raises:
        InputError: a source that does not exist, columns or splits that are missing or ambiguous, fewer than two
            classes, or validation labels that training does not know.
    """
    if train_dir is not None:
        splits, source = _load_folders(train_dir, validation_dir, streaming), train_dir
        validation_split = validation_split or ("validation" if validation_dir else None)
    else:
        splits, source = _load_named(dataset_name, dataset_config_name, streaming), dataset_name
    if train_split not in splits:
        raise InputError(f"train_split {train_split!r} is not in {source!r}; it has: {', '.join(splits)}")
    splits = _select_all(splits, (train_split, validation_split), image_column, label_column)
    roots = _roots([train_dir, validation_dir] if train_dir is not None else [dataset_name])
    splits = {name: _keep_inside(rows, roots) for name, rows in splits.items()}
    if streaming:
        return _as_stream(splits, train_split, validation_split, source)
    train, validation, split = _choose_splits(splits, train_split, validation_split, validation_fraction)
    validation_source = f"split {split!r}" if split else f"{validation_fraction:.0%} of split {train_split!r}"
    _check_labels(train, f"split {train_split!r}", "train_split")
    _check_labels(validation, validation_source, "validation_split")
    train, validation = _encode_labels(train, validation)
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


class BadImageError(Exception):
    """An image that cannot be shown; the message says why."""


def decode_image(image: dict) -> PIL.Image.Image:
    """An encoded row image, `{"bytes", "path"}`, as an upright RGB image: what a viewer or a pipeline shows.

    (But for 16 bits a channel: here they are scaled to 8, where transformers' own loading cuts them off at 255.)

    Raises:
        BadImageError: nothing that can be read, one pixel, or more pixels than an honest image has.
    """
    try:
        return _to_rgb(_open(_encoded_bytes(image)))
    except Exception as error:  # whatever a decoder makes of broken bytes: OSError, SyntaxError, struct.error, ...
        raise _bad_image(error) from error


def decode_pixels(image: dict) -> torch.Tensor:
    """As [`decode_image`], to uint8 pixels (3, height, width); JPEG by torchvision's decoder, all else by Pillow.

    Raises:
        BadImageError: as for [`decode_image`].
    """
    try:
        encoded = _encoded_bytes(image)
        if _needs_decoding_only(encoded):
            try:
                return decode_jpeg(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), ImageReadMode.RGB)
            except RuntimeError:
                pass  # strict decoders refuse a few files that Pillow reads
        return torch.from_numpy(np.array(_to_rgb(_open(encoded)))).permute(2, 0, 1)
    except Exception as error:
        raise _bad_image(error) from error


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
    """Rows decoded and transformed one by one: `pixel_values` and `labels`.

    Args:
        rows: a split of [`ImageData`].
        transform: from an RGB image to a float tensor (3, height, width).

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


class ViewDataset(torch.utils.data.Dataset):
    """Batches of views: each image decoded once for all its views in the batch, cropped and resized to uint8.

    A batch holds `pixel_values` (views, 3, side, side) uint8, `labels` (views,), and on the host `epoch` and
    `position` (views,), `draws` (see `views.Draws`) and `bad_images`, rows that were asked for but could not be
    read. In their place a row drawn from the view itself is shown, so the batch does not depend on the company.

    Args:
        rows: the training split of [`ImageData`].
        settings: what is drawn.
        seed: of all draws.
        keep_decoded: keep the pixels of every image that was decoded, in each worker its own: for small datasets of
            small images, whose decoding costs more than their cropping. The batches are the same.
    """

    def __init__(self, rows: Dataset, settings: AugmentationSettings, seed: int = 0, keep_decoded: bool = False):
        self.rows = rows
        self.settings = settings
        self.seed = seed
        self.keep_decoded = keep_decoded
        self._kept: dict = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, views: list[View]) -> dict:
        """The batch of `views`, which are of one epoch."""
        bad: list[int] = []
        decoded: dict = self._kept if self.keep_decoded else {}
        images = (self._look(view, decoded, bad) for view in views)
        positions = [view.position for view in views]
        return _crop_views(images, self.settings, self.seed, views[0].epoch, positions, bad)

    def _look(self, view: View, decoded: dict, bad: list[int]) -> tuple[torch.Tensor, int]:
        """Pixels and label of the view's image, or of the first readable one of those drawn in its place."""
        candidates = draw_replacement(self.seed, view.epoch, view.position, len(self.rows))
        row = view.image
        for _ in range(MAX_REPLACEMENTS):
            if row not in decoded:
                if len(decoded) > MAX_DECODED and not self.keep_decoded:
                    decoded.pop(next(iter(decoded)))  # views of one image are neighbours: the oldest is done with
                decoded[row] = self._decode(row)
            if decoded[row] is not None:
                return decoded[row]
            bad.append(row)
            row = next(candidates)
        raise LocalInputError(
            f"{MAX_REPLACEMENTS} images drawn one after the other could not be read; mend the dataset"
        )

    def _decode(self, row: int) -> tuple[torch.Tensor, int] | None:
        image, label = encoded_row(self.rows, row)
        try:
            return decode_pixels(image), label
        except BadImageError:
            return None


class StreamingViewDataset(torch.utils.data.IterableDataset):
    """Batches of views of a stream without end, for data larger than the disk.

    Processes and workers read shards of their own; nothing is sent around. Batches are those of [`ViewDataset`], with
    positions that no other worker has; but which image has which position depends on how many read the stream, so
    what is stored by position (a teacher's answers) cannot be used with it, and a resumed run reads the stream anew.

    Args:
        stream: the training split of [`ImageData`].
        settings: what is drawn.
        batch_size: views per batch; even, if they are mixed.
        repeats: views of an image, neighbours as in `views.ViewSampler`.
        seed: of all draws and of the stream's shuffling.
        rank, num_processes: whose share of the shards is read.
    """

    def __init__(
        self, stream, settings: AugmentationSettings, batch_size: int, repeats=3, seed=0, rank=0, num_processes=1
    ):
        if settings.mixes and batch_size % 2:
            raise InputError(f"per_device_train_batch_size is {batch_size}, which is odd; views are mixed in pairs")
        self.stream = split_dataset_by_node(stream, rank, num_processes).shuffle(seed, buffer_size=SHUFFLE_BUFFER)
        self.settings = settings
        self.batch_size = batch_size
        self.repeats = repeats
        self.seed = seed
        self.rank = rank
        self.num_processes = num_processes

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        num_workers = worker.num_workers if worker else 1
        lane = self.rank * num_workers + (worker.id if worker else 0)
        bad: list[str] = []
        views = self._views(lane, bad)
        for number in itertools.count(lane, self.num_processes * num_workers):
            batch = list(itertools.islice(views, self.batch_size))
            if not batch:
                return
            positions = list(range(number * self.batch_size, number * self.batch_size + len(batch)))
            yield _crop_views(batch, self.settings, self.seed, 0, positions, bad)
            bad.clear()

    def _views(self, lane: int, bad: list[str]):
        """(pixels, label) in the order a b a b a b, pass after pass; bad images are named in the first pass."""
        for number in itertools.count():
            self.stream.set_epoch(number)
            images = self._images(lane, bad if number == 0 else [])
            pair = list(itertools.islice(images, 2))
            if not pair and not bad:
                return  # no shard for this worker
            if len(pair) < 2:
                raise LocalInputError(
                    f"share {lane} of the stream has no two readable images; {bad[-1] if bad else ''}"
                )
            while len(pair) == 2:
                yield from pair * self.repeats
                pair = list(itertools.islice(images, 2))

    def _images(self, lane: int, bad: list[str]):
        for place, row in enumerate(self.stream):
            try:
                yield decode_pixels(row["image"]), row["label"]
            except BadImageError as error:
                name = (row["image"] or {}).get("path") or f"image {place} of share {lane} of the stream"
                bad.append(f"{name} is a bad image: {error}")


def _crop_views(images, settings: AugmentationSettings, seed: int, epoch: int, positions: list[int], bad: list) -> dict:
    """A batch as `ViewDataset` describes it: one crop of each of `images`, (pixels, label), in the positions' order."""
    uniforms = draw_uniforms(seed, epoch, positions)
    size = settings.image_size
    shape = (len(positions), 3, size, size)
    pixel_values = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)  # as the resizing leaves it
    labels = []
    for slot, (pixels, label) in enumerate(images):
        box = crop_box(uniforms[slot], pixels.shape[1], pixels.shape[2], settings.crop_scale)
        crop_and_resize(pixels, box, pixel_values[slot])
        labels.append(label)
    return {
        "pixel_values": pixel_values,
        "labels": torch.tensor(labels),
        "epoch": np.full(len(positions), epoch),
        "position": np.asarray(positions),
        "draws": draw(settings, seed, epoch, positions, uniforms),
        "bad_images": list(bad),
    }


def crop_and_resize(pixels: torch.Tensor, box: tuple[int, int, int, int], output: torch.Tensor):
    """Write a box of an image into `output`, resized bicubically with antialiasing, in uint8 throughout.

    Args:
        pixels: (3, height, width) uint8.
        box: top, left, height, width.
        output: (3, side, side) uint8.
    """
    top, left, height, width = box
    cropped = pixels[None, :, top : top + height, left : left + width]
    cropped = cropped.contiguous(memory_format=torch.channels_last)  # as the kernel wants it; it copies worse itself
    output.copy_(F.interpolate(cropped, output.shape[1:], mode="bicubic", antialias=True)[0])


class BadImages:
    """Which rows could not be read: each is named once, and too many end the run.

    Args:
        rows: the training split of [`ImageData`]; None for a stream, which has no length.
        on_bad_image: `"warn"`, or `"error"` to stop at the first.
        max_fraction: of the rows; with more than that (and more than one) unreadable, the run stops.
        num_processes: each of which sees its share of the rows.
    """

    def __init__(
        self, rows: Dataset | None, on_bad_image: str = "warn", max_fraction: float = 0.01, num_processes: int = 1
    ):
        self.rows = rows
        self.on_bad_image = on_bad_image
        self.max_fraction = max_fraction
        self.num_images = len(rows) / num_processes if rows is not None else STREAM_TRIAL
        self.num_shown = 0
        self.seen: set[int | str] = set()

    def note(self, bad: list[int] | list[str], num_shown: float = 0):
        """Take note of the unreadable rows of a batch (of a stream: what is wrong with which, in words).

        Args:
            bad: as in the batch.
            num_shown: images in the batch, by which a stream's bad ones are judged.

        Raises:
            InputError: at the first with `on_bad_image="error"`, or when there are too many.
        """
        self.num_shown += num_shown
        for row in bad:
            if row in self.seen:
                continue
            self.seen.add(row)
            message = (
                row
                if self.rows is None
                else f"{describe_row(self.rows, row)} is a bad image: " + why_bad(self.rows, row)
            )
            if self.on_bad_image == "error":
                raise LocalInputError(f"{message}; mend or remove it, or set on_bad_image to warn")
            logger.warning(f"{message}; another is shown in its place")
        num_images = self.num_images if self.rows is not None else max(self.num_shown, self.num_images)
        if len(self.seen) > max(self.max_fraction * num_images, 1):
            raise LocalInputError(
                f"{len(self.seen)} images are bad, more than max_bad_image_fraction {self.max_fraction:g} allows; mend "
                "the dataset, or allow more"
            )


def encoded_row(rows: Dataset, row: int) -> tuple[dict, int]:
    """Image, encoded, and label of a row: those of `rows[row]`, in a third of its time, since nothing is formatted."""
    place = rows._indices.column(0)[row].as_py() if rows._indices is not None else row
    return rows.data.column("image")[place].as_py(), rows.data.column("label")[place].as_py()


def describe_row(rows: Dataset, row: int) -> str:
    """A row in words: its number and, where it has one, its file."""
    image = rows[int(row)]["image"]
    return f"row {row}" + (f" ({image['path']})" if image and image["path"] else "")


def why_bad(rows: Dataset, row: int) -> str:
    """What is wrong with a row's image, in words; empty if nothing is."""
    try:
        decode_pixels(rows[int(row)]["image"])
    except BadImageError as error:
        return str(error)
    return ""


def collate(samples: dict | list[dict]) -> dict:
    """A batch from samples, `pixel_values` (batch, 3, height, width) and `labels` (batch,); a whole batch as it is."""
    if isinstance(samples, dict):
        return samples
    return {
        "pixel_values": torch.stack([torch.as_tensor(sample["pixel_values"]) for sample in samples]),
        "labels": torch.tensor([sample["labels"] for sample in samples]),
    }


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _encoded_bytes(image: dict) -> bytes:
    return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()


def _readable_bytes(image: dict | None) -> bytes:
    """The bytes of an image, none for a file that is missing."""
    try:
        return _encoded_bytes(image)
    except (OSError, TypeError):
        return b""


def _open(encoded: bytes) -> PIL.Image.Image:
    """Read the header alone and judge it."""
    if not encoded:
        raise BadImageError("the file is empty")
    if encoded == REFUSED:
        raise BadImageError("its path leads out of the dataset's folder, so it was not opened")
    try:
        opened = PIL.Image.open(io.BytesIO(encoded))
    except PIL.UnidentifiedImageError:
        raise BadImageError("Pillow cannot identify it as an image of any format") from None
    _check_size(opened.width, opened.height)
    return opened


def _check_size(width: int, height: int):
    if width * height > (PIL.Image.MAX_IMAGE_PIXELS or math.inf):
        raise BadImageError(f"{width}x{height} pixels: a decompression bomb?")
    if width * height == 1:
        raise BadImageError("one pixel only")


def _needs_decoding_only(encoded: bytes) -> bool:
    """Whether it is a JPEG, grey or in colour, that is to be shown as it is stored."""
    size = _plain_jpeg_size(encoded)
    if size is not None:
        _check_size(*size)
        return True
    opened = _open(encoded)
    return opened.format == "JPEG" and opened.mode in ("RGB", "L") and _is_upright(opened)


def _plain_jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    """Width and height of the most common JPEG: grey or colour, no metadata that could turn it; None for all else.

    Pillow takes fifty microseconds to tell the same, a twentieth of the time of decoding.
    """
    place = 2 if encoded.startswith(b"\xff\xd8\xff") else len(encoded)
    while place + 10 <= len(encoded):
        start, marker, length = struct.unpack_from(">BBH", encoded, place)
        if start != 0xFF or marker == 0xE1:  # not a marker; Exif or XMP
            return None
        if marker in (0xC0, 0xC1, 0xC2):  # the frame's header: baseline, extended, progressive
            bits, height, width, channels = struct.unpack_from(">BHHB", encoded, place + 4)
            return (width, height) if bits == 8 and channels in (1, 3) and width and height else None
        place += 2 + length
    return None


def _is_upright(opened: PIL.Image.Image) -> bool:
    if not any(key in opened.info for key in ORIENTATION_KEYS):
        return True
    try:
        return opened.getexif().get(PIL.ExifTags.Base.Orientation, 1) == 1
    except Exception:
        return True  # a broken block spoils no pixels


def _to_rgb(opened: PIL.Image.Image) -> PIL.Image.Image:
    opened.load()
    upright = opened if _is_upright(opened) else PIL.ImageOps.exif_transpose(opened)
    if upright.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        return PIL.Image.fromarray((np.asarray(upright) / 257).clip(0, 255).astype(np.uint8)).convert("RGB")
    return upright.convert("RGB")


def _bad_image(error: Exception) -> BadImageError:
    return error if isinstance(error, BadImageError) else BadImageError(f"{type(error).__name__}: {error}")


def _as_stream(splits: dict, train_split: str, validation_split: str | None, source: str) -> ImageData:
    """Training as a stream; the validation split is written to the disk, since it is read again and again."""
    train = splits[train_split]
    named = [validation_split] if validation_split else [name for name in EVALUATION_SPLITS if name in splits]
    if not named or named[0] not in splits:
        raise InputError(f"streaming needs a validation split, {source!r} has: {', '.join(splits)}; --validation_split")
    if not isinstance(train.features["label"], ClassLabel):
        raise InputError(
            f"streaming needs labels with class names (ClassLabel), {source!r} has {train.features['label']}"
        )
    validation = Dataset.from_generator(
        _each_row, features=splits[named[0]].features, gen_kwargs={"rows": splits[named[0]]}
    )
    _check_labels(validation, f"split {named[0]!r}", "validation_split")
    return ImageData(train, validation, train.features["label"].names, source, f"split {named[0]!r}")


def _each_row(rows):
    yield from rows


def _load_named(name: str, config_name: str | None, streaming: bool) -> dict[str, Dataset]:
    if name == "digits":
        if streaming:
            raise InputError("the digits are embedded and in memory; drop streaming")
        return {"train": load_digits()}
    path = Path(name).expanduser()
    if not path.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1 or path.suffix == ".parquet"):
        raise InputError(f"dataset_name {name!r} does not exist; give a folder, a parquet file or a Hub dataset's name")
    try:
        if path.is_file() and path.suffix == ".parquet":
            return dict(load_dataset("parquet", data_files={"train": str(path)}, streaming=streaming))
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            saved = load_from_disk(str(path))
            splits = dict(saved) if isinstance(saved, DatasetDict) else {"train": saved}
            return {name: rows.to_iterable_dataset() for name, rows in splits.items()} if streaming else splits
        return dict(load_dataset(str(path) if path.exists() else name, config_name, streaming=streaming))
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        where = "could not be read" if path.exists() else "was not found here, nor could it be read from the Hub"
        raise InputError(f"dataset_name {name!r} {where} ({type(error).__name__}: {reason})") from error


def _load_folders(train_dir: str, validation_dir: str | None, streaming: bool) -> dict[str, Dataset]:
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
        _check_one_folder_per_class(argument, path)
        files[split] = glob.escape(str(path.resolve())) + "/**"
    try:
        return dict(load_dataset("imagefolder", data_files=files, drop_labels=False, streaming=streaming))
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        folders = " and ".join(repr(folder) for folder in (train_dir, validation_dir) if folder)
        raise InputError(f"no images could be read from {folders} ({type(error).__name__}: {reason})") from error


def _check_one_folder_per_class(argument: str, folder: Path):
    """Each image lies in <class>/; the loader would take the last folder of any other path for a class."""
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(root).relative_to(folder)
        images = [name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")]
        if images and len(inside.parts) != 1:
            where = (
                f"{inside / images[0]} lies {len(inside.parts)} folders deep"
                if inside.parts
                else (f"{images[0]} lies in no class folder")
            )
            raise InputError(f"{argument} {str(folder)!r}: {where}; every image must lie in <class>/, one folder deep")


def _select_all(splits: dict[str, Dataset], needed: tuple, image_column, label_column) -> dict[str, Dataset]:
    """The splits with their two columns; one that nobody named may lack them (a test split without labels)."""
    selected = {}
    for name, rows in splits.items():
        try:
            selected[name] = _select_columns(rows, image_column, label_column)
        except InputError:
            if name in needed:
                raise
    return selected


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
    if image == label:
        raise InputError(f"image_column and label_column are both {label!r}; choose another --label_column")
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


def _roots(sources: list[str | None]) -> tuple[str, ...]:
    """The folders whose files a dataset's rows may name: its own, else the Hub's cache; and where archives unpack."""
    roots = {str(datasets_config.DOWNLOADED_DATASETS_PATH)}
    for source in filter(None, sources):
        path = Path(source).expanduser()
        folder = path if path.is_dir() else path.parent if path.exists() else hub_constants.HF_HUB_CACHE
        roots |= {os.path.abspath(folder), os.path.realpath(folder)}
    return tuple(os.path.join(root, "") for root in sorted(roots))


def _keep_inside(rows: Dataset, roots: tuple[str, ...]) -> Dataset:
    """The rows, with `REFUSED` for the images whose path leads elsewhere: whoever made them must not choose files."""
    refuse = functools.partial(_refuse_outside, roots=roots)
    if not isinstance(rows, Dataset):
        return rows.map(refuse, features=rows.features)
    column = rows.data.column("image")
    unread = pc.and_(pc.is_valid(column), pc.is_null(pc.struct_field(column, "bytes")))
    paths = pc.drop_null(pc.struct_field(column, "path").filter(unread))
    inside = [pc.starts_with(paths, root) for root in roots]
    plain = pc.and_(functools.reduce(pc.or_, inside), pc.invert(pc.match_substring(paths, "..")))
    unclear = paths.filter(pc.invert(plain)).to_pylist()  # none, but in rare datasets
    return rows if all(_is_inside(path, roots) for path in unclear) else rows.map(refuse, features=rows.features)


def _refuse_outside(row: dict, roots: tuple[str, ...]) -> dict:
    image = row["image"]
    if not image or image["bytes"] is not None or image["path"] is None or _is_inside(image["path"], roots):
        return row
    # The path too: what writes rows drops the bytes of an image whose file is there.
    return {**row, "image": {"bytes": REFUSED, "path": f"refused: {image['path']}"}}


def _is_inside(path: str, roots: tuple[str, ...]) -> bool:
    # Links in a folder are its owner's business; but what `..` after one of them means, only the system knows.
    return (os.path.realpath(path) if ".." in Path(path).parts else os.path.abspath(path)).startswith(roots)


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
    return np.asarray(rows["label"][:])


def _unlabelled(rows: Dataset) -> bool:
    labels = rows["label"][:1]
    return len(rows) == 0 or labels[0] is None or labels[0] == -1


def _check_labels(rows: Dataset, where: str, option: str):
    if len(rows) == 0:
        raise InputError(f"{where} has no images")
    missing = {None, -1} if isinstance(rows.features["label"], ClassLabel) else {None}
    if missing & set(rows["label"][:]):
        raise InputError(f"{where} has images without a label; choose another split with --{option}")


def _encode_labels(train: Dataset, validation: Dataset) -> tuple[Dataset, Dataset]:
    """Labels that are not ClassLabel yet (strings, integers) become indices into the sorted classes of training."""
    if isinstance(train.features["label"], ClassLabel):
        return train, validation
    classes = sorted(value for value in set(train["label"][:]) if value is not None)
    index = {value: position for position, value in enumerate(classes)}
    feature = ClassLabel(names=[str(value) for value in classes])

    def encode(rows):
        """`rows` with indices for labels."""
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
