"""How images are decoded: alike in training and evaluation, and with a reason where that fails."""

import io

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
from helpers.images import encode, grey
from helpers.odd_images import BOMB, BROKEN, JPEGS, LOSSLESS, ORIENTATION_IN_XMP, PHOTO, TURNED, as_array, oriented
from transformers.image_utils import load_image

from modeling_deit_distill.data.decoding import BadImageError, decode_image, decode_pixels, decoder_versions


def test_images_are_upright():
    stored = PIL.Image.new("RGB", (32, 16), "white")
    stored.paste((0, 0, 0), (0, 0, 16, 16))  # the left half is dark
    for orientation, size, dark, light in [
        (1, (32, 16), (0, 0), (31, 15)),
        (3, (32, 16), (31, 15), (0, 0)),  # half a turn
        (6, (16, 32), (0, 0), (15, 31)),  # a quarter clockwise: the left side comes to the top
        (8, (16, 32), (15, 31), (0, 0)),
    ]:
        image = decode_image(encode(stored, "JPEG", exif=oriented(orientation)))
        assert image.size == size, orientation
        assert max(image.getpixel(dark)) < 30 and min(image.getpixel(light)) > 225, orientation


def test_every_mode_becomes_rgb_as_in_a_pipeline():
    for image, colour in [
        (PIL.Image.new("L", (2, 2), 77), (77, 77, 77)),
        (PIL.Image.new("LA", (2, 2), (77, 255)), (77, 77, 77)),
        (PIL.Image.new("1", (2, 2), 1), (255, 255, 255)),
        (PIL.Image.new("RGBA", (2, 2), (10, 20, 30, 255)), (10, 20, 30)),
        (PIL.Image.new("RGB", (2, 2), (10, 20, 30)).quantize(), (10, 20, 30)),  # a palette
    ]:
        encoded = encode(image)
        decoded = decode_image(encoded)
        assert decoded.mode == "RGB" and decoded.getpixel((1, 1)) == colour, image.mode
        assert np.array_equal(decoded, load_image(PIL.Image.open(io.BytesIO(encoded["bytes"])))), image.mode


def test_an_image_given_by_its_path(tmp_path):
    grey(50).save(tmp_path / "x.png")
    assert decode_image({"bytes": None, "path": str(tmp_path / "x.png")}).getpixel((0, 0)) == (50, 50, 50)


def both_ways(image: dict) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(decode_image(image)).astype(int), as_array(decode_pixels(image))


def test_training_and_evaluation_see_the_same_pixels():
    for name, (encoded, shown) in LOSSLESS.items():
        for pixels in both_ways(encoded):
            np.testing.assert_array_equal(pixels, np.asarray(shown.convert("RGB")), err_msg=name)


def test_training_and_evaluation_see_the_same_jpeg():
    differences = {}
    for name, (encoded, shown) in JPEGS.items():
        for_evaluation, for_training = both_ways(encoded)
        assert for_training.shape == for_evaluation.shape, name
        differences[name] = abs(for_training - for_evaluation).max()
        assert abs(for_evaluation - np.asarray(shown.convert("RGB"))).mean() < 6, name
    assert max(differences.values()) <= 2, differences


def why(decode, image: dict) -> str:
    """Why an image cannot be decoded."""
    with pytest.raises(BadImageError) as caught:
        decode(image)
    reason = str(caught.value)
    assert reason and "\n" not in reason
    return reason


def as_text(orientation: int) -> PIL.PngImagePlugin.PngInfo:
    """EXIF in a PNG's text, as ImageMagick writes it."""
    exif, info = oriented(orientation).tobytes(), PIL.PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(exif):8d}\n{exif.hex()}\n")
    return info


def test_an_orientation_is_found_wherever_it_stands():
    for format, options in [
        ("JPEG", {"xmp": ORIENTATION_IN_XMP}),
        ("WEBP", {"xmp": ORIENTATION_IN_XMP}),
        ("WEBP", {"exif": oriented(6)}),
        ("PNG", {"pnginfo": as_text(6)}),
    ]:
        for pixels in both_ways(encode(PHOTO, format, **options)):
            assert pixels.shape == (80, 60, 3), (format, *options)
            assert abs(pixels - np.asarray(TURNED)).mean() < 6, (format, *options)


def test_a_broken_exif_block_spoils_no_image():
    for format in ("PNG", "WEBP"):
        for pixels in both_ways(encode(PHOTO, format, exif=b"Exif\0\0nonsense", lossless=True)):
            np.testing.assert_array_equal(pixels, np.asarray(PHOTO), err_msg=format)


def test_sixteen_bits_are_scaled():
    levels = np.array([[0, 256, 257 * 77, 257 * 200, 65535]] * 2, dtype=np.uint16)
    expected = np.tile([[[0], [0], [77], [200], [255]]], (2, 1, 3))
    for format in ("PNG", "TIFF", "PPM"):
        for pixels in both_ways(encode(PIL.Image.fromarray(levels), format)):
            np.testing.assert_array_equal(pixels, expected, err_msg=format)


def refuse(*args):
    raise ValueError("this decoder is strict")


def test_what_simplejpeg_refuses_is_read_by_pillow(monkeypatch):
    monkeypatch.setattr("simplejpeg.decode_jpeg", refuse)
    for name, (encoded, _) in JPEGS.items():
        for_evaluation, for_training = both_ways(encoded)
        np.testing.assert_array_equal(for_training, for_evaluation, err_msg=name)


def test_without_simplejpeg_the_pixels_are_the_same(monkeypatch):
    expected = {name: as_array(decode_pixels(encoded)) for name, (encoded, _) in JPEGS.items()}
    monkeypatch.setattr("modeling_deit_distill.data.decoding.simplejpeg", None)
    for name, (encoded, _) in JPEGS.items():
        np.testing.assert_array_equal(as_array(decode_pixels(encoded)), expected[name], err_msg=name)
    assert decoder_versions() == [f"pillow {PIL.__version__}"]


def test_ordinary_jpegs_are_read_by_simplejpeg(monkeypatch):
    marked = np.full((2, 3, 3), 7, np.uint8)
    monkeypatch.setattr("simplejpeg.decode_jpeg", lambda *args: marked)
    for name in ("jpeg", "jpeg, progressive", "jpeg, grey", "jpeg, orientation 1"):
        np.testing.assert_array_equal(as_array(decode_pixels(JPEGS[name][0])), marked, err_msg=name)


def test_no_decoder_is_deprecated(recwarn):
    decode_pixels(JPEGS["jpeg"][0])
    assert not [warning for warning in recwarn if issubclass(warning.category, DeprecationWarning)]


def test_pillow_need_not_look_at_a_plain_jpeg(monkeypatch):
    monkeypatch.setattr("modeling_deit_distill.data.decoding._open", refuse)
    for name in ("jpeg", "jpeg, coarse", "jpeg, progressive", "jpeg, not in YCbCr", "jpeg, grey"):
        encoded, shown = JPEGS[name]
        pixels = as_array(decode_pixels(encoded))
        np.testing.assert_allclose(pixels, np.asarray(shown.convert("RGB")), atol=60, err_msg=name)


def test_every_cut_of_a_jpeg_is_bad_in_both_ways():
    encoded = JPEGS["jpeg"][0]["bytes"]
    headers = range(2, encoded.index(b"\xff\xda"))  # cuts within the header, which is read by hand
    for length in headers:
        cut_off = {"bytes": encoded[:length], "path": None}
        assert why(decode_pixels, cut_off) == why(decode_image, cut_off), length


both_decoders = pytest.mark.parametrize("decode", [decode_image, decode_pixels])


@both_decoders
def test_a_bad_image_has_a_reason(decode):
    for name, (encoded, word) in BROKEN.items():
        assert word in why(decode, {"bytes": encoded, "path": None}), name


@both_decoders
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_not_opened(monkeypatch, decode):
    for limit in (9000, 4000):  # more pixels than that, and more than twice as many
        monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", limit)
        assert "decompression bomb" in why(decode, BOMB), limit


@both_decoders
def test_a_jpeg_that_claims_to_be_huge_takes_no_memory(decode):
    encoded = bytearray(JPEGS["jpeg"][0]["bytes"])
    frame = encoded.index(b"\xff\xc0")
    encoded[frame + 5 : frame + 9] = b"\xff\xdc\xff\xdc"  # height and width 65500: 13 GB
    assert "decompression bomb" in why(decode, {"bytes": bytes(encoded), "path": None})


@both_decoders
def test_without_a_limit_there_is_no_bomb(monkeypatch, decode):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    assert decode(BOMB) is not None


@both_decoders
def test_a_missing_file_has_a_reason(decode, tmp_path):
    path = str(tmp_path / "gone.jpg")
    assert path in why(decode, {"bytes": None, "path": path})


@both_decoders
def test_the_reason_is_the_same_each_time(decode):
    assert "0x" not in why(decode, {"bytes": b"no picture", "path": None})
