"""Views: which image is seen at which position of an epoch, and every random draw for it.

A view is (image, epoch, position); position is the place in the epoch's global order, whatever the batch size, the
number of workers or of processes. All draws are a pure function of (seed, epoch, position): the same run on one or
eight processes sees the same pixels, a resumed run continues exactly, and a teacher's answer can be stored.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import betaincinv
from torch.utils.data import Sampler

from ..errors import InputError
from .columns import NO_LABEL, label_column

# The operations of RandAugment; first those of the public recipe's policy, `rand-m9-mstd0.5-inc1`, in its order.
OPERATIONS = (
    "auto_contrast",
    "equalize",
    "invert",
    "rotate",
    "posterize",
    "solarize",
    "solarize_add",
    "color",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
NO_OPERATION = -1
NUM_OPERATIONS = 2  # a view
OPERATION_PROB = 0.5  # of each
MAGNITUDE_STD = 0.5
MAX_MAGNITUDE = 10.0

CROP_RATIO = (3 / 4, 4 / 3)  # width / height
ERASED_AREA = (0.02, 1 / 3)  # share of the image
ERASED_RATIO = (0.3, 1 / 0.3)  # height / width
CUTMIX_PROB = 0.5  # against mixup, where both are on

# Random streams: numbers of different streams are independent.
_VIEW, _PAIR, _REPLACEMENT, _ORDER, _CYCLE, _ROUND = range(6)

# Columns of a view's uniform draws, `uniforms[:, _FLIP]`; crops and erased boxes have ten attempts.
_CROP_AREA, _CROP_RATIO, _CROP_PLACE = slice(0, 10), slice(10, 20), slice(20, 22)
_FLIP, _OPERATION, _APPLY, _NORMAL, _SIGN = 22, slice(23, 25), slice(25, 27), slice(27, 29), slice(29, 31)
_ERASE, _ERASED_AREA, _ERASED_RATIO, _ERASED_PLACE = 31, slice(32, 42), slice(42, 52), slice(52, 54)
_NOISE_SEED = 54
_NUM_UNIFORMS = 56  # a multiple of 4, since Philox makes four numbers at a count; another width changes all views
_NUM_PAIR_UNIFORMS = 4
_NUM_REPLACEMENT_COUNTS = 16

NO_BALANCE = (
    "balanced_views draws each class equally often, and images without labels have none; give --class_weights balanced "
    "instead, which weights the labelled images alone"
)
# Names of settings in stores and checkpoints of earlier versions.
_EARLIER_NAMES = {
    "crop_scale": "random_crop_scale",
    "flip_prob": "horizontal_flip_prob",
    "erasing_prob": "random_erasing_prob",
}


class View(NamedTuple):
    """One look at one image: row in the dataset, epoch, place in the epoch's global order."""

    image: int
    epoch: int
    position: int


@dataclass(frozen=True)
class AugmentationSettings:
    """What is drawn, from which distributions (paper, Table 9); named as the arguments of a run."""

    image_size: int  # side of a crop in pixels
    random_crop_scale: tuple[float, float] = (0.08, 1.0)  # range of a crop's share of the image's area
    horizontal_flip_prob: float = 0.5
    rand_augment_magnitude: float = 9.0  # mean strength of RandAugment, 0 (off) to 10
    random_erasing_prob: float = 0.25
    mixup_alpha: float = 0.8  # Beta parameter; 0 is off
    cutmix_alpha: float = 1.0  # Beta parameter; 0 is off
    scaled_decoding: bool = False  # of large JPEGs, see `scaled.py`

    @classmethod
    def from_arguments(cls, args, image_size: int) -> "AugmentationSettings":
        """The settings that a run's arguments ask for."""
        values = {name: getattr(args, name) for name in VIEW_ARGUMENTS}
        values |= {
            "random_crop_scale": tuple(args.random_crop_scale),
            "scaled_decoding": bool(args.scaled_decoding),  # None where nobody decided
        }
        return cls(image_size, **values)

    @property
    def mixes(self) -> bool:
        """Whether views are mixed in pairs."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0


# Settings that are arguments of a run too, under the same names.
VIEW_ARGUMENTS = tuple(field.name for field in dataclasses.fields(AugmentationSettings) if field.name != "image_size")


def check_pairs(settings: AugmentationSettings, batch_size: int):
    """Refuse a batch of a device in which views that are mixed would not lie in whole pairs.

    Raises:
        InputError: an odd batch although views are mixed.
    """
    if settings.mixes and batch_size % 2:
        raise InputError(
            f"per_device_train_batch_size is {batch_size}, which is odd; mixup and cutmix mix views in pairs, which "
            "must lie in one batch: choose an even one, or set both alphas to 0"
        )


def with_current_names(values: Mapping[str, object]) -> dict[str, object]:
    """What a store or a checkpoint says of its views, under the names of today.

    Settings that it does not have get the value that earlier versions worked with: they balanced no classes and decoded
    every image whole.
    """
    earlier = {"balanced_views": False, "scaled_decoding": False}
    return {**earlier, **{_EARLIER_NAMES.get(name, name): value for name, value in values.items()}}


@dataclass
class Draws:
    """What the device does to n cropped views; NumPy arrays, so that they stay on the host.

    Views are mixed in pairs (2k, 2k + 1). Boxes are top, left, height and width.
    """

    flip: np.ndarray  # (n,) bool
    operations: np.ndarray  # (n, 2) indices into `OPERATIONS`, or `NO_OPERATION`
    arguments: np.ndarray  # (n, 2) of the operations: degrees, bits, threshold, added levels, factor, or share
    erased_box: np.ndarray  # (n, 4) height 0 where nothing is erased
    noise_seed: np.ndarray  # (n,) of the erased box's noise, below 2**31
    mix_ratio: np.ndarray | None = None  # (n / 2,) how much a view keeps of itself; None without mixing
    mix_box: np.ndarray | None = None  # (n / 2, 4) of cutmix; height -1 for mixup


class ViewSampler(Sampler[View]):
    """The global order of an epoch's views, with repeated augmentation (Hoffer et al. 2020; paper, section 6).

    An epoch has as many views as the dataset has images, rounded down to whole optimiser steps (at least one, filled
    cyclically). Each drawn image is seen `repeats` times, neighbours in the order a₀ b₀ a₁ b₁ a₂ b₂: views that are
    mixed, positions 2k and 2k + 1, never show the same image, and a batch decodes an image once for all its views.
    So an epoch of 3 repeats sees a third of the images.

    With `view_epochs` K, epochs K, K + 1, ... show the views of epochs 0, 1, ... again, the same crops, operations and
    partners, in another order: blocks of 2 · `repeats` views are shuffled, so that neighbours still share an image and
    pairs stay pairs. A [`View`] then names the epoch that it comes from, and so do a teacher's stored answers.

    Args:
        num_images: of the dataset.
        global_batch_size: views of an optimiser step over all processes.
        repeats: views of each drawn image.
        seed: of the order.
        labels: (images,) class indices, to draw each class equally often, see [`balanced_order`]; the length of an
            epoch stays. None draws each image equally often.
        view_epochs: after how many epochs the views are repeated; 0 for never.

    Raises:
        InputError: labels of fewer than two classes.
    """

    def __init__(
        self,
        num_images: int,
        global_batch_size: int,
        repeats: int = 3,
        seed: int = 0,
        labels: np.ndarray | None = None,
        view_epochs: int = 0,
    ):
        self.num_images = num_images
        self.repeats = repeats
        self.view_epochs = view_epochs
        self.seed = seed
        self.members = None if labels is None else members_of_classes(labels)
        self.epoch = 0
        self.start = 0
        self.length = max(num_images // global_batch_size, 1) * global_batch_size

    @classmethod
    def from_arguments(cls, args, dataset) -> "ViewSampler":
        """The order of a run's views, of a [`ViewDataset`]."""
        check_pairs(dataset.settings, args.train_batch_size)
        labels = labels_to_balance(args, dataset.rows)
        length, repeats = args.effective_batch_size, args.repeated_augmentation
        return cls(len(dataset), length, repeats, dataset.seed, labels, args.view_epochs)

    def __len__(self) -> int:
        return self.length - self.start

    def set_epoch(self, epoch: int):
        """Choose the epoch whose order is yielded next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[View]:
        """Views from place `start` on; beginning in the middle of an epoch costs no more than at its start."""
        plan = self.plan()
        for position in self.positions()[self.start :].tolist():
            yield self.view(plan, position)

    def view(self, plan: np.ndarray, position: int) -> View:
        """The view at a position of the epoch whose [`plan`] is given."""
        return View(int(plan[self._rank(position)]), self.epoch_of_views, position)

    @property
    def epoch_of_views(self) -> int:
        """The epoch whose views are shown: that of the training, or the one that it repeats."""
        return self.epoch % self.view_epochs if self.view_epochs else self.epoch

    def positions(self) -> np.ndarray:
        """The positions of the epoch's views in the order in which they are shown, (length,).

        In the first round these are 0, 1, 2, ...; later the whole blocks are shuffled, and a last part of one stays.
        """
        positions, block = np.arange(self.length), 2 * self.repeats
        if self.epoch_of_views != self.epoch:
            number = self.length // block
            order = _generator(self.seed, self.epoch, _ROUND, 0).permutation(number)
            positions[: number * block] = positions[: number * block].reshape(number, block)[order].ravel()
        return positions

    def plan(self) -> np.ndarray:
        """The drawn images of the epoch in order, (images,) int32 rows; p has `plan[2 * (p // 2R) + p % 2]`."""
        num_drawn = self._num_drawn(self.length)
        if self.members is not None:
            # Of the dataset alone: at any batch size the epochs go on in the same places of each class.
            rounds_per_epoch = math.ceil(self._num_drawn(self.num_images) / len(self.members))
            return balanced_order(self.members, num_drawn, rounds_per_epoch, self.seed, self.epoch_of_views)
        order = np.arange(self.num_images, dtype=np.int32)
        _generator(self.seed, self.epoch_of_views, _ORDER, 0).shuffle(order)
        return np.resize(order, num_drawn) if num_drawn > self.num_images else order[:num_drawn].copy()

    def _rank(self, position: int) -> int:
        return 2 * (position // (2 * self.repeats)) + position % 2

    def _num_drawn(self, length: int) -> int:
        return 1 + max(self._rank(position) for position in range(max(length - 2, 0), length))


def labels_to_balance(args, rows) -> np.ndarray | None:
    """The labels (rows,) that [`ViewSampler`] needs where `args.balanced_views`; None where it is false.

    Raises:
        InputError: images without labels.
    """
    if not args.balanced_views:
        return None
    labels = label_column(rows)
    if (labels == NO_LABEL).any():
        raise InputError(NO_BALANCE)
    return labels


def members_of_classes(labels: np.ndarray) -> dict[int, np.ndarray]:
    """The rows of each class that has any, by class index.

    Raises:
        InputError: fewer than two such classes.
    """
    members = {int(label): np.flatnonzero(labels == label) for label in np.unique(labels)}
    if len(members) < 2:
        raise InputError(
            f"balanced_views draws each class equally often, but the training images are of {len(members)} class(es); "
            "leave it out"
        )
    return members


def balanced_order(
    members: Mapping[int, np.ndarray], num_drawn: int, rounds_per_epoch: int, seed: int, epoch: int
) -> np.ndarray:
    """Rows (num_drawn,) of an epoch, in order, in which each class comes equally often.

    The draws are rounds; in a round each class comes once, in a random order. So of any two classes one has been drawn
    at most once more than the other, wherever the epoch ends. In the g-th round of the whole run a class of m rows
    shows the (g mod m)-th of a random order of them, which is another one each m rounds: a small class is seen again
    and again, a large one over several epochs, and each row of a class comes round once in m rounds. Neighbours that
    may be mixed, draws 2i and 2i + 1, are of two classes. A shorter epoch is the beginning of a longer one.

    Args:
        members: the rows of each class, see [`members_of_classes`].
        num_drawn: how many are drawn.
        rounds_per_epoch: rounds that each earlier epoch took.
        seed, epoch: of the draws.
    """
    num_classes, num_rounds = len(members), math.ceil(num_drawn / len(members))
    num_rounds += num_rounds % 2
    order = _generator(seed, epoch, _ORDER, 0).random((num_rounds, num_classes)).argsort(axis=1, kind="stable")
    if num_classes % 2:  # the last of each even round is mixed with the first of the next
        alike = np.flatnonzero(order[0::2, -1] == order[1::2, 0]) * 2
        order[alike, -2:] = order[alike, -2:][:, ::-1]
    rounds = epoch * rounds_per_epoch + np.arange(num_rounds)
    shown = np.stack([_in_turn(rows, rounds, seed, label) for label, rows in members.items()], axis=1)
    return np.take_along_axis(shown, order, axis=1).ravel()[:num_drawn].astype(np.int32)


def _in_turn(rows: np.ndarray, rounds: np.ndarray, seed: int, label: int) -> np.ndarray:
    """Which of the rows of a class is shown in each of the rounds, which follow each other."""
    cycles = np.arange(rounds[0] // len(rows), rounds[-1] // len(rows) + 1)
    width = 4 * math.ceil(len(rows) / 4)  # Philox makes four numbers at a count
    keys = _uniforms(seed, label, _CYCLE, cycles.tolist(), width)[:, : len(rows)]
    turns = rows[keys.argsort(axis=1, kind="stable")].ravel()
    first = rounds[0] - cycles[0] * len(rows)
    return turns[first : first + len(rounds)]


def draw_uniforms(seed: int, epoch: int, positions: Sequence[int]) -> np.ndarray:
    """The uniform draws of views, (views, draws), from which all else follows; float64 in [0, 1)."""
    return _uniforms(seed, epoch, _VIEW, positions, _NUM_UNIFORMS)


def draw_replacement(seed: int, epoch: int, position: int, num_images: int) -> Iterator[int]:
    """Rows to see instead of a broken image, one after the other."""
    generator = _generator(seed, epoch, _REPLACEMENT, _NUM_REPLACEMENT_COUNTS * position)
    while True:
        yield int(generator.integers(num_images))


def crop_box(uniforms: np.ndarray, height: int, width: int, scale: tuple[float, float]) -> tuple[int, int, int, int]:
    """A random box of an image, (top, left, height, width) in pixels.

    Area, a share of the image's in the range `scale`, and shape are drawn up to ten times until the box fits; then it
    is the largest central box of a permitted shape. `uniforms` is one row of [`draw_uniforms`].
    """
    low, high = math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])
    for area_draw, ratio_draw in zip(uniforms[_CROP_AREA].tolist(), uniforms[_CROP_RATIO].tolist(), strict=True):
        area = (scale[0] + (scale[1] - scale[0]) * area_draw) * height * width
        ratio = math.exp(low + (high - low) * ratio_draw)
        box_height, box_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < box_height <= height and 0 < box_width <= width:
            down, right = uniforms[_CROP_PLACE].tolist()
            return int(down * (height - box_height + 1)), int(right * (width - box_width + 1)), box_height, box_width
    box_height = min(height, max(round(width / CROP_RATIO[0]), 1))
    box_width = min(width, max(round(height * CROP_RATIO[1]), 1))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def draw(
    settings: AugmentationSettings, seed: int, epoch: int, positions: Sequence[int], uniforms: np.ndarray
) -> Draws:
    """What the device does to views.

    Args:
        settings: the distributions.
        seed, epoch: of the draws.
        positions: (views,) of the epoch; whole pairs where views are mixed.
        uniforms: (views, 56), their [`draw_uniforms`].

    Raises:
        ValueError: views are mixed, but the positions are not whole pairs (2k, 2k + 1) in order.
    """
    operations, arguments = _draw_operations(uniforms, settings.rand_augment_magnitude)
    draws = Draws(
        flip=uniforms[:, _FLIP] < settings.horizontal_flip_prob,
        operations=operations,
        arguments=arguments,
        erased_box=_draw_erased_boxes(uniforms, settings.image_size, settings.random_erasing_prob),
        noise_seed=(uniforms[:, _NOISE_SEED] * 2**31).astype(np.int64),
    )
    if settings.mixes:
        first, second = np.asarray(positions[0::2]), np.asarray(positions[1::2])
        if len(first) != len(second) or (first % 2).any() or (second != first + 1).any():
            raise ValueError(f"views are mixed in pairs of positions (2k, 2k + 1), but came as {list(positions)[:8]}")
        pairs = (first // 2).tolist()
        draws.mix_ratio, draws.mix_box = _draw_mixes(settings, _uniforms(seed, epoch, _PAIR, pairs, _NUM_PAIR_UNIFORMS))
    return draws


def _generator(seed: int, epoch: int, stream: int, count: int) -> np.random.Generator:
    # A counter-based generator: any position is reached at once, and none depends on what was drawn before.
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[count, 0, stream, 0]))


def _uniforms(seed: int, epoch: int, stream: int, places: Sequence[int], width: int) -> np.ndarray:
    """(places, width) uniform numbers; those of a place depend on it alone."""
    uniforms = np.empty((len(places), width))
    begin = 0
    while begin < len(places):
        end = begin + 1
        while end < len(places) and places[end] == places[end - 1] + 1:
            end += 1
        # Neighbours in a batch are neighbours in the generator's counter, so one call draws for all of them.
        _generator(seed, epoch, stream, places[begin] * width // 4).random(out=uniforms[begin:end])
        begin = end
    return uniforms


def _draw_operations(uniforms: np.ndarray, magnitude: float) -> tuple[np.ndarray, np.ndarray]:
    if magnitude == 0:
        shape = (len(uniforms), NUM_OPERATIONS)
        return np.full(shape, NO_OPERATION, dtype=np.int64), np.zeros(shape, dtype=np.float32)
    operations = (uniforms[:, _OPERATION] * len(OPERATIONS)).astype(np.int64)
    # Box and Muller's two normals from two uniforms.
    radius, angle = np.sqrt(-2 * np.log1p(-uniforms[:, _NORMAL][:, 0])), 2 * np.pi * uniforms[:, _NORMAL][:, 1]
    normals = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    levels = np.clip(magnitude + MAGNITUDE_STD * normals, 0, MAX_MAGNITUDE) / MAX_MAGNITUDE
    signs = np.where(uniforms[:, _SIGN] < 0.5, -1.0, 1.0)
    arguments = np.zeros_like(levels)
    for name, argument in OPERATION_ARGUMENTS.items():
        chosen = operations == OPERATIONS.index(name)
        arguments[chosen] = argument(levels[chosen], signs[chosen])
    operations[uniforms[:, _APPLY] >= OPERATION_PROB] = NO_OPERATION
    return operations, arguments.astype(np.float32)


# An operation's arguments at strengths from 0 to 1 and signs of -1 or 1, arrays of (views,); the variants that grow
# with the strength.
OPERATION_ARGUMENTS = {
    "rotate": lambda level, sign: sign * level * 30,  # degrees
    # Bits kept. At full strength the public code keeps none, which Pillow refuses and which shows nothing.
    "posterize": lambda level, sign: np.maximum(4 - np.floor(level * 4), 1),
    "solarize": lambda level, sign: 256 - np.floor(level * 256),  # threshold
    "solarize_add": lambda level, sign: np.floor(level * 110),  # grey levels
    **dict.fromkeys(  # factor
        ("color", "contrast", "brightness", "sharpness"), lambda level, sign: np.maximum(1 + sign * level * 0.9, 0.1)
    ),
    **dict.fromkeys(("shear_x", "shear_y"), lambda level, sign: sign * level * 0.3),  # pixels per pixel
    **dict.fromkeys(("translate_x", "translate_y"), lambda level, sign: sign * level * 0.45),  # share of the side
}


def _draw_erased_boxes(uniforms: np.ndarray, image_size: int, prob: float) -> np.ndarray:
    areas = (ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * uniforms[:, _ERASED_AREA]) * image_size**2
    low, high = math.log(ERASED_RATIO[0]), math.log(ERASED_RATIO[1])
    ratios = np.exp(low + (high - low) * uniforms[:, _ERASED_RATIO])
    heights, widths = np.rint(np.sqrt(areas * ratios)), np.rint(np.sqrt(areas / ratios))
    fits = (heights < image_size) & (widths < image_size)
    rows, first = np.arange(len(uniforms)), fits.argmax(axis=1)
    height, width = heights[rows, first], widths[rows, first]
    top = np.floor(uniforms[:, _ERASED_PLACE][:, 0] * (image_size - height + 1))
    left = np.floor(uniforms[:, _ERASED_PLACE][:, 1] * (image_size - width + 1))
    erased = (uniforms[:, _ERASE] < prob) & fits.any(axis=1)
    return np.where(erased[:, None], np.stack([top, left, height, width], axis=1), 0).astype(np.int64)


def _draw_mixes(settings: AugmentationSettings, uniforms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ratio (pairs,) and box (pairs, 4) of each pair, see `Draws`."""
    size = settings.image_size
    choice, quantile, down, right = uniforms.T
    cutmix = np.full(len(choice), settings.mixup_alpha == 0)
    if settings.mixup_alpha > 0 and settings.cutmix_alpha > 0:
        cutmix = choice < CUTMIX_PROB
    alpha = np.where(cutmix, settings.cutmix_alpha, settings.mixup_alpha)
    ratio = betaincinv(alpha, alpha, quantile)
    side = np.floor(size * np.sqrt(1 - ratio))
    centre = np.floor(np.stack([down, right]) * size)
    low = np.maximum(centre - side // 2, 0)  # top, left
    high = np.minimum(centre + (side + 1) // 2, size)
    height, width = high - low
    # The box may be cut by the border: the ratio is what was really kept.
    kept = np.where(cutmix, 1 - height * width / size**2, ratio)
    boxes = np.where(cutmix, np.stack([*low, height, width]), np.array([[0], [0], [-1], [-1]]))
    return kept.astype(np.float32), boxes.T.astype(np.int64)
