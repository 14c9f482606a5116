"""One photo in every format that is read, odd but whole; and files that are no images."""

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import torch

from helpers.images import encode, picture


def oriented(orientation: int) -> PIL.Image.Exif:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return exif


PHOTO = picture(80, 60)
TURNED = PHOTO.transpose(PIL.Image.Transpose.ROTATE_270)  # as orientation 6 says: a quarter clockwise
GREY, PALETTE, BLACK_AND_WHITE = PHOTO.convert("L"), PHOTO.quantize(64), PHOTO.convert("1")
SEE_THROUGH = PHOTO.copy()
SEE_THROUGH.putalpha(GREY)


def two_frames() -> dict:
    return {"save_all": True, "append_images": [PIL.Image.new("RGB", PHOTO.size, "red")]}


ORIENTATION_IN_XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)

# name: encoded image, what it shows; odd, but nothing is wrong with them
JPEGS = {
    "jpeg": (encode(PHOTO, "JPEG", quality=90), PHOTO),
    "jpeg, coarse": (encode(PHOTO, "JPEG", quality=40), PHOTO),
    "jpeg, progressive": (encode(PHOTO, "JPEG", progressive=True), PHOTO),
    "jpeg, not in YCbCr": (encode(PHOTO, "JPEG", keep_rgb=True), PHOTO),
    "jpeg, grey": (encode(GREY, "JPEG"), GREY),
    "jpeg, CMYK": (encode(PHOTO.convert("CMYK"), "JPEG"), PHOTO),
    "jpeg, orientation 1": (encode(PHOTO, "JPEG", exif=oriented(1)), PHOTO),
    "jpeg, orientation 6": (encode(PHOTO, "JPEG", exif=oriented(6)), TURNED),
    "jpeg, orientation 9": (encode(PHOTO, "JPEG", exif=oriented(9)), PHOTO),  # there is none
    "jpeg, broken EXIF": (encode(PHOTO, "JPEG", exif=b"Exif\0\0nonsense"), PHOTO),
    "jpeg, two frames": (encode(PHOTO, "MPO", **two_frames()), PHOTO),
    "jpeg, one pixel wide": (encode(PHOTO.crop((9, 0, 10, 60)), "JPEG"), PHOTO.crop((9, 0, 10, 60))),
}
LOSSLESS = {
    "png": (encode(PHOTO), PHOTO),
    "png, grey": (encode(GREY), GREY),
    "png, palette": (encode(PALETTE), PALETTE),
    "png, transparent palette": (encode(PALETTE, transparency=3), PALETTE),
    "png, half-transparent palette": (encode(PALETTE, transparency=bytes(range(64))), PALETTE),
    "png, alpha": (encode(SEE_THROUGH), PHOTO),
    "png, grey and alpha": (encode(SEE_THROUGH.convert("LA")), GREY),
    "png, black and white": (encode(BLACK_AND_WHITE), BLACK_AND_WHITE),
    "png, orientation 6": (encode(PHOTO, exif=oriented(6)), TURNED),
    "png, animated": (encode(PHOTO, **two_frames()), PHOTO),
    "gif": (encode(PALETTE, "GIF"), PALETTE),
    "gif, animated": (encode(PALETTE, "GIF", **two_frames()), PALETTE),
    "webp": (encode(PHOTO, "WEBP", lossless=True), PHOTO),
    "webp, animated": (encode(PHOTO, "WEBP", lossless=True, **two_frames()), PHOTO),
    "bmp": (encode(PHOTO, "BMP"), PHOTO),
    "tiff": (encode(PHOTO, "TIFF"), PHOTO),
    "tiff, compressed": (encode(PHOTO, "TIFF", compression="tiff_lzw"), PHOTO),
    "tiff, two pages": (encode(PHOTO, "TIFF", **two_frames()), PHOTO),
    "tiff, orientation 6": (encode(PHOTO, "TIFF", exif=oriented(6)), TURNED),
}


def as_array(pixels: torch.Tensor) -> np.ndarray:
    """(3, height, width) pixels as (height, width, 3) levels that can be subtracted."""
    assert pixels.dtype == torch.uint8 and pixels.ndim == 3 and pixels.shape[0] == 3
    return pixels.permute(1, 2, 0).numpy().astype(int)


def cut(image: dict, share: float) -> bytes:
    return image["bytes"][: int(share * len(image["bytes"]))]


ONE_PIXEL = PHOTO.crop((0, 0, 1, 1))
# name: the file's bytes, a word of the reason
BROKEN = {
    **{
        f"{name}, cut at {share}": (cut({**JPEGS, **LOSSLESS}[name][0], share), "")
        for name in ("jpeg", "jpeg, grey", "jpeg, CMYK", "jpeg, progressive", "png", "png, palette", "gif", "webp")
        for share in (0.4, 0.9)
    },
    "bmp, cut": (cut(LOSSLESS["bmp"][0], 0.9), "truncated"),
    "tiff, cut": (cut(LOSSLESS["tiff"][0], 0.9), "truncated"),
    "png, cut early": (cut(LOSSLESS["png"][0], 0.6), "truncated"),
    "jpeg, turned and cut": (cut(JPEGS["jpeg, orientation 6"][0], 0.8), "truncated"),
    "jpeg, header only": (JPEGS["jpeg"][0]["bytes"][:20], "cannot identify"),
    "jpeg, empty": (b"", "empty"),
    "png, empty": (b"", "empty"),
    "jpeg, text": (b"404: no such picture\n", "cannot identify"),
    "png, a page": (b"<!DOCTYPE html><html><body>moved</body></html>", "cannot identify"),
    "jpeg, zeros": (bytes(1000), "cannot identify"),
    "jpeg, one pixel": (encode(ONE_PIXEL, "JPEG")["bytes"], "one pixel"),
    "png, one pixel": (encode(ONE_PIXEL)["bytes"], "one pixel"),
    "gif, one pixel": (encode(ONE_PIXEL, "GIF")["bytes"], "one pixel"),
}
BOMB = encode(PIL.Image.new("1", (120, 100)))
