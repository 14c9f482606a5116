"""Translation, shear and rotation against Pillow's, alone and in pairs."""

import itertools

import PIL.Image
import pytest
import torch
from helpers.augmented import IMAGES, S, constant, fill, ours, photo, smooth, theirs, well_inside

from modeling_deit_distill.augmentation.geometry import FILL


@pytest.mark.parametrize("name", ["translate_x", "translate_y"])
def test_translation_by_whole_pixels_is_exact(name):
    image = photo().float()
    for pixels in (-28, -13, -1, 0, 1, 7, 28):
        expected = fill().clone()
        kept = slice(max(pixels, 0), S + min(pixels, 0))  # of the source
        moved = slice(max(-pixels, 0), S + min(-pixels, 0))
        if name == "translate_x":
            expected[:, :, moved] = image[:, :, kept]
        else:
            expected[:, moved] = image[:, kept]
        assert torch.equal(ours(photo(), (name, pixels / S)), expected), pixels
        assert torch.equal(theirs(photo(), (name, pixels / S)), expected), pixels  # and so is Pillow's


@pytest.mark.parametrize("name, axis", [("shear_x", 1), ("shear_y", 2)])
def test_shear_fills_the_same_corner_as_pillow(name, axis):
    white = constant(255)
    for slope in (-0.3, 0.21):
        filled = (ours(white, (name, slope)) == fill()).all(dim=0)
        assert torch.equal(filled, (theirs(white, (name, slope)) == fill()).all(dim=0))
        assert filled.float().mean() == pytest.approx(abs(slope) / 2, abs=0.01)  # a triangle
        along = filled.sum(dim=2 - axis)
        assert along[-1] > 0.9 * abs(slope) * S and along[0] <= 1


# Rotation: Pillow resamples with the cubic kernel of a = -1 and cuts fractions off, torch with a = -0.75 and we round.
# So on a smooth image levels differ by up to 2 and by half a level on average; on an edge from 0 to 255 by a tenth.
def test_rotation_equals_pillow_within_interpolation():
    # Largest and mean difference allowed.
    allowed = {"smooth": (smooth(), 2, 0.6), "photo": (photo(), 6, 1), "edges": (IMAGES["black and white"], 32, 32)}
    found = {}
    for (name, (image, _, _)), degrees in itertools.product(allowed.items(), (-30, -13, 2, 11, 27, 30)):
        difference = (ours(image, ("rotate", degrees)) - theirs(image, ("rotate", degrees))).abs()
        found[name, degrees] = difference.max().item(), difference.mean().item()
    for (name, _), (largest, mean) in found.items():
        assert largest <= allowed[name][1] and mean < allowed[name][2], found


def test_rotation_fills_the_same_corners_as_pillow():
    for degrees in (-30, 11, 30):
        result, expected = ours(constant(255), ("rotate", degrees)), theirs(constant(255), ("rotate", degrees))
        assert torch.equal(result, expected), degrees
        corners = result[:, [0, 0, -1, -1], [0, -1, 0, -1]]
        assert torch.equal(corners, torch.tensor(FILL).float()[:, None].expand(3, 4)), degrees


def test_rotation_by_nothing_is_exact():
    for name, image in IMAGES.items():
        assert torch.equal(ours(image, ("rotate", 0.0)), image.float()), name


TURNS = [
    (("rotate", 25.0), ("shear_x", 0.27)),
    (("shear_x", 0.27), ("rotate", 25.0)),
    (("rotate", -28.0), ("rotate", 20.0)),
    (("rotate", 25.0), ("translate_y", 0.41)),
    (("translate_y", 0.41), ("rotate", 25.0)),
    (("shear_x", -0.27), ("shear_y", 0.3)),
    (("shear_y", 0.3), ("shear_x", -0.27)),
    (("translate_x", 0.41), ("translate_x", -0.41)),  # what was pushed out does not come back
    (("translate_x", -0.41), ("translate_y", 0.27)),
    (("shear_y", 0.29), ("translate_x", 0.37)),
]


def test_two_geometric_operations_equal_pillows_in_sequence():
    found = {}
    for first, second in TURNS:
        # Pillow without interpolation says what either stage fills; near that border interpolation differs by nature.
        nearest = {"fillcolor": (0, 0, 0), "resample": PIL.Image.Resampling.NEAREST}
        shown = theirs(constant(255), first, second, **nearest)[0] > 0
        inside, outside = well_inside(shown), well_inside(~shown)
        assert inside.float().mean() > 0.3 and outside.any()
        result, expected = ours(smooth(), first, second), theirs(smooth(), first, second)
        difference = (result - expected).abs()[:, inside]
        found[first, second] = difference.max().item(), difference.mean().item()
        assert torch.equal(result[:, outside], fill()[:, outside]), (first, second)
    # Pillow cuts fractions off twice, half a level each on average, and rotation comes on top as above.
    assert all(largest <= 5 and mean < 1.2 for largest, mean in found.values()), found


def test_there_and_back_keeps_what_was_never_outside():
    result = ours(photo(), ("translate_x", 0.25), ("translate_x", -0.25))
    expected = photo().float()
    expected[:, :, :16] = fill()[:, :, :16]
    assert torch.equal(result, expected)
