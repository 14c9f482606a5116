"""Everything after the crop, batched on the training device from drawn parameters (paper, Table 9).

Flip, RandAugment, normalisation, erasing, mixup and cutmix, from uint8 pixels and `views.Draws`, which [`augment`]
leaves as they are; [`erase`] and [`mix`] write to its output. Each of RandAugment's operations on levels equals
Pillow's within one level; whole-pixel translation is exact. A view's result does not depend on the batch it comes in
(but for its partner, where views are mixed).

Between operations, levels are whole numbers in float32: there every operation is exact where Pillow's is, and a CPU
adds floats ten times faster than it compares bytes or converts back to them. That is also why steps at a threshold
are written as clamped differences of whole numbers rather than as comparisons.

Shapes in comments: n views, 3 channels, S side.
"""

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F

from ..data.columns import NO_LABEL
from ..data.views import NO_OPERATION, NUM_OPERATIONS, OPERATIONS, Draws
from . import geometry
from . import operations as on_levels
from .geometry import GEOMETRIC, SHEARS_AND_TRANSLATIONS, shear_or_translate, transform_twice
from .operations import as_column, to_device, where_marked

# Grows whenever the same seed, epoch, position and settings give other pixels, but for a float's last bits. Stores,
# checkpoints and the records of trained teachers keep it, and are refused where it is another.
AUGMENTATION_VERSION = 1
_IS_GEOMETRIC = np.array([name in GEOMETRIC for name in OPERATIONS] + [False])  # the last is NO_OPERATION, -1
# What views do together: an operation, one of the shears and translations, or two geometric operations at once.
_STEPS = np.array(
    [OPERATIONS.index("shear_x" if name in SHEARS_AND_TRANSLATIONS else name) for name in OPERATIONS] + [NO_OPERATION]
)
_TWICE = len(OPERATIONS)


def augment(
    pixel_values: torch.Tensor,
    draws: Draws,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Augment, normalise, erase and mix cropped views (n, 3, S, S) uint8; float32 of the same shape and device.

    On a CPU the views are taken one by one and mixed pair by pair, so that pixels stay in the cache from one operation
    to the next; on other devices all at once, grouped by operation.

    Args:
        mean, std: of each channel, for pixels from 0 to 1.
        out: written to if given: on a CPU fresh memory costs more than some operations.
    """
    output = torch.empty_like(pixel_values, dtype=torch.float32) if out is None else out
    num_views, on_cpu = len(pixel_values), pixel_values.device.type == "cpu"
    scale, shift = _normalisation(mean, std, pixel_values.device)
    together = 2 if on_cpu else max(num_views, 1)
    for begin in range(0, num_views, together):
        end = min(begin + together, num_views)
        for first in range(begin, end, 1 if on_cpu else num_views):
            chunk = slice(first, first + 1 if on_cpu else end)
            flipped = flip(pixel_values[chunk].contiguous(), draws.flip[chunk])
            levels = rand_augment(flipped, draws.operations[chunk], draws.arguments[chunk])
            if on_cpu:
                torch.add(levels.mul_(scale), shift, out=output[chunk])
            else:
                torch.addcmul(shift, levels, scale, out=output[chunk])  # once over memory; a CPU takes longer for it
            erase(output[chunk], draws.erased_box[chunk], draws.noise_seed[chunk])
        if draws.mix_ratio is not None:
            mix(output[begin:end], draws.mix_ratio[begin // 2 : end // 2], draws.mix_box[begin // 2 : end // 2])
    return output


def mix_labels(
    labels: torch.Tensor, mix_ratio: np.ndarray | None, num_classes: int, has_unlabelled: bool = False
) -> torch.Tensor:
    """The labels of mixed views, (n, classes) float32: each pair (2k, 2k + 1) shares its two classes by its ratio.

    Smoothing is the loss's: (1 - ε)·mixed + ε/classes equals mixing smoothed labels. `mix_ratio` (n / 2,) is what a
    view keeps of itself; None leaves the labels as they are, class indices (n,).

    With `has_unlabelled` an image without a label, `NO_LABEL`, shares none; else it is an error. With λ the ratio and y
    the one-hot class, zero where there is none, the label of the first view of a pair is λ·y₁ + (1 - λ)·y₂. It sums to
    the labelled share of the view.
    """
    if mix_ratio is None:
        return labels
    one_hot = as_one_hot(labels, num_classes) if has_unlabelled else F.one_hot(labels, num_classes).float()
    kept = to_device(np.repeat(mix_ratio, 2)[:, None], labels.device)
    return kept * one_hot + (1 - kept) * one_hot.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def as_one_hot(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Class indices (n,) as (n, classes) float32, of which the row of a `NO_LABEL` is zero."""
    return F.one_hot(labels - NO_LABEL, num_classes + 1)[:, 1:].float()


def flip(pixels: torch.Tensor, flipped: np.ndarray) -> torch.Tensor:
    """Mirror the views (n, 3, S, S) that are marked (n,)."""
    return where_marked(flipped, lambda views: views.flip(-1), pixels)


def rand_augment(pixels: torch.Tensor, operations: np.ndarray, arguments: np.ndarray) -> torch.Tensor:
    """The drawn operations (n, 2) with their arguments (n, 2), in order; two geometric ones become one resampling.

    Pixels (n, 3, S, S) are whole levels from 0 to 255; so is the result, in float32.
    """
    if (operations == NO_OPERATION).all():
        return pixels.float()
    composed = _IS_GEOMETRIC[operations].all(axis=1)
    if len(pixels) > 1:
        steps = np.where(composed[:, None], (_TWICE, NO_OPERATION), _STEPS[operations])
        return _side_by_side(pixels, steps, operations, arguments)
    pixels = pixels.float()
    steps = (_TWICE,) if composed[0] else _STEPS[operations[0]].tolist()
    for slot, step in enumerate(steps):
        if step != NO_OPERATION:
            pixels = _perform(step, slot, pixels, operations, torch.from_numpy(arguments))
    return pixels


def erase(normalised: torch.Tensor, boxes: np.ndarray, seeds: np.ndarray):
    """Fill a box of each view (n, 3, S, S) with normal noise, in place (Zhong et al. 2020).

    Boxes are (n, 4): top, left, height, width. Seeds (n,) are those of `views.Draws`.
    """
    chosen = np.flatnonzero(boxes[:, 2])
    if not len(chosen):
        return
    keys = _hash(seeds[chosen].astype(np.int32))  # on the host, which takes a tenth of a tensor's time
    if normalised.device.type == "cpu":
        for view, key in zip(chosen, keys, strict=True):
            top, left, height, width = boxes[view]
            box = normalised[view, :, top : top + height, left : left + width]
            numbers = _pixel_numbers(normalised.shape[-1])[:, top : top + height, left : left + width]
            box.copy_(noise(numbers, int(key)))
    else:
        box, y, x = _pixels_of(boxes[chosen], normalised.device)  # (pixels,) each
        size, (views, keys) = normalised.shape[-1], to_device(np.stack([chosen, keys]), normalised.device)[:, box]
        channels = torch.arange(3, device=normalised.device)[:, None]
        numbers = ((channels * size + y) * size + x).int()  # (3, pixels), those of `_pixel_numbers`
        normalised[views, :, y, x] = noise(numbers, keys.int()).T


def mix(normalised: torch.Tensor, mix_ratio: np.ndarray, mix_box: np.ndarray):
    """Mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019) of the pairs (2k, 2k + 1) of (n, 3, S, S), in place.

    `mix_ratio` (n / 2,) and `mix_box` (n / 2, 4) are those of `views.Draws`.
    """
    first, second = normalised[0::2], normalised[1::2]
    by_box = mix_box[:, 2] >= 0
    share = np.where(by_box, 0.0, 1 - mix_ratio).astype(np.float32)
    if normalised.device.type != "cpu":
        boxes = to_device(np.where(by_box[:, None], mix_box, 0), normalised.device)
        inside = _inside(boxes, normalised.shape[-1])[:, None]
        _exchange(first, second, torch.where(inside, 1.0, as_column(share, normalised.device)))
        return
    if not by_box.all():
        _exchange(first, second, as_column(share, "cpu"))
    for pair in np.flatnonzero(by_box):
        top, left, height, width = mix_box[pair]
        box = (pair, slice(None), slice(top, top + height), slice(left, left + width))
        taken = first[box].clone()
        first[box] = second[box]
        second[box] = taken


def _exchange(first: torch.Tensor, second: torch.Tensor, share: torch.Tensor):
    """Each gives the other a share of itself, which broadcasts, in place."""
    unmixed = first.clone()
    first.lerp_(second, share)
    second.lerp_(unmixed, share)


def noise(numbers: torch.Tensor, key: int | torch.Tensor) -> torch.Tensor:
    """Standard normal noise from a counter-based generator in tensor operations: the same numbers on every device.

    One for each of `numbers`, those of the pixels in their view, int32. The view's `key`, int32 too, may broadcast.
    """
    bits = _hash(numbers ^ key)
    uniform = bits.bitwise_and_(0x7FFFFF).float().mul_(2.0**-22).sub_(1 - 2.0**-23)  # in (-1, 1), exact in float32
    return uniform.erfinv_().mul_(math.sqrt(2))


def _function_of(name: str):
    if name in SHEARS_AND_TRANSLATIONS:
        return shear_or_translate
    return getattr(geometry if name in GEOMETRIC else on_levels, name)


_FUNCTIONS = [_function_of(name) for name in OPERATIONS]


def _perform(
    step: int, slot: int, pixels: torch.Tensor, operations: np.ndarray, arguments: torch.Tensor
) -> torch.Tensor:
    """A step that views (n, 3, S, S) have in common in a slot, the first or the second of their operations (n, 2)."""
    if step == _TWICE:
        return transform_twice(pixels, operations, arguments)
    if _FUNCTIONS[step] is shear_or_translate:
        return shear_or_translate(pixels, operations[:, slot], arguments[:, slot])
    return _FUNCTIONS[step](pixels, arguments[:, slot])


def _side_by_side(
    pixels: torch.Tensor, steps: np.ndarray, operations: np.ndarray, arguments: np.ndarray
) -> torch.Tensor:
    """The steps (n, 2) of many views, one slot after the other.

    Views with the same step are put beside each other, so that it runs once for them: of steps 7, -, 2, 7 the order is
    1 (which rests), 2, 0, 3. At the end all are back in their own order.
    """
    order = np.arange(len(pixels))  # which view is at which place
    for slot in range(NUM_OPERATIONS):
        old_order, order = order, np.argsort(steps[:, slot], kind="stable")
        pixels = _rearrange(pixels, old_order, order).float()
        drawn = steps[order, slot]
        for step in np.unique(drawn[drawn != NO_OPERATION]):
            begin, end = np.searchsorted(drawn, (step, step + 1))
            chosen, views = order[begin:end], pixels[begin:end]
            views.copy_(_perform(step, slot, views, operations[chosen], torch.from_numpy(arguments[chosen])))
    return _rearrange(pixels, order, np.arange(len(pixels)))


def _rearrange(pixels: torch.Tensor, old_order: np.ndarray, order: np.ndarray) -> torch.Tensor:
    """A copy of the views in another order."""
    return pixels.index_select(0, to_device(np.argsort(old_order)[order], pixels.device))


def _normalisation(mean, std, device) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = (torch.tensor(value, dtype=torch.float32, device="cpu").view(3, 1, 1) for value in (mean, std))
    return to_device(1 / (255 * std), device), to_device(-mean / std, device)


def _inside(boxes: torch.Tensor, size: int) -> torch.Tensor:
    """(n, 4) top, left, height, width → (n, S, S) bool."""
    along = torch.arange(size, device=boxes.device)
    top, left, height, width = boxes.unbind(1)
    rows = (along >= top[:, None]) & (along < (top + height)[:, None])
    columns = (along >= left[:, None]) & (along < (left + width)[:, None])
    return rows[:, :, None] & columns[:, None, :]


def _pixels_of(boxes: np.ndarray, device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All pixels of the boxes (n, 4), one after the other: which box, row and column, (pixels,) each."""
    top, left, height, width = boxes.T
    ends = np.cumsum(height * width)
    box = to_device(np.arange(len(boxes)), device)
    # The host says how many there are, or it would wait for the device to count them.
    box = box.repeat_interleave(to_device(height * width, device), output_size=int(ends[-1]))
    begin, top, left, width = to_device(np.stack([ends - height * width, top, left, width]), device)[:, box]
    place = torch.arange(len(box), device=device) - begin
    return box, top + place // width, left + place % width


@functools.lru_cache(maxsize=4)
def _pixel_numbers(size: int) -> torch.Tensor:
    """The numbers of a view's pixels, (3, S, S) int32."""
    return torch.arange(3 * size * size, dtype=torch.int32, device="cpu").view(3, size, size)


def _hash(values):
    """A bijection of int32, of an array or a tensor, that scatters neighbours: multiply and xor-shift, twice."""
    for shift, mask, factor in ((16, 0xFFFF, 0x7FEB352D), (15, 0x1FFFF, -0x7B935975)):  # 0x846CA68B, signed
        shifted = (values >> shift) & mask
        shifted ^= values
        shifted *= factor  # wraps
        values = shifted
    shifted = (values >> 16) & 0xFFFF
    shifted ^= values
    return shifted
