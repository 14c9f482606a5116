"""Samples of any depth to the 256 levels that are shown: integers of up to 32 bits, floats, 16 bits a channel.

A picture is shown as a person would see it, or refused with the reason; never black without a word.

- **Integers of more than 8 bits.** Their depth is what the file declares: a TIFF of 12 bits, a PPM's `maxval`, a
  JPEG 2000's precision, a PNG's `sBIT`. A container of 16 bits that declares nothing more cannot tell a 12-bit
  picture from a dark 16-bit one. Then the depth is the smallest of 8, 10, 12, 14 and 16 bits that holds the largest
  sample. So the brightest pixel of a picture has at least a quarter of full brightness. This is an assumption: it is
  made by each picture alone, so it is the same in training and evaluation, and it is reported as a note. Write
  `sBIT` 16 into a PNG, or scale to 8 bits, where it is wrong.
- **Integers of more than 16 bits** are taken as 24 or 32 bits (31 if signed) where the largest sample is at least a
  quarter of that, else refused. Negative integers are refused: where black is, nobody says.
- **Floats** from 0 to 1 are scaled by 255. Floats up to 255 are levels, if one is at least 32: otherwise they are
  hardly a picture from 0 to 255, and too large for one from 0 to 1. All other floats (negative, NaN, infinite, above
  255) are refused.
- **16 bits a channel in colour** come from Pillow as the high byte of each sample. Where all colours are below 64 of
  255 the low bytes are read as well, and the depth is decided as above. Pillow cannot give them for every format; such
  a dark picture is refused.

transformers' own loading (a pipeline's, given a path) cuts integers and floats off at 255. To see in a pipeline what
training saw, give it what `decode_image` returns.
"""

import math
import struct
import sys
from collections.abc import Callable

import numpy as np
import PIL.Image

from ..errors import BadImageError

# What containers of 16 bits are filled from. Between neighbours lie two bits, so nothing gets darker than a quarter.
DEPTHS = (8, 10, 12, 14, 16)
SMALLEST_BRIGHT_FLOAT = 32  # of 255; see above
_HALF_A_LEVEL = 0.5 / 255
_AS_INTEGERS = "save it as integers of 8 bits, or of 16 scaled to the whole range"
# TIFF's tags, and of `SampleFormat` the value for signed integers.
_BITS, _PHOTOMETRIC, _PLANES, _SAMPLE_FORMAT, _IS_SIGNED = 258, 262, 284, 339, 2


def to_eight_bits(
    opened: PIL.Image.Image, encoded: bytes, reopen: Callable[[], PIL.Image.Image], notes: list[str]
) -> PIL.Image.Image:
    """An opened image with 8 bits a channel; itself, loaded, if it has no more.

    Args:
        opened: not loaded yet.
        encoded: the file.
        reopen: opens it once more.
        notes: gets what was assumed.

    Raises:
        BadImageError: samples of which nobody knows what is black and what is white.
    """
    tiles = list(opened.tile)
    tags = getattr(opened, "tag_v2", {})
    if opened.format in ("TIFF", "FITS"):
        _refuse_misread(opened, tiles, tags)
    opened.load()
    if opened.mode.startswith("I"):
        levels = _levels_of_integers(opened, encoded, tiles, tags, notes)
    elif opened.mode == "F":
        levels = _levels_of_floats(np.asarray(opened))
    elif _is_cut_to_high_bytes(opened, encoded, tiles):
        return _deep_colours(opened, encoded, reopen, tags, notes)
    else:
        return opened
    # Pillow inverts a TIFF whose 0 is white only if it has 8 bits.
    return PIL.Image.fromarray(255 - levels if tags.get(_PHOTOMETRIC) == 0 else levels)


def _refuse_misread(opened: PIL.Image.Image, tiles: list, tags):
    """What Pillow reads as something else than it is."""
    bits, sample_format = tags.get(_BITS, (8,)), tags.get(_SAMPLE_FORMAT, (1,))
    if tags.get(_PLANES) == 2 and max(bits) > 8 and tiles and tiles[0][0] == "raw":
        raise BadImageError("a TIFF of 16 bits in planes, which Pillow misreads; save it interleaved, or as PNG")
    if opened.mode == "L" and _IS_SIGNED in sample_format and opened.getextrema()[1] > 127:
        raise BadImageError(f"signed bytes, some negative, so nobody says which is black; {_AS_INTEGERS}")
    if opened.format == "FITS" and opened.mode != "L":
        raise BadImageError(f"FITS of more than 8 bits, whose byte order Pillow ignores; {_AS_INTEGERS}")


def _levels_of_integers(opened, encoded: bytes, tiles: list, tags, notes: list[str]) -> np.ndarray:
    samples = np.asarray(opened)
    container = tags[_BITS][0] if _BITS in tags else 31 if opened.mode == "I" else 16
    if _IS_SIGNED in tags.get(_SAMPLE_FORMAT, (1,)):
        container -= 1
    if container == 32:
        samples = samples.view(np.uint32)  # Pillow keeps the bits, but calls them signed
    if samples.min() < 0:
        raise BadImageError(f"integers from {samples.min()} on, so nobody says which is black; {_AS_INTEGERS}")
    depth = _declared_depth(opened, encoded, tiles, tags)
    depth = _png_depth(encoded, samples) if depth is None else depth
    return _scale(samples, _assumed_depth(int(samples.max()), container, notes) if depth is None else depth)


def _declared_depth(opened, encoded: bytes, tiles: list, tags) -> int | None:
    """How many bits of the samples that Pillow gives a file uses, if it says so otherwise than by a container."""
    if opened.format == "TIFF":
        return tags[_BITS][0] if tags[_BITS][0] not in (16, 32) else None
    if opened.format == "PPM":
        return 16 if _ppm_maximum(tiles) < 65535 else None  # Pillow scales to 16 bits
    if opened.format == "JPEG2000":
        return 16 if _jpeg2000_depth(encoded) < 16 else None  # Pillow shifts to the left
    return 16 if opened.format == "HEIF" else None  # libheif does, and no HEIC has more than 12 bits


def _assumed_depth(maximum: int, container: int, notes: list[str]) -> int:
    """The smallest depth that holds the largest sample, in a container of so many bits."""
    bits = maximum.bit_length()
    depth = min(depth for depth in (*DEPTHS, 24, container) if bits <= depth <= container)
    if bits > 16 and bits < depth - 1:
        raise BadImageError(f"integers up to {maximum}, and nobody says which is white; {_AS_INTEGERS}")
    if depth < min(container, 16):
        notes.append(f"integers up to {maximum} in a container of more bits, taken for {depth} bits")
    return depth


def _scale(samples: np.ndarray, depth: int) -> np.ndarray:
    """Integers from 0 to 2**depth - 1 to levels, rounded down."""
    full = 2**depth - 1
    if depth > 16:
        return (np.minimum(samples, full).astype(np.uint64) * 255 // full).astype(np.uint8)
    table = np.minimum(np.arange(2**16, dtype=np.uint32) * 255 // full, 255).astype(np.uint8)
    return table[np.minimum(samples, 2**16 - 1)]


def _levels_of_floats(samples: np.ndarray) -> np.ndarray:
    low, high = float(samples.min()), float(samples.max())
    if not math.isfinite(low) or not math.isfinite(high):  # NaN, if there is one
        raise BadImageError(f"floats of which some are NaN or infinite; {_AS_INTEGERS}")
    if low >= -_HALF_A_LEVEL and high <= 1 + _HALF_A_LEVEL:
        return np.rint(samples.clip(0, 1) * np.float32(255)).astype(np.uint8)
    if low >= -0.5 and SMALLEST_BRIGHT_FLOAT <= high < 255.5:
        return np.rint(samples.clip(0, 255)).astype(np.uint8)
    raise BadImageError(
        f"floats from {low:g} to {high:g}, neither from 0 to 1 nor from 0 to 255, so nobody says which is white; scale "
        "them to one of these"
    )


# --- 16 bits a channel in colour --------------------------------------------------------------------------------------


def _is_cut_to_high_bytes(opened: PIL.Image.Image, encoded: bytes, tiles: list) -> bool:
    """Whether Pillow has left out the low bytes of samples that use 16 bits, and the rest is dark."""
    if not tiles or opened.mode not in ("L", "RGB", "RGBA", "CMYK"):
        return False
    if opened.format == "PPM":
        deep = _ppm_maximum(tiles) == 65535
    elif opened.format == "JPEG2000":
        deep = _jpeg2000_depth(encoded) >= 16
    else:
        deep = _raw_mode(tiles[0]).endswith((";16B", ";16L", ";16N"))
    return deep and int(_colours(np.asarray(opened), opened.mode).max()) < 64


def _deep_colours(opened, encoded: bytes, reopen: Callable, tags, notes: list[str]) -> PIL.Image.Image:
    """A dark image of 16 bits a channel, from both bytes of its samples."""
    low = reopen()
    can_tell = low.format == "PNG" or low.format == "TIFF" and tags.get(_PLANES, 1) == 1
    raw_modes = [_low_byte_mode(_raw_mode(tile)) for tile in low.tile]
    if not can_tell or None in raw_modes:
        raise BadImageError(f"16 bits a channel, all colours below a quarter: dark, or of fewer bits; {_AS_INTEGERS}")
    low.tile = [_with_raw_mode(tile, raw_mode) for tile, raw_mode in zip(low.tile, raw_modes, strict=True)]
    low.load()
    low_bytes = np.asarray(low)
    if raw_modes[0] == "RGBA":  # grey and alpha: all four bytes of a pixel
        mode, low_bytes, high_bytes = "LA", low_bytes[..., 1::2], low_bytes[..., 0::2]
    else:
        mode, high_bytes = opened.mode, np.asarray(opened)
    samples = high_bytes.astype(np.uint16) << 8 | low_bytes
    colours = _colours(samples, mode)
    depth = _png_depth(encoded, colours) if low.format == "PNG" else None
    depth = _assumed_depth(int(colours.max()), 16, notes) if depth is None else depth
    if depth == 16:
        return opened
    levels = _scale(samples, depth)
    if mode.endswith("A") and samples[..., -1].max() >= 2**depth:  # alpha fills its 16 bits
        levels[..., -1] = high_bytes[..., -1]
    return PIL.Image.frombytes(mode, low.size, levels.tobytes())


def _colours(samples: np.ndarray, mode: str) -> np.ndarray:
    return samples[..., :-1] if mode.endswith("A") else samples


def _raw_mode(tile) -> str:
    """How the samples lie in the file, as Pillow's decoder expects it."""
    return tile[3] if isinstance(tile[3], str) else str(tile[3][0])


def _with_raw_mode(tile, raw_mode: str):
    return tile._replace(args=raw_mode if isinstance(tile[3], str) else (raw_mode, *tile[3][1:]))


def _low_byte_mode(raw_mode: str) -> str | None:
    """The raw mode that takes the other byte of each sample: that of the other byte order."""
    if raw_mode == "LA;16B":
        return "RGBA"  # there is no such mode, but this takes all bytes of a pixel
    name, _, order = raw_mode.partition(";16")
    if order not in ("B", "L", "N") or name not in ("RGB", "RGBA", "RGBX", "CMYK"):
        return None
    is_big = order == "B" or order == "N" and sys.byteorder == "big"
    return f"{name};16{'L' if is_big else 'B'}"


# --- what files say of their depth ------------------------------------------------------------------------------------


def _png_depth(encoded: bytes, samples: np.ndarray) -> int | None:
    """The depth of 16-bit samples of a PNG, as its `sBIT` says; None where it has none.

    The format demands that samples fill 16 bits whatever was significant. A picture of 12 bits that was only put into
    16 is known by its low bits: samples that small have none if they were scaled up.
    """
    significant = _significant_bits(encoded)
    if significant is None:
        return None
    if significant < 16 and samples.max() < 2**significant and (samples & (2 ** (16 - significant) - 1)).any():
        return significant
    return 16


def _significant_bits(encoded: bytes) -> int | None:
    """The most bits of a colour that a PNG's `sBIT` names; it stands before the pixels."""
    place = 8 if encoded.startswith(b"\x89PNG\r\n\x1a\n") else len(encoded)
    colour_type = encoded[25] if len(encoded) > 25 else 0
    while place + 12 <= len(encoded):
        length, name = struct.unpack_from(">I4s", encoded, place)
        if name == b"IDAT":
            return None
        if name == b"sBIT":
            bits = encoded[place + 8 : place + 8 + (3 if colour_type & 2 else 1)]
            return max(bits) if bits and 0 < max(bits) <= 16 else None
        place += 12 + length
    return None


def _ppm_maximum(tiles: list) -> int:
    args = tiles[0][3] if tiles else ()
    return args[1] if isinstance(args, tuple) and len(args) == 2 else 65535 if args == "I;16B" else 255


def _jpeg2000_depth(encoded: bytes) -> int:
    """The bits of the first component, from the codestream's header (SIZ)."""
    place = encoded.find(b"\xff\x4f\xff\x51")
    return (encoded[place + 42] & 0x7F) + 1 if 0 <= place < len(encoded) - 42 else 16
