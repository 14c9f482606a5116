"""Batches of views: each image decoded once for all its views in a batch, cropped and resized to uint8 by a worker."""

import functools
import itertools
import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from datasets.distributed import split_dataset_by_node

from ..errors import InputError, LocalInputError
from ..hardware import spare_memory
from .bad_images import describe_row, why_bad
from .columns import NO_LABEL, label_column
from .decoding import BadImageError, decode_pixels, encoded_bytes, jpeg_size
from .scaled import factor_of_image, factor_of_view, scaled_box
from .views import AugmentationSettings, View, check_pairs, crop_box, draw, draw_replacement, draw_uniforms

logger = logging.getLogger(__name__)

LABEL_KEYS = ("labels", "label", "label_ids")  # those of `transformers.default_data_collator`
MAX_REPLACEMENTS = 10
MAX_DECODED = 4
SHUFFLE_BUFFER = 10_000  # encoded images of a stream, about 1 GB of ImageNet


class DecodedImage:
    """An image to be cropped: whole, or where the settings have `scaled_decoding` as small as its views allow.

    Args:
        image: encoded, `{"bytes", "path"}`.
        settings: of the views.

    Attributes:
        height, width: of the whole image, upright, in pixels; boxes are drawn on it.
        factor: how many times smaller it was decoded.

    Raises:
        BadImageError: as for [`decode_pixels`].
    """

    def __init__(self, image: dict, settings: AugmentationSettings):
        self._side, self.factor, size = settings.image_size, 1, None
        if settings.scaled_decoding:
            image = _read(image)
            size = jpeg_size(image["bytes"])
        if size is not None:
            self.factor = factor_of_image(size.height, size.width, settings, size.most)
        self._image = image if self.factor > 1 else None
        pixels = decode_pixels(image) if self.factor == 1 else decode_pixels(image, self.factor)
        self._pixels = {self.factor: pixels}
        self.height, self.width = pixels.shape[1:] if size is None else (size.height, size.width)

    @property
    def num_bytes(self) -> int:
        """What it takes of the memory."""
        encoded = 0 if self._image is None else len(self._image["bytes"])
        return encoded + sum(pixels.nbytes for pixels in self._pixels.values())

    def crop(self, box: tuple[int, int, int, int], output: torch.Tensor):
        """Write a box (top, left, height, width) of the whole image into `output`, see [`crop_and_resize`]."""
        factor = factor_of_view(box, self._side, self.factor)
        if factor not in self._pixels:
            self._pixels[factor] = decode_pixels(self._image, factor)
        pixels = self._pixels[factor]
        crop_and_resize(pixels, box if factor == 1 else scaled_box(box, factor, *pixels.shape[1:]), output)


def _read(image: dict) -> dict:
    try:
        return {**image, "bytes": encoded_bytes(image)}
    except OSError as error:
        raise BadImageError(f"{type(error).__name__}: {error}") from error


class ViewDataset(torch.utils.data.Dataset):
    """Batches of views.

    A batch holds `pixel_values` (views, 3, side, side) uint8, `labels` (views,), and on the host `epoch` and
    `position` (views,), `draws` (see `views.Draws`) and `bad_images`, rows that were asked for but could not be
    read. In their place a row drawn from the view itself is shown, so the batch does not depend on the company.

    The rows are those that [`ImageData`] shows; the label of one without is `NO_LABEL`. With `keep_decoded` each worker
    keeps the pixels of the images that it decoded, for small datasets, whose decoding costs more than their cropping.
    They take about a quarter of the free memory at most; the rest is decoded anew, which is logged. The batches are the
    same.
    """

    def __init__(self, rows: Dataset, settings: AugmentationSettings, seed: int = 0, keep_decoded: bool = False):
        self.rows = rows
        self.settings = settings
        self.seed = seed
        self.keep_decoded = keep_decoded
        self._kept: dict = {}
        self._room: int | None = None  # bytes for what is kept; known when the first image is

    def __len__(self) -> int:
        return len(self.rows)

    @functools.cached_property
    def num_unlabelled(self) -> int:
        """How many of the images have no label."""
        return int(np.count_nonzero(label_column(self.rows) == NO_LABEL))

    def __getitems__(self, views: list[View]) -> dict:
        """The batch of `views`, which are of one epoch."""
        bad: list[int] = []
        recent: dict = {}
        images = (self._look(view, recent, bad) for view in views)
        return _crop_views(self, images, views[0].epoch, [view.position for view in views], bad)

    def _look(self, view: View, recent: dict, bad: list[int]) -> tuple[DecodedImage, int]:
        """Pixels and label of the view's image, or of the first readable one of those drawn in its place."""
        candidates = draw_replacement(self.seed, view.epoch, view.position, len(self.rows))
        row = view.image
        for _ in range(MAX_REPLACEMENTS):
            if row not in self._kept and row not in recent:
                if len(recent) > MAX_DECODED:
                    recent.pop(next(iter(recent)))  # views of one image are neighbours: the oldest is done with
                self._put(row, self._decode(row), recent)
            found = self._kept[row] if row in self._kept else recent[row]
            if found is not None:
                return found
            bad.append(row)
            row = next(candidates)
        raise LocalInputError(
            f"{MAX_REPLACEMENTS} images drawn one after the other could not be read; the first, "
            f"{describe_row(self.rows, view.image)}: {why_bad(self.rows, view.image)}; repair the dataset"
        )

    def _put(self, row: int, decoded: tuple[DecodedImage, int] | None, recent: dict):
        """Among what is kept, or among the recent ones of a batch."""
        if self.keep_decoded and self._room is None:
            self._room = spare_memory() // 4
        size = 0 if decoded is None else decoded[0].num_bytes
        if not self.keep_decoded or size > self._room:
            if self.keep_decoded and self._room >= 0:
                logger.warning(
                    f"a quarter of the free memory is full: {len(self._kept):,} of {len(self):,} decoded images are "
                    "kept, the others are decoded in every epoch"
                )
                self._room = -1
            recent[row] = decoded
            return
        self._room -= size
        self._kept[row] = decoded

    def _decode(self, row: int) -> tuple[DecodedImage, int] | None:
        image, label = encoded_row(self.rows, row)
        try:
            return DecodedImage(image, self.settings), label
        except BadImageError:
            return None


class StreamingViewDataset(torch.utils.data.IterableDataset):
    """Batches of views of a stream without end, for data larger than the disk.

    Processes and workers read shards of their own; nothing is sent around. Batches are those of [`ViewDataset`], with
    positions that no other worker has; but which image has which position depends on how many read the stream, so
    what is stored by position (a teacher's answers) cannot be used with it, and a resumed run reads the stream anew.

    The stream is the training split of [`ImageData`]. An image has `repeats` views, neighbours as in
    `views.ViewSampler`. `seed` is that of all draws and of the stream's shuffling.

    Raises:
        InputError: an odd batch although views are mixed in pairs.
    """

    def __init__(
        self, stream, settings: AugmentationSettings, batch_size: int, repeats=3, seed=0, rank=0, num_processes=1
    ):
        check_pairs(settings, batch_size)
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
            first = number * self.batch_size
            yield _crop_views(self, batch, 0, range(first, first + len(batch)), bad)
            bad.clear()

    def _views(self, lane: int, bad: list[str]):
        """(image, label) in the order a b a b a b, pass after pass; bad images are named in the first pass."""
        for number in itertools.count():
            self.stream.set_epoch(number)
            images = self._images(lane, bad if number == 0 else [])
            pair = list(itertools.islice(images, 2))
            if not pair and not bad:
                return  # no shard for this worker
            if len(pair) < 2:
                raise LocalInputError(
                    f"share {lane} of the stream has no two readable images; {bad[-1] + '; ' if bad else ''}repair the "
                    "dataset, or give one of more images"
                )
            while len(pair) == 2:
                yield from pair * self.repeats
                pair = list(itertools.islice(images, 2))

    def _images(self, lane: int, bad: list[str]):
        for place, row in enumerate(self.stream):
            try:
                yield DecodedImage(row["image"], self.settings), row["label"]
            except BadImageError as error:
                name = (row["image"] or {}).get("path") or f"image {place} of share {lane} of the stream"
                bad.append(f"{name} is a bad image: {error}")


def _crop_views(dataset, images, epoch: int, positions: Sequence[int], bad: list) -> dict:
    """A batch as `ViewDataset` describes it: one crop of each of `images`, (image, label), in the positions' order."""
    uniforms, settings = draw_uniforms(dataset.seed, epoch, positions), dataset.settings
    size = settings.image_size
    shape = (len(positions), 3, size, size)
    pixel_values = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)  # as the resizing leaves it
    labels = []
    for slot, (image, label) in enumerate(images):
        image.crop(crop_box(uniforms[slot], image.height, image.width, settings.random_crop_scale), pixel_values[slot])
        labels.append(label)
    return {
        "pixel_values": pixel_values,
        "labels": torch.tensor(labels),
        "epoch": np.full(len(positions), epoch),
        "position": np.asarray(positions),
        "draws": draw(settings, dataset.seed, epoch, positions, uniforms),
        "bad_images": list(bad),
    }


def crop_and_resize(pixels: torch.Tensor, box: tuple[int, int, int, int], output: torch.Tensor):
    """Write a box (top, left, height, width) of an image into `output`, resized bicubically with antialiasing.

    Both are uint8 throughout, (3, height, width) and (3, side, side).
    """
    top, left, height, width = box
    cropped = pixels[None, :, top : top + height, left : left + width]
    cropped = cropped.contiguous(memory_format=torch.channels_last)  # as the kernel wants it; it copies worse itself
    output.copy_(F.interpolate(cropped, output.shape[1:], mode="bicubic", antialias=True)[0])


def encoded_row(rows: Dataset, row: int) -> tuple[dict, int]:
    """Image, encoded, and label of a row: those of `rows[row]`, in a third of its time, since nothing is formatted."""
    place = rows._indices.column(0)[row].as_py() if rows._indices is not None else row
    return rows.data.column("image")[place].as_py(), rows.data.column("label")[place].as_py()


def collate(samples: dict | list[dict]) -> dict:
    """A batch from samples, `pixel_values` (batch, 3, height, width) and `labels` (batch,); a whole batch as it is.

    A sample may call its label as `transformers.default_data_collator` lets it, see `LABEL_KEYS`. Samples without one
    make a batch without `labels`.

    Raises:
        InputError: samples that are no such dictionaries, or of which only some have a label.
    """
    if isinstance(samples, dict):
        return in_shared_memory(samples)
    for sample in samples:
        if not isinstance(sample, Mapping) or "pixel_values" not in sample:
            keys = f"the keys {', '.join(map(str, sample))}" if isinstance(sample, Mapping) else "no keys"
            raise InputError(
                f"a sample is a {type(sample).__name__} with {keys}; give dictionaries with pixel_values (channels, "
                "height, width) and labels, or a data_collator"
            )
    batch = {"pixel_values": torch.stack([torch.as_tensor(sample["pixel_values"]) for sample in samples])}
    labels = [torch.as_tensor(label) for label in map(label_of, samples) if label is not None]
    if 0 < len(labels) < len(samples):
        raise InputError(f"{len(samples) - len(labels)} of {len(samples)} samples have no labels; give all or none")
    return in_shared_memory({**batch, "labels": torch.stack(labels)} if labels else batch)


def in_shared_memory(batch: dict) -> dict:
    """The batch, with its tensors moved to where a worker hands them over; outside of a worker as it is.

    Else the thread that sends them would move them. An error there, such as a full /dev/shm, is printed and the batch
    is lost: the training would wait for it for ever.
    """
    if torch.utils.data.get_worker_info() is not None:
        for value in batch.values():
            if isinstance(value, torch.Tensor):
                value.share_memory_()
    return batch


def label_of(sample: Mapping):
    """The label of a sample, under whichever key; None without one."""
    return next((sample[key] for key in LABEL_KEYS if sample.get(key) is not None), None)
