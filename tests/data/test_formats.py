"""Formats, sizes and alpha of images: what is shown, and what is refused by name."""

import io
import multiprocessing
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from helpers.deep_images import tiff
from helpers.images import encode, undecoded
from helpers.odd_images import PHOTO, TURNED, as_array, cut, oriented

from modeling_deit_distill.data import decoding
from modeling_deit_distill.data.decoding import (
    BadImageError,
    can_read_avif,
    can_read_heic,
    decode_image,
    decode_pixels,
    decoding_notes,
)
from modeling_deit_distill.data.evaluation import EvaluationDataset, evaluation_processor, evaluation_transform
from modeling_deit_distill.data.image_files import NO_IMAGE, why_skipped

needs_heic = pytest.mark.skipif(not can_read_heic(), reason="needs pillow-heif")
needs_avif = pytest.mark.skipif(not can_read_avif(), reason="needs a Pillow that reads AVIF")


def both_ways(image: dict) -> np.ndarray:
    """(height, width, 3); what is the same in training and evaluation."""
    pixels = as_array(decode_pixels(image))
    np.testing.assert_array_equal(np.asarray(decode_image(image)), pixels)
    return pixels


def why(image: dict) -> str:
    reasons = set()
    for decode in (decode_image, decode_pixels):
        with pytest.raises(BadImageError) as caught:
            decode(image)
        reasons.add(str(caught.value))
    (reason,) = reasons
    return reason


def heic(image: PIL.Image.Image, **options) -> dict:
    import pillow_heif

    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=95, **options)
    return {"bytes": buffer.getvalue(), "path": None}


# --- HEIC and AVIF ----------------------------------------------------------------------------------------------------


@needs_heic
def test_heic_is_shown_upright_though_nobody_registered_it():
    for options, shown in (({}, PHOTO), ({"exif": oriented(6).tobytes()}, TURNED)):
        pixels = both_ways(heic(PHOTO, **options))
        assert pixels.shape[:2] == (shown.height, shown.width)
        assert abs(pixels - np.asarray(shown)).mean() < 12  # its colours have half the resolution
    assert "HEIF" not in PIL.Image.OPEN


@needs_heic
def test_the_line_of_the_card_lets_a_pipeline_open_heic(tmp_path):
    (tmp_path / "photo.heic").write_bytes(heic(PHOTO)["bytes"])
    line = "import pillow_heif; pillow_heif.register_heif_opener()"
    assert line in (Path(decoding.__file__).parents[1] / "publishing" / "card_template.md").read_text()
    opening = f"import PIL.Image; print(PIL.Image.open({str(tmp_path / 'photo.heic')!r}).size)"
    for before, is_read in ((line, True), ("pass", False)):
        done = subprocess.run([sys.executable, "-c", f"{before}\n{opening}"], capture_output=True, text=True)
        assert (done.stdout.strip() == str(PHOTO.size)) == is_read


@needs_heic
def test_a_deep_grey_heic_is_not_dark():
    import pillow_heif

    ramp = np.tile(np.arange(0, 4096, 64, dtype=np.uint16) * 16, (64, 1))
    for samples in (ramp, ramp // 16):  # the second is dark: the format says how many bits there are
        buffer = io.BytesIO()
        pillow_heif.from_bytes("L;16", (64, 64), samples.tobytes()).save(buffer, quality=-1)
        image = {"bytes": buffer.getvalue(), "path": None}
        assert abs(both_ways(image)[..., 0] - samples // 257).max() <= 2 and decoding_notes(image) == []


@needs_heic
def test_a_broken_heic_has_a_reason():
    whole = heic(PHOTO)
    for share in (0.1, 0.5, 0.9):
        assert why({"bytes": cut(whole, share), "path": None})


@needs_avif
def test_avif_is_shown_upright():
    for options, shown in (({}, PHOTO), ({"exif": oriented(6)}, TURNED)):
        pixels = both_ways(encode(PHOTO, "AVIF", quality=95, **options))
        assert abs(pixels - np.asarray(shown)).mean() < 6
    assert why({"bytes": cut(encode(PHOTO, "AVIF"), 0.5), "path": None})


@needs_avif
@pytest.mark.parametrize("brand", [b"mif1", b"avif"])
def test_avif_is_distinguished_from_heic_by_all_its_brands(brand, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # nothing of it is needed
    encoded = encode(PHOTO, "AVIF")["bytes"]
    assert encoded[8:12] == b"avif" and b"mif1" in encoded[16:40]
    assert both_ways({"bytes": encoded[:8] + brand + encoded[12:], "path": None}).shape == (60, 80, 3)


def ftyp(*brands: bytes) -> dict:
    """The beginning of an ISO media file."""
    content = b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])
    return {"bytes": (len(content) + 4).to_bytes(4, "big") + content + bytes(100), "path": None}


def test_without_what_reads_them_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(decoding, "can_read_heic", lambda: False)
    monkeypatch.setattr(decoding, "can_read_avif", lambda: False)
    for brands in ((b"heic", b"mif1", b"heic"), (b"mif1", b"miaf", b"heix"), (b"heix",)):
        assert why(ftyp(*brands)) == "HEIC, which needs pillow-heif: pip install pillow-heif"
    for brands in ((b"avif", b"mif1"), (b"mif1", b"avif")):
        assert why(ftyp(*brands)) == "AVIF, which this Pillow cannot read: pip install 'pillow>=11.3'"
    assert "cannot identify" in why(ftyp(b"isom", b"mp42"))  # a film


def test_whether_they_can_be_read_is_known_without_loading_them(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not can_read_heic()
    monkeypatch.setattr("PIL.features.modules", {})  # of an earlier Pillow
    assert not can_read_avif()


@needs_heic
@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_decode_heic(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    rows = undecoded([heic(PHOTO)] * 2)
    dataset = EvaluationDataset(rows, evaluation_transform(evaluation_processor(16)))
    loader = torch.utils.data.DataLoader(dataset, 2, num_workers=1, multiprocessing_context=method)
    (batch,) = loader
    assert torch.equal(batch["pixel_values"][0], dataset[0]["pixel_values"])


# --- sizes ------------------------------------------------------------------------------------------------------------


def limit(monkeypatch, pixels: int):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", pixels)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("format", "options", "within"),
    [
        ("JPEG", {"quality": 95}, 3),
        ("JPEG", {"quality": 95, "progressive": True}, 3),
        ("MPO", {"quality": 95, "save_all": True, "append_images": [PHOTO]}, 3),
        ("PNG", {}, 2),
        ("WEBP", {"lossless": True}, 2),
        ("TIFF", {"compression": "tiff_lzw"}, 2),
    ],
)
def test_a_large_photo_is_shown_at_half_its_size(monkeypatch, format, options, within):
    size = PHOTO.width * PHOTO.height  # 80 x 60
    for exif, shown in ((None, PHOTO), (oriented(6), TURNED)):
        image = encode(PHOTO, format, **options, **({} if exif is None else {"exif": exif}))
        whole = both_ways(image) if format not in ("JPEG", "MPO") else None
        assert decoding_notes(image) == []
        limit(monkeypatch, size // within)
        half = both_ways(image)
        assert half.shape == (shown.height // 2, shown.width // 2, 3)
        assert abs(half - np.asarray(shown.reduce(2)).astype(int)).mean() < 6
        if whole is not None:
            np.testing.assert_array_equal(half, np.asarray(PIL.Image.fromarray(whole.astype(np.uint8)).reduce(2)))
        (note,) = decoding_notes(image)
        assert note.endswith("0 pixels, decoded at half the width and height")
        limit(monkeypatch, size // within - 1)
        assert "decompression bomb" in why(image)
        limit(monkeypatch, size)


def test_at_the_limit_nothing_is_reduced(monkeypatch):
    image = encode(PHOTO, "JPEG")
    whole = as_array(decode_pixels(image))
    limit(monkeypatch, 4800)
    np.testing.assert_array_equal(as_array(decode_pixels(image)), whole)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_every_mode_is_reduced(monkeypatch, mode):
    photo = PIL.Image.fromarray(np.asarray(PHOTO.convert("L")).astype(np.uint16) * 257) if mode == "I;16" else PHOTO
    image = encode(photo.convert(mode), "TIFF" if mode == "CMYK" else "PNG")
    whole = PIL.Image.fromarray(both_ways(image).astype(np.uint8))
    limit(monkeypatch, 3000)
    np.testing.assert_array_equal(both_ways(image), np.asarray(whole.reduce(2)))


def test_odd_sizes_are_rounded_up(monkeypatch):
    image = encode(PHOTO.crop((0, 0, 79, 59)), "JPEG")
    limit(monkeypatch, 4000)
    assert both_ways(image).shape == (30, 40, 3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_many_pixels_in_few_bytes_are_a_bomb(monkeypatch):
    """One colour costs next to nothing, however large; a photo has a byte for every 100 pixels."""
    limit(monkeypatch, 90_000)
    reason = why(encode(PIL.Image.new("L", (310, 310)), "PNG"))
    assert "310x310 pixels in" in reason and "a decompression bomb?" in reason
    assert both_ways(encode(PIL.Image.new("L", (300, 300)), "PNG")).shape == (300, 300, 3)  # not large


@pytest.mark.slow
def test_a_phones_200_megapixels_fit_into_memory():
    photo = PIL.Image.effect_noise((16320, 12240), 60)
    image = encode(photo.convert("RGB"), "JPEG", quality=80)
    assert decode_pixels(image).shape == (3, 6120, 8160)


def test_strips_are_refused():
    for size in ((1, 501), (1002, 2)):
        assert (
            why(encode(PIL.Image.new("L", size)))
            == f"{size[0]}x{size[1]} pixels: a strip, of which no crop shows anything"
        )
    assert both_ways(encode(PIL.Image.new("L", (1, 500)), "JPEG")).shape == (500, 1, 3)


def test_no_pixels_are_refused():
    netpbm = {"bytes": b"P5 0 7 255\n", "path": None}
    assert why(netpbm)


# --- alpha and modes --------------------------------------------------------------------------------------------------


def logo(colour, under=None) -> PIL.Image.Image:
    """A square in the middle of nothing, in a colour; what lies under the transparent part has another, if given."""
    image = PIL.Image.new("RGBA", (8, 8), (*(under or colour), 0))
    image.paste((*colour, 255), (2, 2, 6, 6))
    return image


def corner_and_middle(image: dict) -> tuple[list[int], list[int]]:
    pixels = both_ways(image)
    return pixels[0, 0].tolist(), pixels[4, 4].tolist()


def test_a_logo_of_one_colour_is_seen():
    white, black = [255] * 3, [0] * 3
    for image, expected, ground in (
        (logo((0, 0, 0)), (white, black), "white"),
        (logo((30, 30, 30), under=(0, 0, 0)), (white, [30] * 3), "white"),
        (logo((255, 255, 255)), (black, white), "black"),
        (logo((0, 0, 90)), (white, [0, 0, 90]), "white"),
    ):
        for encoded in (encode(image), encode(image, "WEBP", lossless=True, exact=True), encode(image, "TIFF")):
            assert corner_and_middle(encoded) == expected
            assert decoding_notes(encoded) == [f"its shape is in its alpha alone: shown on {ground}"]
    assert corner_and_middle(encode(logo((0, 0, 0)).convert("LA"))) == (white, black)
    palette = PIL.Image.new("P", (8, 8), 0)
    palette.putpalette([0, 0, 0] * 2)
    palette.paste(1, (2, 2, 6, 6))
    assert corner_and_middle(encode(palette, transparency=0)) == (white, black)


def test_elsewhere_alpha_is_dropped_as_in_a_pipeline():
    for image, expected in (
        (logo((0, 0, 0), under=(255, 255, 255)), ([255] * 3, [0] * 3)),
        (logo((200, 0, 0), under=(0, 0, 0)), ([0] * 3, [200, 0, 0])),
        (PIL.Image.new("RGBA", (8, 8), (9, 9, 9, 255)), ([9] * 3, [9] * 3)),
        (PIL.Image.new("RGBA", (8, 8), (0, 0, 0, 200)), ([0] * 3, [0] * 3)),  # alike everywhere: no shape
    ):
        encoded = encode(image)
        assert corner_and_middle(encoded) == expected and decoding_notes(encoded) == []
        np.testing.assert_array_equal(both_ways(encoded), np.asarray(image.convert("RGB")))
    hidden = PHOTO.copy()
    hidden.putalpha(0)
    np.testing.assert_array_equal(both_ways(encode(hidden)), np.asarray(PHOTO))


def test_an_image_with_nothing_in_it_is_refused():
    assert why(encode(PIL.Image.new("RGBA", (8, 8)))) == "transparent everywhere, with nothing under it"


def test_lab_is_shown_in_its_colours():
    lab = PIL.Image.merge("LAB", [PIL.Image.new("L", (4, 4), value) for value in (136, 208, 195)])  # 53, 80, 67: red
    red, green, blue = both_ways(encode(lab, "TIFF"))[0, 0]
    assert red > 245 and green < 15 and blue < 15
    white = PIL.Image.merge("LAB", [PIL.Image.new("L", (4, 4), value) for value in (255, 128, 128)])
    assert both_ways(encode(white, "TIFF")).min() >= 253


def test_inks_are_not_inverted():
    """Red without cyan; Adobe's JPEGs keep inks inverted, and Pillow writes and reads them so."""
    inks = PIL.Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for format, options in (("JPEG", {"quality": 95}), ("TIFF", {})):
        red, green, blue = both_ways(encode(inks, format, **options))[8, 8]
        assert red > 250 and green < 5 and blue < 5, format


@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="an earlier Pillow cannot identify such a TIFF")
def test_premultiplied_alpha_is_read():
    grey = np.tile(np.array([[[0, 0], [100, 255], [50, 128]]], dtype=np.uint8), (3, 1, 1))
    assert both_ways(tiff(grey, t338=(1,)))[0, 1].tolist() == [100] * 3


def test_the_first_of_several_frames_is_shown():
    for format, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})):
        frames = {"save_all": True, "append_images": [PIL.Image.new("RGB", (8, 8), "red")]}
        first = PIL.Image.new("RGB", (8, 8), (0, 0, 255))
        assert both_ways(encode(first, format, **frames, **options))[0, 0].tolist() == [0, 0, 255], format


# --- what would take long, or start another program -------------------------------------------------------------------


def many_scans(num_scans: int, image: PIL.Image.Image = PHOTO) -> dict:
    """A progressive JPEG that repeats its last scan."""
    encoded = encode(image, "JPEG", progressive=True)["bytes"]
    last = encoded.rindex(b"\xff\xda")
    scan, missing = encoded[last:-2], num_scans - encoded.count(b"\xff\xda")
    return {"bytes": encoded[:-2] + missing * scan + encoded[-2:], "path": None}


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded(monkeypatch):
    assert both_ways(many_scans(decoding.MOST_SCANS)).shape == (60, 80, 3)
    slow = {num_scans: many_scans(num_scans) for num_scans in (decoding.MOST_SCANS + 1, 200)}
    monkeypatch.setattr("simplejpeg.decode_jpeg", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(PIL.Image.Image, "load", lambda *_: pytest.fail("decoded"))
    for num_scans, image in slow.items():
        assert why(image).startswith(f"a JPEG of {num_scans} scans, where encoders write about 10")


@pytest.mark.parametrize("tiled", [False, True])
def test_scans_within_a_tiff_count_too(tiled):
    tiff = lambda num_scans: of_one_jpeg(many_scans(num_scans, PHOTO.resize((64, 64)).convert("L"))["bytes"], tiled)  # noqa: E731
    assert both_ways(tiff(decoding.MOST_SCANS)).shape == (64, 64, 3)
    assert why(tiff(decoding.MOST_SCANS + 1)).startswith(f"a JPEG of {decoding.MOST_SCANS + 1} scans")


def of_one_jpeg(jpeg: bytes, tiled: bool) -> dict:
    """A grey TIFF of 64 x 64 pixels that are one JPEG, in a tile or a strip."""
    places, sizes = (324, 325) if tiled else (273, 279)
    sides = [(322, 64), (323, 64)] if tiled else [(278, 64)]
    tags = [(256, 64), (257, 64), (258, 8), (259, 7), (262, 1), (277, 1), *sides]
    head = 8 + 2 + 12 * (len(tags) + 2) + 4
    tags = sorted([*tags, (places, head), (sizes, len(jpeg))])
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return {"bytes": b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(4) + jpeg, "path": None}


def test_scans_are_those_of_the_image_itself():
    progressive = encode(PHOTO, "JPEG", progressive=True)["bytes"]
    assert decoding._num_scans(progressive) == 10
    assert decoding._num_scans(encode(PHOTO, "JPEG")["bytes"]) == 1
    others = {"save_all": True, "append_images": [PHOTO] * 9}  # ten images of ten scans
    assert both_ways(encode(PHOTO, "MPO", progressive=True, **others)).shape == (60, 80, 3)
    in_metadata = encode(PHOTO, "JPEG", exif=b"Exif\0\0" + b"\xff\xda" * 999, progressive=True)
    assert both_ways(in_metadata).shape == (60, 80, 3)


@pytest.mark.parametrize("layout", [b"\xff\xff", b"\x00padding", b"\xff\x01", b"\xff\xd8"])
def test_odd_markers_hide_no_scans(layout):
    encoded = many_scans(200)["bytes"]
    assert "200 scans" in why({"bytes": encoded[:2] + b"\xff" + layout + encoded[2:], "path": None})


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\n0 0 40 40 rectfill\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("content", [EPS, b"\xc5\xd0\xd3\xc6" + (32).to_bytes(4, "little") + bytes(24) + EPS])
def test_no_image_starts_another_program(content, monkeypatch, tmp_path):
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    reason = why({"bytes": content, "path": None})
    assert reason.endswith("(EPS, which another program would have to draw; save it as PNG or JPEG)")
    (tmp_path / "drawing.eps").write_bytes(content)
    assert why_skipped(str(tmp_path / "drawing.eps")) == NO_IMAGE


def test_pillows_formats_are_all_taken_or_left_on_purpose():
    PIL.Image.init()
    left = {"BLP", "BUFR", "CUR", "DCX", "EPS", "FLI", "FTEX", "GBR", "GRIB", "HDF5", "IMT", "IPTC", "MCIDAS", "MPEG"}
    left |= {"PCD", "PIXAR", "WMF", "XVTHUMB", "HEIF"}
    assert set(PIL.Image.OPEN) - set(decoding.FORMATS) <= left
