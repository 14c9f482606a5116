"""Large photographs are decoded no larger than their views need, and every view stays what it was drawn to be."""

import dataclasses
import math

import numpy as np
import PIL.Image
import pytest
import torch
from helpers.images import encode, grey, picture, undecoded
from helpers.odd_images import JPEGS, as_array, cut, oriented
from helpers.views import by_position, loader, views_of
from hypothesis import given
from hypothesis import strategies as st

from modeling_deit_distill.data import datasets as datasets_module
from modeling_deit_distill.data import decoding
from modeling_deit_distill.data.datasets import DecodedImage, ViewDataset, crop_and_resize
from modeling_deit_distill.data.decoding import BadImageError, JpegSize, decode_image, decode_pixels, jpeg_size
from modeling_deit_distill.data.inspection import has_large_photographs
from modeling_deit_distill.data.scaled import factor_of_image, factor_of_view, scaled_box
from modeling_deit_distill.data.views import AugmentationSettings, View, crop_box, draw_uniforms

SCALED = AugmentationSettings(
    image_size=16, random_crop_scale=(0.3, 1.0), mixup_alpha=0, cutmix_alpha=0, scaled_decoding=True
)
WHOLE = dataclasses.replace(SCALED, scaled_decoding=False)


# --- which factor -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "image_size", "smallest", "factor"),
    [
        ((3000, 4000), 224, 0.08, 4),  # √(0.08 × 12 million) = 979.8, which is 4.4 times 224
        ((4000, 3000), 224, 0.08, 4),
        ((3000, 4000), 64, 0.08, 8),  # 15.3 times
        ((3000, 4000), 384, 0.08, 2),  # 2.6 times
        ((3000, 4000), 512, 0.08, 1),  # 1.9 times
        ((3000, 4000), 224, 0.35, 8),  # √(0.35 × 12 million) = 2049, which is 9.1 times
        ((375, 500), 224, 0.08, 1),  # ImageNet's median: 122 pixels
    ],
)
def test_the_factor_of_an_image(size, image_size, smallest, factor):
    settings = AugmentationSettings(image_size, (smallest, 1.0), scaled_decoding=True)
    assert factor_of_image(*size, settings) == factor
    assert factor_of_image(*size, settings, most=2) == min(factor, 2)
    assert factor_of_image(*size, dataclasses.replace(settings, scaled_decoding=False)) == 1


def test_the_factor_of_a_view():
    for sides, factor in [((896, 2000), 4), ((895, 2000), 2), ((2000, 447), 1), ((1792, 1792), 4)]:
        assert factor_of_view((0, 0, *sides), 224, 4) == factor, sides
    assert factor_of_view((0, 0, 1792, 1792), 224, 8) == 8


def test_a_box_of_the_smaller_image():
    assert scaled_box((100, 6, 903, 1001), 4, 750, 1000) == (25, 2, 226, 250)
    assert scaled_box((2, 0, 999, 8), 4, 250, 2) == (0, 0, 250, 2)  # 1001 pixels high


@given(
    st.tuples(st.integers(8, 6000), st.integers(8, 6000)),
    st.integers(8, 384),
    st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    st.integers(0, 10**6),
)
def test_no_crop_is_enlarged_by_the_decoding(size, image_size, scale, position):
    height, width = size
    settings = AugmentationSettings(image_size, tuple(scale), scaled_decoding=True)
    box = crop_box(draw_uniforms(0, 0, [position])[0], height, width, settings.random_crop_scale)
    most = factor_of_image(height, width, settings)
    factor = factor_of_view(box, image_size, most)
    assert factor == 1 or factor <= most and min(box[2:]) >= factor * image_size
    if factor > 1:
        shape = math.ceil(height / factor), math.ceil(width / factor)
        smaller = scaled_box(box, factor, *shape)
        assert min(smaller[2:]) >= image_size and min(smaller[:2]) >= 0
        for whole, place, length, end in zip(box[:2], smaller[:2], smaller[2:], shape, strict=True):
            assert place + length <= end and abs(place - whole / factor) <= 1
        assert all(abs(one - other / factor) <= 1 for one, other in zip(smaller[2:], box[2:], strict=True))


# --- pixels -----------------------------------------------------------------------------------------------------------


LONG_ENOUGH = {name: each for name, each in JPEGS.items() if min(each[1].size) > 8}
PHOTOGRAPH = encode(picture(330, 250), "JPEG", quality=95)


def test_a_decoding_at_a_part_of_the_size_is_libjpeg_s():
    for name, (encoded, shown) in LONG_ENOUGH.items():
        size = jpeg_size(encoded["bytes"])
        assert size == (shown.height, shown.width, 8), name
        for factor in (2, 4, 8):
            pixels = as_array(decode_pixels(encoded, factor))
            assert pixels.shape == (-(-shown.height // factor), -(-shown.width // factor), 3), (name, factor)
            expected = shown.convert("RGB").reduce(factor)
            if (
                shown.height % factor == shown.width % factor == 0
            ):  # else the last row is less than a pixel, and the first if it is turned
                assert abs(pixels - np.asarray(expected)).mean() < 8, (name, factor)


def test_without_simplejpeg_the_pixels_are_the_same(monkeypatch):
    names = [(name, factor) for name in LONG_ENOUGH for factor in (2, 4, 8)]
    expected = [as_array(decode_pixels(JPEGS[name][0], factor)) for name, factor in names]
    monkeypatch.setattr(decoding, "simplejpeg", None)
    for (name, factor), pixels in zip(names, expected, strict=True):
        np.testing.assert_array_equal(as_array(decode_pixels(JPEGS[name][0], factor)), pixels, err_msg=name)


def test_only_a_jpeg_has_a_size_to_be_decoded_at():
    for format in ("PNG", "WEBP", "TIFF", "GIF"):
        assert jpeg_size(encode(picture(40, 30), format)["bytes"]) is None, format
    for encoded in (b"", b"no picture"):
        assert jpeg_size(encoded) is None
    with pytest.raises(BadImageError):
        jpeg_size(PHOTOGRAPH["bytes"][:20])


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_shown_at_a_half_is_decoded_at_parts_of_that(monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 250 * 330 - 1)
    assert jpeg_size(PHOTOGRAPH["bytes"]) == JpegSize(125, 165, 4)
    for factor, shape in {1: (3, 125, 165), 2: (3, 63, 83), 4: (3, 32, 42)}.items():
        assert decode_pixels(PHOTOGRAPH, factor).shape == shape
    assert DecodedImage(PHOTOGRAPH, SCALED)._pixels[4].shape == (3, 32, 42)  # √(0.3 × 125 × 165) is 78.7


def test_views_are_close_to_those_of_the_whole_image():
    for orientation in (1, 6):
        encoded = encode(picture(320, 256), "JPEG", quality=95, exif=oriented(orientation))
        image, whole = DecodedImage(encoded, SCALED), decode_pixels(encoded)
        assert (image.height, image.width) == tuple(whole.shape[1:]) == ((320, 256) if orientation == 6 else (256, 320))
        for uniforms in draw_uniforms(0, 0, range(40)):
            box = crop_box(uniforms, image.height, image.width, SCALED.random_crop_scale)
            factor = factor_of_view(box, 16, 8)
            smaller = scaled_box(box, factor, image.height // factor, image.width // factor)
            shown, expected = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
            image.crop(box, shown)
            crop_and_resize(whole, tuple(factor * length for length in smaller), expected)
            difference = abs(as_array(shown) - as_array(expected))
            assert factor in (4, 8) and difference.mean() < 8 and difference.max() < 60, (orientation, box)


def test_small_and_other_images_are_the_same_to_the_bit():
    images = [
        encode(picture(320, 256)),
        encode(picture(50, 40), "JPEG"),
        encode(grey(7)),
        encode(picture(90, 30), "GIF"),
    ]
    views = [View(position % len(images), 0, position) for position in range(24)]
    one, other = (ViewDataset(undecoded(images), settings).__getitems__(views) for settings in (WHOLE, SCALED))
    assert torch.equal(one["pixel_values"], other["pixel_values"])


# --- views ------------------------------------------------------------------------------------------------------------


def photographs(bad=(5, 11)):
    """48 photographs of several sizes, upright or not, some of them cut off, and some that are no JPEGs."""
    images = []
    for row in range(48):
        image = picture(150 + 7 * row, 420 - 6 * row)
        options = {"exif": oriented(row % 8 + 1), "progressive": row % 3 == 0}
        encoded = encode(image, "PNG") if row % 6 == 4 else encode(image, "JPEG", **options)
        images.append({"bytes": cut(encoded, 0.6), "path": None} if row in bad else encoded)
    return undecoded(images)


@pytest.fixture(scope="module")
def dataset() -> ViewDataset:
    return ViewDataset(photographs(), SCALED, seed=5)


@pytest.fixture(scope="module")
def expected(dataset) -> dict:
    """Each view alone."""
    return by_position([dataset.__getitems__([view]) for view in views_of(dataset, epoch=1)])


@pytest.mark.parametrize(("num_workers", "batch_size"), [(0, 8), (0, 48), (2, 16)])
def test_workers_and_company_change_nothing(dataset, expected, num_workers, batch_size):
    assert by_position(loader(dataset, batch_size, num_workers)) == expected


def test_the_order_of_views_changes_nothing(dataset, expected):
    views = views_of(dataset, epoch=1)
    for _ in range(3):
        mixed_up = [views[index] for index in torch.randperm(48)]
        assert by_position([dataset.__getitems__(mixed_up)]) == expected


def test_kept_images_are_seen_alike(dataset, expected):
    kept = ViewDataset(dataset.rows, SCALED, seed=5, keep_decoded=True)
    for batch_size in (8, 16):
        assert by_position(loader(kept, batch_size)) == expected


def test_nearly_all_views_of_an_image_share_a_decoding(monkeypatch):
    factors = []

    def counting(image, factor=1):
        factors.append(factor)
        return decode_pixels(image, factor)

    monkeypatch.setattr(datasets_module, "decode_pixels", counting)
    rows = undecoded([encode(picture(244, 240), "JPEG")])  # √(0.3 × 244 × 240) is 132.5, 8.3 times the side
    ViewDataset(rows, SCALED).__getitems__([View(0, 0, position) for position in range(200)])
    assert factors == [8, 4]


def test_a_photograph_that_is_cut_off_is_bad_at_any_size():
    for factor in (1, 2, 4, 8):
        with pytest.raises(BadImageError, match="truncated"):
            decode_pixels({"bytes": cut(PHOTOGRAPH, 0.7), "path": None}, factor)


def test_a_missing_file_is_a_bad_image(tmp_path):
    with pytest.raises(BadImageError, match="gone.jpg"):
        DecodedImage({"bytes": None, "path": str(tmp_path / "gone.jpg")}, SCALED)


def test_evaluation_decodes_the_whole_image():
    assert decode_image(PHOTOGRAPH).size == (330, 250)


# --- by itself --------------------------------------------------------------------------------------------------------


def test_half_of_the_images_must_be_large_jpegs(monkeypatch):
    monkeypatch.setattr("modeling_deit_distill.data.inspection.LARGE", 330 * 250)
    large_png, small, broken = (
        encode(picture(330, 250)),
        encode(picture(329, 250), "JPEG"),
        {"bytes": b"", "path": None},
    )
    for others, is_large in [
        ([], True),
        ([small], True),
        ([small, small], False),
        ([large_png, large_png], False),
        ([broken, {"bytes": None, "path": "gone.jpg"}], False),
    ]:
        assert has_large_photographs(undecoded([PHOTOGRAPH, *others])) == is_large
