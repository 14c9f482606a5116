"""Samples of any depth: shown as a person would see them, or refused by name; alike in training and evaluation."""

import io

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
from helpers.deep_images import png, tiff
from helpers.images import encode
from helpers.odd_images import as_array, oriented
from hypothesis import given
from hypothesis import strategies as st

from modeling_deit_distill.data.decoding import BadImageError, decode_image, decode_pixels, decoding_notes

# A ramp of 12 bits, and the levels to be seen: v * 255 / 4095, rounded down.
RAMP = np.array([[0, 16, 100, 2048, 4095]] * 2, dtype=np.uint16)
LEVELS = [0, 0, 6, 127, 255]
NOTE = "integers up to 4095 in a container of more bits, taken for 12 bits"


def both_ways(image: dict) -> np.ndarray:
    """(height, width, 3); what is the same in training and evaluation."""
    shown, pixels = np.asarray(decode_image(image)), as_array(decode_pixels(image))
    np.testing.assert_array_equal(shown, pixels)
    return pixels


def first_line(image: dict) -> list:
    """The grey levels of the first line."""
    pixels = both_ways(image)
    assert (pixels == pixels[..., :1]).all()
    return pixels[0, :, 0].tolist()


def why(image: dict) -> str:
    reasons = set()
    for decode in (decode_image, decode_pixels, decoding_notes):
        with pytest.raises(BadImageError) as caught:
            decode(image)
        reasons.add(str(caught.value))
    (reason,) = reasons
    assert "\n" not in reason and "0x" not in reason
    return reason


def channels(grey: np.ndarray, number: int, alpha: int | None = None) -> np.ndarray:
    """The same samples in so many channels; the last is alpha, if one is given."""
    samples = np.repeat(grey[..., None], number, axis=2)
    if alpha is not None:
        samples[..., -1] = alpha
    return samples


# --- integers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_twelve_bits_in_sixteen_are_not_dark(dtype):
    grey = RAMP.astype(dtype)
    for image in (
        png(grey),
        png(channels(grey, 2, 4095)),
        png(channels(grey, 2, 65535)),
        png(channels(grey, 3)),
        png(channels(grey, 4, 4095)),
        png(channels(grey, 4, 65535)),
        tiff(grey),
        tiff(channels(grey, 3)),
        tiff(channels(grey, 4, 4095), t338=(2,)),
        tiff(channels(grey, 4, 65535), t338=(2,)),
        tiff(channels(grey, 4, 7), t338=(0,)),  # a fourth channel that is no alpha
    ):
        assert first_line(image) == LEVELS
        assert decoding_notes(image) == [NOTE]


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_a_compressed_tiff_is_as_a_plain_one(compression):
    image = encode(PIL.Image.fromarray(RAMP), "TIFF", compression=compression)
    assert first_line(image) == LEVELS


def test_colours_keep_their_relations():
    samples = np.array([[[4095, 0, 2048], [100, 4095, 16]]] * 2, dtype=np.uint16)
    for image in (png(samples), tiff(samples)):
        assert both_ways(image)[0].tolist() == [[255, 0, 127], [6, 255, 0]]


@pytest.mark.parametrize(
    ("maximum", "depth", "level"),
    [
        (1, 8, 1),
        (200, 8, 200),
        (255, 8, 255),
        (256, 10, 63),  # 256 * 255 / 1023 = 63.8
        (1023, 10, 255),
        (1024, 12, 63),
        (4095, 12, 255),
        (4096, 14, 63),
        (16383, 14, 255),
        (16384, 16, 63),
        (65535, 16, 255),
    ],
)
def test_the_depth_is_the_smallest_that_holds_the_largest_sample(maximum, depth, level):
    samples = np.array([[0, maximum]] * 2, dtype=np.uint16)
    for image in (png(samples), tiff(samples), tiff(samples.astype("<u4")), tiff(samples.astype("<i4"))):
        assert first_line(image) == [0, level]
        assert decoding_notes(image) == (
            [f"integers up to {maximum} in a container of more bits, taken for {depth} bits"] if depth < 16 else []
        )


@given(st.lists(st.integers(0, 65535), min_size=2, max_size=20))
def test_no_picture_is_dark_unless_it_is_black(levels):
    """The law of the assumption: order is kept, and the brightest of more than 255 has a quarter of full light."""
    samples = np.array([levels] * 2, dtype=np.uint16)
    for image in (png(samples), png(channels(samples, 3))):
        shown = first_line(image)
        assert all(
            shown[a] <= shown[b] for a in range(len(levels)) for b in range(len(levels)) if levels[a] <= levels[b]
        )
        assert max(shown) >= min(max(levels), 63)


def test_a_png_is_believed_what_it_says_of_its_bits():
    dark = np.array([[0, 4001]] * 2, dtype=np.uint16)
    for samples in (dark, channels(dark, 3)):
        assert first_line(png(samples, significant=16)) == [0, 15]  # 4001 / 257, or its high byte: a dark picture
        assert decoding_notes(png(samples, significant=16)) == []
        assert first_line(png(samples, significant=12)) == [0, 249]  # 4001 * 255 / 4095: not scaled up as it should be


def test_pillow_can_write_what_a_png_is_believed():
    info = PIL.PngImagePlugin.PngInfo()
    info.add(b"sBIT", bytes([16]))
    image = encode(PIL.Image.fromarray(np.array([[0, 4001]] * 2, dtype=np.uint16)), pnginfo=info)
    assert first_line(image) == [0, 15]


def test_a_png_scaled_up_as_the_format_demands_stays_as_it_is():
    twelve = np.array([[0, 100, 2048, 4095]] * 2, dtype=np.uint16)
    scaled = twelve << 4 | twelve >> 8
    for image in (png(scaled, significant=12), png(scaled)):
        assert first_line(image) == [0, 6, 127, 255]
    dark = np.array([[0, 16, 160, 1600]] * 2, dtype=np.uint16)  # 0, 1, 10 and 100 of 4095
    assert first_line(png(dark, significant=12)) == [0, 0, 0, 6]


def test_a_depth_that_a_file_declares_needs_no_assumption():
    grey = np.array([[0, 100, 200, 255]] * 2)
    packed = bytes([0x00, 0x00, 0x64, 0x0C, 0x80, 0xFF] * 2)  # 12 bits each: 000 064 0C8 0FF
    image = tiff(np.frombuffer(packed, np.uint8).reshape(2, 6), t256=(4,), t258=(12,))
    assert first_line(image) == [0, 6, 12, 15] and decoding_notes(image) == []
    for maximum, expected in ((4095, [0, 6, 12, 15]), (1023, [0, 24, 49, 63])):
        header = f"P5 4 2 {maximum}\n".encode()
        image = {"bytes": header + grey.astype(">u2").tobytes(), "path": None}
        assert first_line(image) == pytest.approx(expected, abs=1) and decoding_notes(image) == []


def test_the_precision_of_a_jpeg_2000_is_what_it_declares():
    pytest.importorskip("PIL.Jpeg2KImagePlugin")
    grey = np.tile(np.array([[0, 100, 2048, 4095]], dtype=np.uint16), (8, 2))
    try:
        image = encode(PIL.Image.fromarray(grey), "JPEG2000", irreversible=False)
    except OSError:
        pytest.skip("this Pillow writes no JPEG 2000")
    assert first_line(image)[:4] == [0, 6, 127, 255]


@pytest.mark.filterwarnings("ignore:IM image format is deprecated")
def test_integers_of_other_formats():
    PIL.Image.init()
    if "IM" not in PIL.Image.SAVE:
        pytest.skip("from Pillow 15 on there is no such format")
    for values, shown in (([0, 4095], [0, 255]), ([0, 2**31 - 1], [0, 255]), ([0, 100_000], None)):
        image = encode(PIL.Image.fromarray(np.array([values] * 2, dtype=np.int32)), "IM")
        assert shown == first_line(image) if shown else "nobody says which is white" in why(image)


@pytest.mark.parametrize("order", "<>")
def test_integers_of_32_bits(order):
    full = 2**32 - 1
    if order == "<":  # Pillow reads no other
        shown = first_line(tiff(np.array([[0, full // 2, full]] * 2, dtype=f"{order}u4")))
        assert shown == [0, 127, 255]
    assert first_line(tiff(np.array([[0, 2**30, 2**31 - 1]] * 2, dtype=f"{order}i4"))) == [0, 127, 255]
    assert first_line(tiff(np.array([[0, 2**22, 2**24 - 1]] * 2, dtype=f"{order}i4"))) == [0, 63, 255]
    assert first_line(tiff(np.array([[0, 16384, 32767]] * 2, dtype=f"{order}i2"))) == [0, 127, 255]
    reason = why(tiff(np.array([[0, 100_000]] * 2, dtype=f"{order}i4")))
    assert "integers up to 100000, and nobody says which is white; save it as integers of 8 bits" in reason


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<i4", ">i4"])
def test_negative_integers_are_refused(dtype):
    reason = why(tiff(np.array([[-1000, 0, 3000]] * 2, dtype=dtype)))  # a tomogram
    assert "integers from -1000 on, so nobody says which is black" in reason


def test_signed_bytes_are_refused_if_some_are_negative():
    assert "signed bytes, some negative" in why(tiff(np.array([[-5, 100]] * 2, dtype=np.int8)))
    assert first_line(tiff(np.array([[5, 100]] * 2, dtype=np.int8))) == [5, 100]


def test_white_may_be_zero():
    eight = np.array([[0, 55, 255]] * 2, dtype=np.uint8)
    sixteen, floats = (eight * 257.0).astype("<u2"), (eight / 255).astype("<f4")
    for samples in (eight, sixteen, floats, floats.astype(">f4")):
        assert first_line(tiff(samples, photometric=0)) == [255, 200, 0], samples.dtype


def test_planes_of_sixteen_bits_are_refused():
    """Pillow reads them byte by byte, as noise."""
    assert "16 bits in planes, which Pillow misreads" in why(tiff(channels(RAMP, 3), planar=True))
    assert first_line(tiff(channels(RAMP.astype(np.uint8), 3), planar=True)) == [0, 16, 100, 0, 255]


def test_dark_colours_whose_low_bytes_cannot_be_had_are_refused():
    header = b"P6 5 2 65535\n"
    for samples, is_dark in ((channels(RAMP, 3), True), (channels(RAMP, 3) * 16, False)):
        image = {"bytes": header + samples.astype(">u2").tobytes(), "path": None}
        if is_dark:
            assert "16 bits a channel, all colours below a quarter: dark, or of fewer bits" in why(image)
        else:
            assert first_line(image)[-1] == 255


def test_what_pillow_cannot_read_is_named():
    for samples in (RAMP.astype("<f8"), RAMP.astype("<f2"), channels(RAMP, 3).astype("<f4"), channels(RAMP, 2)):
        assert "a TIFF of a kind that Pillow cannot read" in why(tiff(samples))
    for start, name in ((b"v/1\x01", "OpenEXR"), (b"\xff\x0a", "JPEG XL"), (b"#?RADIANCE\n", "Radiance HDR")):
        assert f"{name}, which Pillow cannot read; save it as PNG or JPEG" in why({"bytes": start * 9, "path": None})


def test_deep_images_are_turned_too():
    tall = np.array([[0, 4095], [100, 0]], dtype=np.uint16)
    turned = [[6, 0], [0, 255]]  # a quarter clockwise
    for format in ("PNG", "TIFF"):
        image = encode(PIL.Image.fromarray(tall), format, exif=oriented(6))
        assert both_ways(image)[..., 0].tolist() == turned, format


def test_bright_colours_of_sixteen_bits_are_pillows_own():
    samples = np.random.default_rng(0).integers(0, 65536, (6, 5, 3), dtype=np.uint16)
    for image in (png(samples), tiff(samples)):
        np.testing.assert_array_equal(both_ways(image), samples >> 8)
        np.testing.assert_array_equal(both_ways(image), PIL.Image.open(io.BytesIO(image["bytes"])).convert("RGB"))


# --- floats -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", "<>")
def test_floats_from_0_to_1_and_from_0_to_255(order):
    unit = np.array([[0, 0.2, 0.5, 1]] * 2, dtype=f"{order}f4")
    assert first_line(tiff(unit)) == [0, 51, 128, 255]  # 127.5 to even
    assert first_line(tiff(unit * 255)) == [0, 51, 128, 255]
    assert first_line(tiff(unit * np.float32(0.1))) == [0, 5, 13, 26]  # dark, as it is
    assert first_line(tiff(unit + np.float32(1e-3))) == [0, 51, 128, 255]  # within half a level
    assert first_line(tiff(unit * 0)) == [0, 0, 0, 0]


@given(st.lists(st.integers(0, 255), min_size=2, max_size=20))
def test_levels_stored_as_floats_come_back(levels):
    unit = np.array([levels] * 2, dtype=np.float32) / np.float32(255)
    assert first_line(tiff(unit.astype("<f4"))) == levels


@pytest.mark.parametrize("values", [(-1, 1), (0, 1.5), (0, 31), (0, 256), (0, 65535), (-5, 200)])
def test_floats_without_a_known_white_are_refused(values):
    reason = why(tiff(np.array([values] * 2, dtype="<f4")))
    assert "neither from 0 to 1 nor from 0 to 255, so nobody says which is white" in reason


@pytest.mark.parametrize("values", [(0, np.nan), (0, np.inf), (-np.inf, 0)])
def test_floats_that_are_not_finite_are_refused(values):
    assert "floats of which some are NaN or infinite" in why(tiff(np.array([values] * 2, dtype="<f4")))
