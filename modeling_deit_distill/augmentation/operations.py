"""Operations on levels. Those of RandAugment, all but the geometric ones, equal Pillow's within one level.

An operation takes pixels (n, 3, S, S), whole levels from 0 to 255 in float32, and its argument (n,), on the host; it
returns pixels of the same shape and kind. None writes to the pixels it is given. A result has memory of its own, since
[`augment`] writes to it.
"""

import numpy as np
import torch

GREY = (19595, 38470, 7471)  # Pillow's weights of red, green and blue, in 1 / 65536


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
    unit = as_column(2 ** (8 - bits), pixels.device)
    return (pixels / unit).floor_().mul_(unit)


def solarize(pixels: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Invert the levels from the threshold on."""
    above = (pixels - as_column(threshold - 1, pixels.device)).clamp_(0, 1)
    return (255 - 2 * pixels).mul_(above).add_(pixels)


def solarize_add(pixels: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Lighten the levels below 128."""
    below = (128 - pixels).clamp_(0, 1)
    return below.mul_(as_column(levels, pixels.device)).add_(pixels)  # at most 127 + 110


def color(pixels: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with the grey image."""
    return _blend(_grey(pixels)[:, None], pixels, factor)


def contrast(pixels: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with the mean grey."""
    grey = _grey(pixels)
    area = grey.shape[1] * grey.shape[2]
    # In whole numbers, because MPS has no float64 and float32 holds no sum above 2**24; a row's sum it does hold.
    total = grey.sum(dim=2).long().sum(dim=1)
    mean = (2 * total + area) // (2 * area)  # rounded, half up
    return _blend(mean.float().view(-1, 1, 1, 1), pixels, factor)


def brightness(pixels: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with black."""
    return as_levels(pixels * as_column(factor, pixels.device))


def sharpness(pixels: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with a smoothed image: each pixel with weight 5, its eight neighbours with 1; the border stays."""
    rows = (pixels[..., :-2, :] + pixels[..., 1:-1, :]).add_(pixels[..., 2:, :])
    around = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:])
    around.add_(pixels[..., 1:-1, 1:-1], alpha=4).mul_(1 / 13).add_(0.5).floor_()
    smooth = pixels.clone()
    smooth[..., 1:-1, 1:-1] = around
    return _blend(smooth, pixels, factor)


def _grey(pixels: torch.Tensor) -> torch.Tensor:
    """(n, 3, S, S) → (n, S, S), Pillow's luma; every sum is a whole number below 2**24, so exact."""
    red, green, blue = pixels.unbind(1)
    return (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2]).add_(0x8000).mul_(2**-16).floor_()


def _blend(degenerate: torch.Tensor, pixels: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return as_levels((pixels - degenerate).mul_(as_column(factor, pixels.device)).add_(degenerate))


def _histogram(bins: torch.Tensor, num_bins: int) -> torch.Tensor:
    """How often each bin occurs, (num_bins,)."""
    if bins.device.type == "cpu":
        return torch.bincount(bins, minlength=num_bins)
    histogram = torch.zeros(num_bins, dtype=torch.long, device=bins.device)
    bins = bins.long()
    return histogram.scatter_add_(0, bins, torch.ones_like(bins))  # bincount would make the host wait


def where_marked(marked: np.ndarray, change, pixels: torch.Tensor) -> torch.Tensor:
    """The views changed where they are marked (n,).

    Where all are marked, the result of `change` is returned itself, so it must have memory of its own. Where none is,
    `pixels` are.
    """
    if not marked.any():
        return pixels
    changed = change(pixels)
    return changed if marked.all() else torch.where(as_column(marked, pixels.device), changed, pixels)


def to_device(values: np.ndarray | torch.Tensor, device) -> torch.Tensor:
    """On the device; the host goes on at once, where a plain `.to` would wait until the device has done all before.

    What the host computed in float64 becomes float32 there: a Mac's device (MPS) has no float64.
    """
    values = torch.as_tensor(values, device="cpu")
    values = values.float() if values.dtype == torch.float64 else values
    if torch.cuda.is_available() and torch.device(device).type == "cuda":
        values = values.pin_memory()  # from other memory, the driver may wait all the same
    return values.to(device, non_blocking=True)


def as_column(values: np.ndarray | torch.Tensor, device) -> torch.Tensor:
    """One value for each view, (n,) → (n, 1, 1, 1) on the device."""
    return to_device(values, device).view(-1, 1, 1, 1)


def as_levels(values: torch.Tensor) -> torch.Tensor:
    """Whole levels from 0 to 255, of any shape, in float32 and in place."""
    return values.clamp_(0, 255).floor_()  # truncating, as Pillow
