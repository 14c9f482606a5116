"""Everything after the crop, batched on the training device from drawn parameters (paper, Table 9).

Flip, RandAugment, normalisation, erasing, mixup and cutmix: pure functions of uint8 pixels and `views.Draws`. Each
operation on grey levels equals Pillow's within one level; whole-pixel translation is exact. A view's result does not
depend on the batch it comes in (but for its partner, where views are mixed).

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

from .views import NO_OPERATION, NUM_OPERATIONS, OPERATIONS, Draws

# Changes whenever the same draws give other pixels, but for a float's last bits: whoever stores answers about views
# keeps it beside them.
AUGMENTATION_VERSION = 1
# What geometric operations fill in: the mean colour of ImageNet, as in the public code.
FILL = (124, 116, 104)
GREY = (19595, 38470, 7471)  # Pillow's weights of red, green and blue, in 1 / 65536
GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
# Pillow's bicubic transform (a = -1): weights of four neighbours are these times 1, t, t², t³.
_CUBIC = torch.tensor([[0.0, -1, 2, -1], [1, 0, -2, 1], [0, 1, 1, -1], [0, 0, -1, 1]], device="cpu")
_EXPONENTS = torch.arange(4.0, device="cpu")[:, None]
_FILL = torch.tensor(FILL, dtype=torch.float32, device="cpu").view(1, 3, 1, 1)
_IS_GEOMETRIC = np.array([name in GEOMETRIC for name in OPERATIONS] + [False])  # the last is NO_OPERATION, -1
_IS_SHEAR = np.array([name in ("shear_x", "shear_y") for name in OPERATIONS])
_IS_ALONG_Y = np.array([name in ("shear_y", "translate_y") for name in OPERATIONS])
# What views do together: an operation, one of the shears and translations, or two geometric operations at once.
_STEPS = np.array(
    [OPERATIONS.index("shear_x" if name in GEOMETRIC[1:] else name) for name in OPERATIONS] + [NO_OPERATION]
)
_TWICE = len(OPERATIONS)


def augment(
    pixel_values: torch.Tensor,
    draws: Draws,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Augment, normalise, erase and mix cropped views.

    On a CPU the views are taken one by one and mixed pair by pair, so that pixels stay in the cache from one operation
    to the next; on other devices all at once, grouped by operation.

    Args:
        pixel_values: (n, 3, S, S) uint8 crops on the training device.
        draws: what to do to each, on the host.
        mean, std: of each channel, for pixels from 0 to 1.
        out: (n, 3, S, S) float32, written to if given: on a CPU fresh memory costs more than some operations.

    Returns:
        (n, 3, S, S) float32, normalised.
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


def mix_labels(labels: torch.Tensor, mix_ratio: np.ndarray | None, num_classes: int) -> torch.Tensor:
    """The labels of mixed views: each pair (2k, 2k + 1) shares its two classes by its ratio.

    Smoothing is the loss's: (1 - ε)·mixed + ε/classes equals mixing smoothed labels.

    Args:
        labels: (n,) class indices.
        mix_ratio: (n / 2,) what a view keeps of itself; None leaves the labels as they are.

    Returns:
        (n, classes) float32 probabilities, or `labels` without mixing.
    """
    if mix_ratio is None:
        return labels
    one_hot = F.one_hot(labels, num_classes).float()
    kept = _to(np.repeat(mix_ratio, 2)[:, None], labels.device)
    return kept * one_hot + (1 - kept) * _partners(one_hot)


def flip(pixels: torch.Tensor, flipped: np.ndarray) -> torch.Tensor:
    """Mirror the views (n, 3, S, S) that are marked."""
    return _where(flipped, lambda views: views.flip(-1), pixels)


def rand_augment(pixels: torch.Tensor, operations: np.ndarray, arguments: np.ndarray) -> torch.Tensor:
    """The drawn operations, in order; two geometric ones become one resampling.

    Args:
        pixels: (n, 3, S, S), whole levels from 0 to 255; so is the result, in float32.
        operations, arguments: (n, 2), see `views.Draws`.
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
    """Fill the boxes (n, 4: top, left, height, width) with normal noise, in place (Zhong et al. 2020)."""
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
        size, (views, keys) = normalised.shape[-1], _to(np.stack([chosen, keys]), normalised.device)[:, box]
        channels = torch.arange(3, device=normalised.device)[:, None]
        numbers = ((channels * size + y) * size + x).int()  # (3, pixels), those of `_pixel_numbers`
        normalised[views, :, y, x] = noise(numbers, keys.int()).T


def mix(normalised: torch.Tensor, mix_ratio: np.ndarray, mix_box: np.ndarray):
    """Mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019) of the pairs (2k, 2k + 1), in place.

    Args:
        normalised: (n, 3, S, S).
        mix_ratio, mix_box: (n / 2,), (n / 2, 4), see `views.Draws`.
    """
    first, second = normalised[0::2], normalised[1::2]
    by_box = mix_box[:, 2] >= 0
    share = np.where(by_box, 0.0, 1 - mix_ratio).astype(np.float32)
    if normalised.device.type != "cpu":
        boxes = _to(np.where(by_box[:, None], mix_box, 0), normalised.device)
        inside = _inside(boxes, normalised.shape[-1])[:, None]
        _exchange(first, second, torch.where(inside, 1.0, _column(share, normalised.device)))
        return
    if not by_box.all():
        _exchange(first, second, _column(share, "cpu"))
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

    Args:
        numbers: (...) int32, the pixels' numbers in their view.
        key: the view's, an integer of 32 bits or an int32 tensor that broadcasts.
    """
    bits = _hash(numbers ^ key)
    uniform = bits.bitwise_and_(0x7FFFFF).float().mul_(2.0**-22).sub_(1 - 2.0**-23)  # in (-1, 1), exact in float32
    return uniform.erfinv_().mul_(math.sqrt(2))


def auto_contrast(pixels: torch.Tensor, _=None) -> torch.Tensor:
    """Stretch each channel to the whole range."""
    low, high = pixels.amin(dim=(2, 3), keepdim=True), pixels.amax(dim=(2, 3), keepdim=True)
    scale = torch.where(high > low, 255 / (high - low), 1.0)
    shift = torch.where(high > low, -low * scale, 0.0) + 1e-3  # Pillow truncates too, but in double precision
    return (pixels * scale).add_(shift).floor_()


def equalize(pixels: torch.Tensor, _=None) -> torch.Tensor:
    """Spread each channel's histogram evenly."""
    num_views, channels, height, width = pixels.shape
    # Each channel of each view has 256 bins of its own, in int32: converting to int64 takes ten times as long.
    first_bin = 256 * torch.arange(num_views * channels, dtype=torch.int32, device=pixels.device)
    bins = (pixels.int() + first_bin.view(num_views, channels, 1, 1)).flatten()
    histogram = _histogram(bins, 256 * num_views * channels).view(-1, 256)
    levels = torch.arange(256, device=pixels.device)
    last = ((histogram > 0) * levels).amax(dim=1, keepdim=True)
    step = (height * width - histogram.gather(1, last)) // 255  # (n·3, 1)
    table = (step // 2 + histogram.cumsum(1) - histogram) // step.clamp(min=1)
    table = torch.where(step > 0, table.clamp(max=255), levels)
    return table.float().flatten().index_select(0, bins).view_as(pixels)


def invert(pixels: torch.Tensor, _=None) -> torch.Tensor:
    """255 minus each level."""
    return 255 - pixels


def posterize(pixels: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Keep the highest bits of each level."""
    unit = _column(2 ** (8 - bits), pixels.device)
    return (pixels / unit).floor_().mul_(unit)


def solarize(pixels: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Invert the levels from the threshold on."""
    above = (pixels - _column(threshold - 1, pixels.device)).clamp_(0, 1)
    return (255 - 2 * pixels).mul_(above).add_(pixels)


def solarize_add(pixels: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Lighten the levels below 128."""
    below = (128 - pixels).clamp_(0, 1)
    return below.mul_(_column(levels, pixels.device)).add_(pixels)  # at most 127 + 110


def color(pixels: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with the grey image."""
    return _blend(_grey(pixels)[:, None], pixels, factor)


def contrast(pixels: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with the mean grey."""
    grey = _grey(pixels).flatten(1)
    mean = (grey.sum(dim=1, dtype=torch.double) / grey.shape[1] + 0.5).floor()
    return _blend(mean.float().view(-1, 1, 1, 1), pixels, factor)


def brightness(pixels: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with black."""
    return _as_levels(pixels * _column(factor, pixels.device))


def sharpness(pixels: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with a smoothed image: each pixel with weight 5, its eight neighbours with 1; the border stays."""
    rows = (pixels[..., :-2, :] + pixels[..., 1:-1, :]).add_(pixels[..., 2:, :])
    around = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:])
    around.add_(pixels[..., 1:-1, 1:-1], alpha=4).mul_(1 / 13).add_(0.5).floor_()
    smooth = pixels.clone()
    smooth[..., 1:-1, 1:-1] = around
    return _blend(smooth, pixels, factor)


def shear_or_translate(pixels: torch.Tensor, operations: np.ndarray, argument: torch.Tensor) -> torch.Tensor:
    """The shears and translations among the operations (n,).

    Along x, row y moves by slope·(y + ½) pixels or by a share of the width; along y columns do, as rows of the turned
    view.
    """
    size = pixels.shape[-1]
    is_shear = torch.from_numpy(_IS_SHEAR[operations])[:, None]
    by_row = argument[:, None] * torch.where(is_shear, torch.arange(size, device="cpu") + 0.5, size)  # (n, S)
    turned = _IS_ALONG_Y[operations]
    return _turn(_shift_rows(_turn(pixels, turned), by_row), turned)


def rotate(pixels: torch.Tensor, degrees: torch.Tensor) -> torch.Tensor:
    """Turn about the centre, anticlockwise as Pillow does."""
    return _resample(pixels, _matrices("rotate", degrees, pixels.shape[-1])[None])


_FUNCTIONS = [shear_or_translate if name in GEOMETRIC[1:] else globals()[name] for name in OPERATIONS]


def _perform(
    step: int, slot: int, pixels: torch.Tensor, operations: np.ndarray, arguments: torch.Tensor
) -> torch.Tensor:
    """A step that views (n, 3, S, S) have in common in a slot, the first or the second of their two operations.

    Args:
        operations, arguments: (n, 2) on the host.
    """
    if step == _TWICE:
        return _transform_twice(pixels, operations, arguments)
    if _FUNCTIONS[step] is shear_or_translate:
        return shear_or_translate(pixels, operations[:, slot], arguments[:, slot])
    return _FUNCTIONS[step](pixels, arguments[:, slot])


def _side_by_side(
    pixels: torch.Tensor, steps: np.ndarray, operations: np.ndarray, arguments: np.ndarray
) -> torch.Tensor:
    """The steps (n, 2) of many views, one slot after the other.

    Views with the same step are laid beside each other, so that it runs once for them: of steps 7, -, 2, 7 the order is
    1 (which rests), 2, 0, 3. At the end all lie as they came.
    """
    lying = np.arange(len(pixels))  # which view lies where
    for slot in range(NUM_OPERATIONS):
        order = np.argsort(steps[:, slot], kind="stable")
        pixels, lying = _rearrange(pixels, lying, order).float(), order
        drawn = steps[order, slot]
        for step in np.unique(drawn[drawn != NO_OPERATION]):
            begin, end = np.searchsorted(drawn, (step, step + 1))
            chosen, views = order[begin:end], pixels[begin:end]
            views.copy_(_perform(step, slot, views, operations[chosen], torch.from_numpy(arguments[chosen])))
    return _rearrange(pixels, lying, np.arange(len(pixels)))


def _rearrange(pixels: torch.Tensor, lying: np.ndarray, order: np.ndarray) -> torch.Tensor:
    """A copy of views that lie as `lying` says, laid as `order` says."""
    return pixels.index_select(0, _to(np.argsort(lying)[order], pixels.device))


def _where(marked: np.ndarray, change, pixels: torch.Tensor) -> torch.Tensor:
    """The views changed where they are marked (n,)."""
    if not marked.any():
        return pixels
    changed = change(pixels)
    return changed if marked.all() else torch.where(_column(marked, pixels.device), changed, pixels)


def _turn(pixels: torch.Tensor, turned: np.ndarray) -> torch.Tensor:
    """Rows and columns exchanged where marked."""
    return _where(turned, lambda views: views.mT.contiguous(), pixels)


def _to(values: np.ndarray | torch.Tensor, device) -> torch.Tensor:
    """On the device; the host goes on at once, where a plain `.to` would wait until the device has done all before."""
    values = torch.as_tensor(values, device="cpu")
    if torch.cuda.is_available() and torch.device(device).type == "cuda":
        values = values.pin_memory()  # from other memory, the driver may wait all the same
    return values.to(device, non_blocking=True)


def _column(values: np.ndarray | torch.Tensor, device) -> torch.Tensor:
    """One value for each view, (n,) → (n, 1, 1, 1) on the device."""
    return _to(values, device).view(-1, 1, 1, 1)


def _normalisation(mean, std, device) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = (torch.tensor(value, dtype=torch.float32, device="cpu").view(3, 1, 1) for value in (mean, std))
    return _to(1 / (255 * std), device), _to(-mean / std, device)


def _partners(values: torch.Tensor) -> torch.Tensor:
    return values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def _as_levels(values: torch.Tensor) -> torch.Tensor:
    return values.clamp_(0, 255).floor_()  # truncating, as Pillow


def _grey(pixels: torch.Tensor) -> torch.Tensor:
    """(n, 3, S, S) → (n, S, S), Pillow's luma; every sum is a whole number below 2**24, so exact."""
    red, green, blue = pixels.unbind(1)
    return (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2]).add_(0x8000).mul_(2**-16).floor_()


def _blend(degenerate: torch.Tensor, pixels: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return _as_levels((pixels - degenerate).mul_(_column(factor, pixels.device)).add_(degenerate))


def _histogram(bins: torch.Tensor, num_bins: int) -> torch.Tensor:
    """How often each bin occurs, (num_bins,)."""
    if bins.device.type == "cpu":
        return torch.bincount(bins, minlength=num_bins)
    histogram = torch.zeros(num_bins, dtype=torch.long, device=bins.device)
    bins = bins.long()
    return histogram.scatter_add_(0, bins, torch.ones_like(bins))  # bincount would make the host wait


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
    box = _to(np.arange(len(boxes)), device)
    # The host says how many there are, or it would wait for the device to count them.
    box = box.repeat_interleave(_to(height * width, device), output_size=int(ends[-1]))
    begin, top, left, width = _to(np.stack([ends - height * width, top, left, width]), device)[:, box]
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


def _shift_rows(pixels: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """out[y, x] = in[y, x + shift(y)], bicubic along the row; what comes from outside is filled.

    Args:
        pixels: (n, 3, S, S).
        shift: (n, S), in pixels, less than S / 2; on the host.
    """
    num_views, channels, height, width = pixels.shape
    whole = torch.floor(shift)
    by_row = _to(torch.cat([shift[None], whole[None], _cubic_weights(shift - whole)]), pixels.device)
    shift, whole, *weights = by_row[..., None].unbind(0)  # each (n, S, 1)
    # All rows one after the other, two pixels longer at both ends, which is as far as taps of inside pixels reach.
    padded_width, margin = width + 4, width // 2
    memory = pixels.new_empty(pixels.numel() // width * padded_width + 2 * margin)
    memory[:margin] = memory[-margin:] = 0  # read, never used
    padded = memory[margin:-margin].view(num_views, channels, height, padded_width)
    padded[..., 2:-2] = pixels
    padded[..., :2] = pixels[..., :1]
    padded[..., -2:] = pixels[..., -1:]
    # Every place where a stretch of S + 3 pixels may start, as a view that overlaps itself; one is taken for each row.
    # Where it reaches into another row, the pixel is outside.
    stretches = memory.as_strided((memory.numel() - width - 2, width + 3), (1, 1))
    row_starts = torch.arange(margin + 1, memory.numel() - margin, padded_width, device=pixels.device)
    starts = row_starts.view(num_views, channels, height) + whole.long().view(num_views, 1, height)
    taken = stretches.index_select(0, starts.flatten()).view(num_views, channels, height, width + 3)
    output = taken[..., :width] * weights[0][:, None]
    for tap in range(1, 4):
        output.addcmul_(taken[..., tap : tap + width], weights[tap][:, None])
    centre = torch.arange(width, device=pixels.device) + (0.5 - width / 2)
    return _fill_outside(output, (centre + shift).abs_(), width / 2)


def _cubic_weights(fraction: torch.Tensor) -> torch.Tensor:
    """(...) → (4, ...): weights of the four neighbours of a point that lies a fraction after the second."""
    return (_CUBIC @ fraction.reshape(1, -1) ** _EXPONENTS).view(4, *fraction.shape)


def _fill_outside(values: torch.Tensor, distance: torch.Tensor, limit: float) -> torch.Tensor:
    """`values` (n, 3, S, S) as levels, in place, and the fill where `distance` (n, S, S) is at the limit or beyond."""
    inside = torch.sub(limit, distance, out=distance).sign_().clamp_(min=0)  # 1.0 or 0.0; comparing takes longer
    return torch.lerp(_to(_FILL, values.device), _as_levels(values), inside[:, None], out=values)


def _matrices(name: str, argument: torch.Tensor, size: int) -> torch.Tensor:
    """(n, 2, 3): where a geometric operation takes the pixel at (x, y) from, in pixels, corners at whole numbers."""
    one, zero = torch.ones_like(argument), torch.zeros_like(argument)
    if name == "rotate":
        angle = torch.deg2rad(argument)
        cos, sin, centre = torch.cos(angle), torch.sin(angle), size / 2
        rows = [cos, -sin, centre * (1 - cos + sin), sin, cos, centre * (1 - cos - sin)]
    elif name == "shear_x":
        rows = [one, argument, zero, zero, one, zero]
    elif name == "shear_y":
        rows = [one, zero, zero, argument, one, zero]
    elif name == "translate_x":
        rows = [one, zero, argument * size, zero, one, zero]
    else:
        rows = [one, zero, zero, zero, one, argument * size]
    return torch.stack(rows, dim=1).view(-1, 2, 3)


def _transform_twice(pixels: torch.Tensor, operations: np.ndarray, arguments: torch.Tensor) -> torch.Tensor:
    """Two geometric operations (n, 2) as one resampling."""
    matrices = torch.empty(2, len(pixels), 2, 3, device="cpu")
    for slot in range(2):
        for operation in np.unique(operations[:, slot]):
            chosen = np.flatnonzero(operations[:, slot] == operation)
            matrices[slot, chosen] = _matrices(OPERATIONS[operation], arguments[chosen, slot], pixels.shape[-1])
    return _resample(pixels, matrices.flip(0))  # the last operation is asked first where a pixel comes from


def _resample(pixels: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Take each pixel from where matrices send it, one after the other; outside at any stage is filled.

    Args:
        pixels: (n, 3, S, S).
        matrices: (stages, n, 2, 3), see [`_matrices`]; on the host.
    """
    size = pixels.shape[-1]
    a, b, c, d, e, f = matrices.flatten(2).unbind(-1)
    scaled = torch.stack([a, b, c * (2 / size) + a + b - 1, d, e, f * (2 / size) + d + e - 1], dim=1)
    stages = _to(scaled, pixels.device)[..., None, None]  # (stages, 6, n, 1, 1)
    centres = (torch.arange(size, device=pixels.device) + 0.5) * (2 / size) - 1  # as the grid wants them, -1 to 1
    x, y, distance = centres[None, None, :], centres[None, :, None], None
    for a, b, c, d, e, f in stages:
        x, y = a * x + (b * y + c), d * x + (e * y + f)  # (n, S, S)
        from_centre = torch.maximum(x.abs(), y.abs())
        distance = from_centre if distance is None else torch.maximum(distance, from_centre)
    grid = torch.stack([x, y], dim=-1)
    sampled = F.grid_sample(pixels, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return _fill_outside(sampled.add_(0.5), distance, 1.0)
