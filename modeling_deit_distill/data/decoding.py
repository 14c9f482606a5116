"""Encoded images to pixels: upright, RGB, 8 bits a channel, or refused with the reason.

An image is shown as a viewer shows it, with these limits:

- **Samples of other depths** (16 bits, floats, ...) become 8 bits as `samples.py` says.
- **Alpha is dropped**, as transformers' pipelines and torchvision's folders do: transparent pixels have the colour that
  lies under them. The exception is a picture whose shape is in its alpha alone (a logo in one colour): dropped alpha
  would leave one colour. It is put on white, or on black if it is bright. An image of one colour that is transparent
  everywhere is refused.
- **Of several frames or pages** (GIF, WebP, APNG, TIFF) the first is shown.
- **Colour profiles (ICC) are not applied**, nor gamma; CMYK becomes RGB without a profile, LAB through Pillow's own.
- **More than 89 megapixels** (`PIL.Image.MAX_IMAGE_PIXELS`): shown at half the width and height. A JPEG is decoded so
  and may have three times the limit (a phone's 200 megapixels), any other format twice. More than that, or more than
  100 pixels for each byte of a file, is refused as a decompression bomb.
- **A JPEG of more than 50 scans** is refused, in a strip or tile of a TIFF too: each scan goes over all pixels, and
  encoders write about ten.
- **Formats of documents and measurements** (EPS, WMF, GRIB, ...) are refused: no other program is started to draw one.
- **A strip** more than 500 times as long as wide is refused: no crop of it shows anything, and the resizing of
  evaluation would make gigabytes of it.

[`decoding_notes`] says where one of these made a difference.
"""

import importlib.util
import io
import math
import re
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.ExifTags
import PIL.features
import PIL.Image
import PIL.ImageOps
import PIL.JpegImagePlugin
import torch

from ..errors import BadImageError
from .samples import to_eight_bits

try:
    import simplejpeg
except ImportError:  # no wheel for this platform; Pillow gives the same pixels in a third more time
    simplejpeg = None

# Where Pillow finds an image's orientation; looking only there saves a parse of most files.
ORIENTATION_KEYS = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
ON_ITS_SIDE = (5, 6, 7, 8)  # orientations that exchange height and width
JPEG_FORMATS = ("JPEG", "MPO")
# In place of the bytes of an image whose path leads out of its dataset.
REFUSED = b"refused"
# Of an image above Pillow's limit: how often the limit a JPEG may have, and pixels for each byte of the file.
JPEG_TIMES, MOST_PIXELS_A_BYTE = 3, 100
MOST_OBLONG = 500
MOST_SCANS = 50
# Tags of a TIFF: where its strips or tiles are, and how many bytes each has.
STRIPS, TILES = (273, 279), (324, 325)
# Of Pillow's formats those of pictures. For EPS it would start Ghostscript, for others what is registered with it.
FORMATS = ("AVIF", "BMP", "DDS", "DIB", "FITS", "GIF", "ICNS", "ICO", "IM", "JPEG", "JPEG2000", "MPO", "MSP", "PCX")
FORMATS += ("PNG", "PPM", "PSD", "QOI", "SGI", "SPIDER", "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM")
# A picture in which no colour spans more levels than this, while alpha spans many, has its shape in its alpha.
FLAT, SHAPED = 32, 128
# Brands of ISO media files, from the box that these begin with.
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}
# What files that Pillow cannot identify begin with, and what they are.
_UNREADABLE = {
    b"II*\0": "a TIFF of a kind that Pillow cannot read, such as several channels of 32 bits or floats of 64",
    b"MM\0*": "a TIFF of a kind that Pillow cannot read, such as several channels of 32 bits or floats of 64",
    b"II+\0": "a BigTIFF of a kind that Pillow cannot read",
    b"\xff\x0a": "JPEG XL, which Pillow cannot read",
    b"\0\0\0\x0cJXL ": "JPEG XL, which Pillow cannot read",
    b"v/1\x01": "OpenEXR, which Pillow cannot read",
    b"#?RADIANCE": "Radiance HDR, which Pillow cannot read",
    b"%PDF": "a PDF",
    b"%!PS": "EPS, which another program would have to draw",
    b"\xc5\xd0\xd3\xc6": "EPS, which another program would have to draw",
}


# In a JPEG: the next marker, which bytes of the image never look like.
_MARKER = re.compile(rb"\xff([^\x00\xff])")
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}


def can_read_heic() -> bool:
    """Whether HEIC images can be decoded here: by `pillow-heif`, which needs not be registered."""
    return importlib.util.find_spec("pillow_heif") is not None


def can_read_avif() -> bool:
    """Whether AVIF images can be decoded here: by Pillow from 11.3 on, if it was built so, as its wheels are."""
    return "avif" in PIL.features.modules and PIL.features.check("avif")


def decode_image(image: dict) -> PIL.Image.Image:
    """An encoded row image, `{"bytes", "path"}`, as an upright RGB image; see the head of this file.

    Raises:
        BadImageError: nothing that can be read or known, one pixel, or more pixels than an honest image has.
    """
    try:
        return _to_rgb(encoded_bytes(image), [])
    except Exception as error:  # whatever a decoder makes of broken bytes: OSError, SyntaxError, struct.error, ...
        raise _bad_image(error) from error


def decode_pixels(image: dict, factor: int = 1) -> torch.Tensor:
    """As [`decode_image`], to uint8 pixels (3, height, width); JPEG by simplejpeg, all else by Pillow.

    Args:
        image: encoded, `{"bytes", "path"}`.
        factor: 2, 4 or 8 for a JPEG at a half, a quarter or an eighth of its height and width, rounded up; at most
            the `most` of its [`jpeg_size`].

    Raises:
        BadImageError: as for [`decode_image`].
    """
    try:
        encoded = encoded_bytes(image)
        if _needs_decoding_only(encoded) and simplejpeg is not None:
            try:
                return _as_tensor(_decode_jpeg(encoded, factor))
            except ValueError:
                pass  # it is strict, and refuses a few files that Pillow reads
        return _as_tensor(np.array(_to_rgb(encoded, [], factor)))
    except Exception as error:
        raise _bad_image(error) from error


class JpegSize(NamedTuple):
    """Height and width at which a JPEG is shown, upright, and how many times smaller it can be decoded."""

    height: int
    width: int
    most: int


def jpeg_size(encoded: bytes) -> JpegSize | None:
    """The size of a JPEG, by its header; None for an image of another format, which is decoded whole.

    Raises:
        BadImageError: as for [`decode_image`], as far as the header tells.
    """
    if not encoded.startswith(b"\xff\xd8\xff"):
        return None
    try:
        plain = _plain_jpeg_size(encoded)
        opened = None if plain else _open(encoded)
        if opened is not None and opened.format not in JPEG_FORMATS:
            return None
        width, height = plain or opened.size
        if opened is not None and _orientation(opened) in ON_ITS_SIDE:
            width, height = height, width
        if _is_large(width, height):  # it is shown at a half already
            return JpegSize(-(-height // 2), -(-width // 2), 4)
        return JpegSize(height, width, 8)
    except Exception as error:
        raise _bad_image(error) from error


def decoding_notes(image: dict) -> list[str]:
    """What [`decode_image`] assumed or changed to show an image, in words: empty for almost all.

    Raises:
        BadImageError: as for [`decode_image`].
    """
    notes: list[str] = []
    try:
        _to_rgb(encoded_bytes(image), notes)
    except Exception as error:
        raise _bad_image(error) from error
    return notes


def decoder_versions() -> list[str]:
    """The libraries that decode, with their versions."""
    others = [] if simplejpeg is None else [f"simplejpeg {simplejpeg.__version__}"]
    return [f"pillow {PIL.__version__}", *others]


def encoded_bytes(image: dict) -> bytes:
    """The bytes of an encoded row image, `{"bytes", "path"}`; OSError for a file that cannot be read."""
    return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()


def _open(encoded: bytes) -> PIL.Image.Image:
    """Read the header alone and judge it."""
    if not encoded:
        raise BadImageError("the file is empty")
    if encoded == REFUSED:
        raise BadImageError("its path leads out of the dataset's folder, so it was not opened")
    opened = _open_by_format(encoded)
    _check_size(opened.width, opened.height)
    if _is_large(*opened.size):
        _check_large(opened, len(encoded))
    if opened.format == "TIFF" and opened.info.get("compression") in ("jpeg", "tiff_jpeg"):
        _check_scans_within(opened, encoded)
    return opened


def _open_by_format(encoded: bytes) -> PIL.Image.Image:
    stream = io.BytesIO(encoded)
    if encoded.startswith(b"\xff\xd8\xff"):
        _check_scans(encoded)
        try:
            return PIL.JpegImagePlugin.jpeg_factory(stream)  # Pillow's `open` refuses what has twice its limit
        except (SyntaxError, IndexError, TypeError, struct.error):
            stream.seek(0)  # and says what is wrong in words of its own
    brands = _brands(encoded) if encoded[4:8] == b"ftyp" else set()
    if brands & _HEIC_BRANDS and not brands & _AVIF_BRANDS:
        if not can_read_heic():
            raise BadImageError("HEIC, which needs pillow-heif: pip install pillow-heif")
        import pillow_heif  # an extra, and not registered: other code may want Pillow as it is

        try:
            return pillow_heif.HeifImageFile(stream)
        except SyntaxError as error:
            raise BadImageError(f"broken HEIC: {error}") from None
    if brands & _AVIF_BRANDS and not can_read_avif():
        raise BadImageError("AVIF, which this Pillow cannot read: pip install 'pillow>=11.3'")
    try:
        return open_picture(stream)
    except PIL.UnidentifiedImageError:
        known = [name for start, name in _UNREADABLE.items() if encoded.startswith(start)]
        advice = f" ({known[0]}; save it as PNG or JPEG)" if known else ""
        raise BadImageError(f"Pillow cannot identify it as an image of any format{advice}") from None
    except PIL.Image.DecompressionBombError as error:
        raise BadImageError(f"{error} Save it smaller, or as JPEG, which is decoded at half its size") from None


def open_picture(file) -> PIL.Image.Image:
    """As `PIL.Image.open`, of a path or a stream; a file of any other format than `FORMATS` is not identified."""
    PIL.Image.init()
    return PIL.Image.open(file, formats=[name for name in FORMATS if name in PIL.Image.OPEN])


def _brands(encoded: bytes) -> set[bytes]:
    """What an ISO media file (HEIC, AVIF, a film) says that it is."""
    end = min(int.from_bytes(encoded[:4], "big"), len(encoded), 256)
    return {encoded[8:12], *(encoded[place : place + 4] for place in range(16, end - 3, 4))}


def _is_large(width: int, height: int) -> bool:
    return width * height > (PIL.Image.MAX_IMAGE_PIXELS or math.inf)


def _check_large(opened: PIL.Image.Image, num_bytes: int):
    pixels = opened.width * opened.height
    times = JPEG_TIMES if opened.format in JPEG_FORMATS else 2
    if pixels > times * PIL.Image.MAX_IMAGE_PIXELS or pixels > MOST_PIXELS_A_BYTE * num_bytes:
        raise BadImageError(
            f"{opened.width}x{opened.height} pixels in {num_bytes} bytes: a decompression bomb? If not, save it "
            "smaller, or raise PIL.Image.MAX_IMAGE_PIXELS"
        )


def _check_size(width: int, height: int):
    if width * height == 0:
        raise BadImageError(f"{width}x{height} pixels: none at all")
    if width * height == 1:
        raise BadImageError("one pixel only")
    if max(width, height) > MOST_OBLONG * min(width, height):
        raise BadImageError(f"{width}x{height} pixels: a strip, of which no crop shows anything")


def _needs_decoding_only(encoded: bytes) -> bool:
    """Whether it is a JPEG, grey or in colour and not large, that is to be shown as it is stored."""
    size = _plain_jpeg_size(encoded)
    if size is not None and not _is_large(*size):
        _check_size(*size)
        _check_scans(encoded)
        return True
    opened = _open(encoded)
    is_jpeg = opened.format == "JPEG" and opened.mode in ("RGB", "L")
    return is_jpeg and not _is_large(*opened.size) and _is_upright(opened)


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


def _check_scans(encoded: bytes):
    """Refuse a JPEG that takes seconds to decode for each hundred kilobytes."""
    if _has_one_scan(encoded):
        return
    content = np.frombuffer(encoded, np.uint8)
    if np.count_nonzero((content[:-1] == 0xFF) & (content[1:] == 0xDA)) > MOST_SCANS:  # in thumbnails too
        _check_number(_num_scans(encoded))


def _check_scans_within(opened: PIL.Image.Image, encoded: bytes):
    """The same for the JPEGs in the strips or tiles of a TIFF."""
    offsets, sizes = STRIPS if STRIPS[0] in opened.tag_v2 else TILES
    for place, size in zip(opened.tag_v2.get(offsets, ()), opened.tag_v2.get(sizes, ()), strict=False):
        _check_number(_num_scans(encoded[place : place + size]))


def _check_number(num_scans: int):
    if num_scans > MOST_SCANS:
        raise BadImageError(
            f"a JPEG of {num_scans} scans, where encoders write about 10: it would take long to decode; save it again"
        )


def _has_one_scan(encoded: bytes) -> bool:
    """Whether it is the most common JPEG, whose first scan, of all channels, is the last; False if not certain."""
    place, num_channels = 2, None
    while place + 10 <= len(encoded) and encoded[place] == 0xFF:
        marker, length = struct.unpack_from(">BH", encoded, place + 1)
        if marker in (0xC0, 0xC1):
            num_channels = encoded[place + 9]
        elif marker == 0xDA:
            return encoded[place + 4] == num_channels
        elif marker in (0xC2, 0xFF):
            return False
        place += 2 + length
    return False


def _num_scans(encoded: bytes) -> int:
    """How many scans a JPEG has before it ends."""
    place, count = 2, 0
    while (found := _MARKER.search(encoded, place)) is not None and found[1] != b"\xd9":
        place, marker = found.end(), found[1][0]
        count += marker == 0xDA
        if marker not in _WITHOUT_LENGTH:
            place += int.from_bytes(encoded[place : place + 2], "big")
    return count


def _as_tensor(levels: np.ndarray) -> torch.Tensor:
    """(height, width, 3) as (3, height, width)."""
    return torch.from_numpy(levels).permute(2, 0, 1)


def _decode_jpeg(encoded: bytes, factor: int) -> np.ndarray:
    if factor == 1:
        return simplejpeg.decode_jpeg(encoded)
    height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
    return simplejpeg.decode_jpeg(encoded, min_height=-(-height // factor), min_width=-(-width // factor))


def _is_upright(opened: PIL.Image.Image) -> bool:
    return _orientation(opened) == 1


def _orientation(opened: PIL.Image.Image) -> int:
    if not any(key in opened.info for key in ORIENTATION_KEYS):
        return 1
    try:
        return opened.getexif().get(PIL.ExifTags.Base.Orientation, 1)
    except Exception:
        return 1  # a broken block spoils no pixels


def _to_rgb(encoded: bytes, notes: list[str], factor: int = 1) -> PIL.Image.Image:
    opened = _open(encoded)
    size, is_large = opened.size, _is_large(*opened.size)
    if is_large:
        notes.append(f"{size[0]}x{size[1]} pixels, decoded at half the width and height")
        factor *= 2
    if factor > 1 and opened.format in JPEG_FORMATS:
        opened.draft(None, (size[0] // factor, size[1] // factor))
    shown = to_eight_bits(opened, encoded, lambda: _open(encoded), notes)
    if is_large and opened.size == size:
        shown = _without_alpha(shown, notes).reduce(2)
    return _without_alpha(_turned_upright(shown, opened), notes)


def _turned_upright(shown: PIL.Image.Image, opened: PIL.Image.Image) -> PIL.Image.Image:
    """An image turned as the file says that it was opened from."""
    if _is_upright(opened):
        return shown
    if shown is not opened:
        shown.getexif()[PIL.ExifTags.Base.Orientation] = opened.getexif()[PIL.ExifTags.Base.Orientation]
    return PIL.ImageOps.exif_transpose(shown)


def _without_alpha(shown: PIL.Image.Image, notes: list[str]) -> PIL.Image.Image:
    """In RGB; its alpha is dropped, unless that would leave one colour."""
    if shown.mode == "La":  # Pillow converts it to nothing else
        shown = shown.convert("LA")
    if shown.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in shown.info:
        straight = shown if shown.mode == "RGBA" else shown.convert("RGBA")
        *colours, (clearest, densest) = straight.getextrema()
        if all(high - low <= FLAT for low, high in colours):
            if densest == 0:
                raise BadImageError("transparent everywhere, with nothing under it")
            if densest - clearest >= SHAPED:
                ground = "white" if sum(low + high for low, high in colours) < 6 * 128 else "black"
                notes.append(f"its shape is in its alpha alone: shown on {ground}")
                canvas = PIL.Image.new("RGBA", straight.size, ground)
                return PIL.Image.alpha_composite(canvas, straight).convert("RGB")
    return shown.convert("RGB")


def _bad_image(error: Exception) -> BadImageError:
    return error if isinstance(error, BadImageError) else BadImageError(f"{type(error).__name__}: {error}")
