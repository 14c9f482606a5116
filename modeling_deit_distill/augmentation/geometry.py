"""Shears, translations and rotations of batches of views.

Pixels are (n, 3, S, S), whole levels from 0 to 255 in float32; arguments (n,) are on the host. One shear or translation
equals Pillow's within one level. A rotation, or two operations as one, is a bicubic resampling by another kernel.

The crop comes before: it is drawn in `data/views.py` and cut out in `data/datasets.py`.
"""

import numpy as np
import torch
import torch.nn.functional as F

from ..data.views import OPERATIONS
from .operations import as_levels, to_device, where_marked

# What geometric operations fill in: the mean colour of ImageNet, as in the public code.
FILL = (124, 116, 104)
SHEARS_AND_TRANSLATIONS = ("shear_x", "shear_y", "translate_x", "translate_y")
GEOMETRIC = ("rotate", *SHEARS_AND_TRANSLATIONS)
# Pillow's bicubic transform (a = -1): weights of four neighbours are these times 1, t, t², t³.
_CUBIC = torch.tensor([[0.0, -1, 2, -1], [1, 0, -2, 1], [0, 1, 1, -1], [0, 0, -1, 1]], device="cpu")
_EXPONENTS = torch.arange(4.0, device="cpu")[:, None]
_FILL = torch.tensor(FILL, dtype=torch.float32, device="cpu").view(1, 3, 1, 1)
_IS_SHEAR = np.array([name in ("shear_x", "shear_y") for name in OPERATIONS])
_IS_ALONG_Y = np.array([name in ("shear_y", "translate_y") for name in OPERATIONS])


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


def _turn(pixels: torch.Tensor, turned: np.ndarray) -> torch.Tensor:
    """Rows and columns exchanged where marked."""
    return where_marked(turned, lambda views: views.mT.contiguous(), pixels)


def _shift_rows(pixels: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """out[y, x] = in[y, x + shift(y)], bicubic along the row; what comes from outside is filled.

    The shifts (n, S) are on the host, in pixels, and less than S / 2.
    """
    num_views, channels, height, width = pixels.shape
    whole = torch.floor(shift)
    # Weights (4, n, S) of the four neighbours of a point that lies a fraction after the second.
    cubic = (_CUBIC @ (shift - whole).reshape(1, -1) ** _EXPONENTS).view(4, *shift.shape)
    by_row = to_device(torch.cat([shift[None], whole[None], cubic]), pixels.device)
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


def _fill_outside(values: torch.Tensor, distance: torch.Tensor, limit: float) -> torch.Tensor:
    """`values` (n, 3, S, S) as levels, in place, and the fill where `distance` (n, S, S) is at the limit or beyond."""
    inside = torch.sub(limit, distance, out=distance).sign_().clamp_(min=0)  # 1.0 or 0.0; comparing takes longer
    return torch.lerp(to_device(_FILL, values.device), as_levels(values), inside[:, None], out=values)


def _matrices(name: str, argument: torch.Tensor, size: int) -> torch.Tensor:
    """(n, 2, 3): where a geometric operation takes the pixel at (x, y) from, in pixels, corners at whole numbers."""
    if name == "rotate":
        angle = torch.deg2rad(argument)
        cos, sin, centre = torch.cos(angle), torch.sin(angle), size / 2
        rows = [cos, -sin, centre * (1 - cos + sin), sin, cos, centre * (1 - cos - sin)]
        return torch.stack(rows, dim=1).view(-1, 2, 3)
    matrices = torch.eye(2, 3, device="cpu").repeat(len(argument), 1, 1)
    row, column = {"shear_x": (0, 1), "shear_y": (1, 0), "translate_x": (0, 2), "translate_y": (1, 2)}[name]
    matrices[:, row, column] = argument * size if column == 2 else argument
    return matrices


def transform_twice(pixels: torch.Tensor, operations: np.ndarray, arguments: torch.Tensor) -> torch.Tensor:
    """Two geometric operations (n, 2) with their arguments (n, 2) as one resampling."""
    matrices = torch.empty(2, len(pixels), 2, 3, device="cpu")
    for slot in range(2):
        for operation in np.unique(operations[:, slot]):
            chosen = np.flatnonzero(operations[:, slot] == operation)
            matrices[slot, chosen] = _matrices(OPERATIONS[operation], arguments[chosen, slot], pixels.shape[-1])
    return _resample(pixels, matrices.flip(0))  # the last operation is asked first where a pixel comes from


def _resample(pixels: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Take each pixel from where matrices (stages, n, 2, 3), on the host, send it; outside at any stage is filled."""
    size = pixels.shape[-1]
    a, b, c, d, e, f = matrices.flatten(2).unbind(-1)
    scaled = torch.stack([a, b, c * (2 / size) + a + b - 1, d, e, f * (2 / size) + d + e - 1], dim=1)
    stages = to_device(scaled, pixels.device)[..., None, None]  # (stages, 6, n, 1, 1)
    centres = (torch.arange(size, device=pixels.device) + 0.5) * (2 / size) - 1  # as the grid wants them, -1 to 1
    x, y, distance = centres[None, None, :], centres[None, :, None], None
    for a, b, c, d, e, f in stages:
        x, y = a * x + (b * y + c), d * x + (e * y + f)  # (n, S, S)
        from_centre = torch.maximum(x.abs(), y.abs())
        distance = from_centre if distance is None else torch.maximum(distance, from_centre)
    grid = torch.stack([x, y], dim=-1)
    sampled = F.grid_sample(pixels, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return _fill_outside(sampled.add_(0.5), distance, 1.0)
