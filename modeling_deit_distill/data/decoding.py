"""Encoded images to pixels: upright, RGB, or refused with the reason."""

import io
import math
import struct
from pathlib import Path

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
import torch
from torchvision.io import ImageReadMode, decode_jpeg

# Where Pillow finds an image's orientation; looking only there saves a parse of most files.
ORIENTATION_KEYS = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
# In place of the bytes of an image whose path leads out of its dataset.
REFUSED = b"refused"


class BadImageError(Exception):
    """An image that cannot be shown; the message says why."""


def decode_image(image: dict) -> PIL.Image.Image:
    """An encoded row image, `{"bytes", "path"}`, as an upright RGB image: what a viewer or a pipeline shows.

    (But for 16 bits a channel: here they are scaled to 8, where transformers' own loading cuts them off at 255.)

    Raises:
        BadImageError: nothing that can be read, one pixel, or more pixels than an honest image has.
    """
    try:
        return _to_rgb(_open(encoded_bytes(image)))
    except Exception as error:  # whatever a decoder makes of broken bytes: OSError, SyntaxError, struct.error, ...
        raise _bad_image(error) from error


def decode_pixels(image: dict) -> torch.Tensor:
    """As [`decode_image`], to uint8 pixels (3, height, width); JPEG by torchvision's decoder, all else by Pillow.

    Raises:
        BadImageError: as for [`decode_image`].
    """
    try:
        encoded = encoded_bytes(image)
        if _needs_decoding_only(encoded):
            try:
                return decode_jpeg(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), ImageReadMode.RGB)
            except RuntimeError:
                pass  # strict decoders refuse a few files that Pillow reads
        return torch.from_numpy(np.array(_to_rgb(_open(encoded)))).permute(2, 0, 1)
    except Exception as error:
        raise _bad_image(error) from error


def encoded_bytes(image: dict) -> bytes:
    return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()


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
