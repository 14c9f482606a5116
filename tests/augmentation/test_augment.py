"""What happens to pixels after the crop: each operation against Pillow's; augment() whatever the batch or device."""

import itertools

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from timm.data import auto_augment
from timm.data.mixup import mixup_target

from modeling_deit_distill.augmentation import augment as augmentation
from modeling_deit_distill.augmentation.augment import augment, erase, flip, mix, mix_labels, rand_augment
from modeling_deit_distill.augmentation.geometry import FILL
from modeling_deit_distill.augmentation.operations import _histogram
from modeling_deit_distill.data.views import NO_OPERATION, OPERATIONS, AugmentationSettings, Draws, draw, draw_uniforms

S = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # mean and std that leave levels / 255


# ---- images, draws, and Pillow ----


def smooth(seed: int = 0, size: int = S) -> torch.Tensor:
    """A slow wave in each channel; no level differs from its neighbour's by more than 15 at 64 pixels."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    slopes = random.uniform(0.3, 1, (3, 2, 1, 1))
    waves = np.sin(2 * np.pi * (slopes[:, 0] * x + slopes[:, 1] * y + random.random((3, 1, 1))))
    return torch.from_numpy((127 + 100 * waves).round().astype(np.uint8))


def photo(seed: int = 0, size: int = S) -> torch.Tensor:
    """A slow wave with grain, as a photograph has."""
    grain = np.random.default_rng(seed).normal(0, 12, (3, size, size))
    return torch.from_numpy(np.clip(smooth(seed, size).numpy() + grain, 0, 255).astype(np.uint8))


def constant(level: int, size: int = S) -> torch.Tensor:
    return torch.full((3, size, size), level, dtype=torch.uint8)


IMAGES = {
    "smooth": smooth(),
    "photo": photo(),
    "dim": photo(1) // 6 + 3,
    "grey": constant(77),
    "black": constant(0),
    "white": constant(255),
    "two levels": torch.where(photo(2) > 120, 190, 60).to(torch.uint8),
    "black and white": torch.where(photo(3) > 128, 255, 0).to(torch.uint8),
    "one bright pixel": constant(0).index_put(
        (torch.tensor(1), torch.tensor(30), torch.tensor(9)), torch.tensor(255).byte()
    ),
}
ARGUMENTS = {
    "auto_contrast": [None],
    "equalize": [None],
    "invert": [None],
    "posterize": [1, 2, 3, 4],
    "solarize": [0, 1, 26, 128, 255, 256],
    "solarize_add": [0, 99, 110],
    "color": [0.1, 0.19, 1.0, 1.81, 1.9],
    "contrast": [0.1, 0.19, 1.0, 1.81, 1.9],
    "brightness": [0.1, 0.19, 1.0, 1.81, 1.9],
    "sharpness": [0.1, 0.19, 1.0, 1.81, 1.9],
    "shear_x": [-0.3, 0.01, 0.27, 0.3],
    "shear_y": [-0.3, 0.01, 0.27, 0.3],
    "translate_x": [-0.45, 0.13, 0.41, 0.45],
    "translate_y": [-0.45, 0.13, 0.41, 0.45],
}
GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def to_pil(image: torch.Tensor) -> PIL.Image.Image:
    return PIL.Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def from_pil(image: PIL.Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def pillow(image: PIL.Image.Image, name: str, argument: float | None, **options) -> PIL.Image.Image:
    """The operation as timm does it with Pillow."""
    function = getattr(auto_augment, f"{name}_rel" if name.startswith("translate") else name)
    if name in ("posterize", "solarize", "solarize_add"):
        argument = int(argument)
    elif argument is not None:
        argument = float(np.float32(argument))  # what a view is given
    options = {"fillcolor": FILL, "resample": PIL.Image.Resampling.BICUBIC, **options}
    return function(image, *() if argument is None else (argument,), **options)


def chain(*steps: tuple[str, float | None]) -> tuple[np.ndarray, np.ndarray]:
    """The operations and arguments of one view."""
    padded = [*steps, *[(None, None)] * (2 - len(steps))]
    operations = [NO_OPERATION if name is None else OPERATIONS.index(name) for name, _ in padded]
    return np.array([operations]), np.array([[argument or 0 for _, argument in padded]], dtype=np.float32)


def ours(image: torch.Tensor, *steps: tuple[str, float | None]) -> torch.Tensor:
    return rand_augment(image[None].float(), *chain(*steps))[0]


def theirs(image: torch.Tensor, *steps: tuple[str, float | None], **options) -> torch.Tensor:
    picture = to_pil(image)
    for name, argument in steps:
        picture = pillow(picture, name, argument, **options)
    return from_pil(picture)


def fill(size: int = S) -> torch.Tensor:
    return torch.tensor(FILL).float().view(3, 1, 1).expand(3, size, size)


def idle(num_views: int, **changes) -> Draws:
    """Draws that do nothing but for `changes`."""
    nothing = {
        "flip": np.zeros(num_views, dtype=bool),
        "operations": np.full((num_views, 2), NO_OPERATION),
        "arguments": np.zeros((num_views, 2), dtype=np.float32),
        "erased_box": np.zeros((num_views, 4), dtype=np.int64),
        "noise_seed": np.arange(num_views),
    }
    return Draws(**{**nothing, **changes})


def recipe(num_views: int, **settings) -> Draws:
    """The recipe's draws, with erasing half the time so that a few views have it."""
    settings = AugmentationSettings(**{"image_size": S, "random_erasing_prob": 0.5, **settings})
    return draw(settings, 0, 0, range(num_views), draw_uniforms(0, 0, range(num_views)))


def part(draws: Draws, begin: int, end: int) -> Draws:
    mixes = draws.mix_ratio is not None
    return Draws(
        *(getattr(draws, name)[begin:end] for name in ("flip", "operations", "arguments", "erased_box", "noise_seed")),
        draws.mix_ratio[begin // 2 : end // 2] if mixes else None,
        draws.mix_box[begin // 2 : end // 2] if mixes else None,
    )


def photos(num_views: int) -> torch.Tensor:
    return torch.stack([photo(seed) for seed in range(num_views)])


class Device(str):
    """ "cpu" to torch, another kind of device to whoever asks for its type."""

    type = "other"


class Elsewhere(torch.Tensor):
    """A CPU tensor that says it lies on another device, so that the code for whole batches runs here."""

    device = property(lambda self: Device("cpu"))


def elsewhere(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_subclass(Elsewhere)


def fetched(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_subclass(torch.Tensor)


# ---- operations against Pillow ----


@pytest.mark.parametrize("name", ARGUMENTS)
def test_operation_equals_pillow_within_one_level(name):
    worst, shares = {}, {}
    for image, argument in itertools.product(IMAGES, ARGUMENTS[name]):
        result = ours(IMAGES[image], (name, argument))
        difference = (result - theirs(IMAGES[image], (name, argument))).abs()
        worst[image, argument] = difference.max().item()
        shares[image, argument] = (difference > 0).float().mean().item()
        assert torch.equal(result, result.round()) and result.min() >= 0 and result.max() <= 255
    assert max(worst.values()) <= 1, worst
    if name not in GEOMETRIC:
        assert max(shares.values()) < 0.05, shares  # a level of auto_contrast's rounding


def test_fill_is_the_mean_colour_as_in_the_recipe():
    assert tuple(round(255 * mean) for mean in MEAN) == FILL


def test_every_operation_is_tested_and_does_something():
    assert {*ARGUMENTS, "rotate"} == set(OPERATIONS)
    image = IMAGES["dim"]
    for name, arguments in {**ARGUMENTS, "rotate": [5]}.items():
        assert any(not torch.equal(ours(image, (name, argument)), image.float()) for argument in arguments), name


@pytest.mark.parametrize("size", [16, 33, 224])
def test_operation_equals_pillow_at_other_sizes(size):
    image, worst = photo(4, size), {}
    for name, arguments in ARGUMENTS.items():
        step = (name, arguments[-1])
        worst[name] = (ours(image, step) - theirs(image, step)).abs().max().item()
    assert max(worst.values()) <= 1, worst


def test_factor_one_changes_nothing():
    for name in ("color", "contrast", "brightness", "sharpness"):
        assert torch.equal(ours(photo(), (name, 1.0)), photo().float()), name


def test_posterize_at_one_bit_is_two_levels():
    assert ours(photo(), ("posterize", 1)).unique().tolist() == [0, 128]


def test_solarize_by_hand():
    image = constant(0).clone()
    image[0, 0, :4] = torch.tensor([99, 100, 101, 255], dtype=torch.uint8)
    assert ours(image, ("solarize", 100))[0, 0, :5].tolist() == [99, 155, 154, 0, 0]
    assert ours(image, ("solarize_add", 50))[0, 0, :5].tolist() == [149, 150, 151, 255, 50]


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


# ---- chains of two ----


CHAINS = [
    (("invert", None), ("solarize", 26)),
    (("solarize", 26), ("invert", None)),
    (("posterize", 1), ("equalize", None)),
    (("equalize", None), ("posterize", 1)),
    (("brightness", 1.9), ("contrast", 0.1)),
    (("contrast", 0.1), ("brightness", 1.9)),
    (("sharpness", 1.9), ("color", 0.1)),
    (("invert", None), ("invert", None)),
    (("solarize_add", 99), ("solarize_add", 99)),
    (("invert", None), ("translate_x", 0.25)),  # what is filled is not inverted
    (("translate_x", 0.25), ("invert", None)),  # and here it is
    (("auto_contrast", None), ("translate_y", -0.25)),
    (("translate_y", -0.25), ("auto_contrast", None)),
]


def test_two_operations_come_in_the_drawn_order():
    image, found = IMAGES["dim"], {}
    for first, second in CHAINS:
        difference = (ours(image, first, second) - theirs(image, first, second)).abs()
        found[first, second] = difference.max().item(), difference.mean().item()
        if first != second:
            assert not torch.equal(ours(image, first, second), ours(image, second, first)), (first, second)
    # A level of the first, passed on by the second.
    assert all(largest <= 2 and mean < 0.1 for largest, mean in found.values()), found


def test_the_second_operation_alone():
    operations, arguments = chain(("invert", None))
    alone = rand_augment(photo()[None].float(), operations[:, ::-1].copy(), arguments)
    assert torch.equal(alone[0], 255 - photo().float())


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


def well_inside(mask: torch.Tensor, margin: int = 3) -> torch.Tensor:
    """(S, S) bool: further than `margin` from where the mask is not set, and from the border."""
    unset = F.pad((~mask).float(), [margin] * 4, value=1.0)
    return F.max_pool2d(unset[None], 2 * margin + 1, stride=1)[0] == 0


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


# ---- whole batches and single views ----


def test_a_chain_does_not_depend_on_the_batch():
    draws, images = recipe(96, mixup_alpha=0, cutmix_alpha=0), photos(96).float()
    is_geometric = np.isin(draws.operations, [OPERATIONS.index(name) for name in GEOMETRIC])
    assert is_geometric.all(axis=1).sum() > 1 and (~is_geometric).all(axis=1).sum() > 1
    assert set(draws.operations.flatten()) == {NO_OPERATION, *range(15)}
    together = rand_augment(images, draws.operations, draws.arguments)
    for view in range(96):
        here = slice(view, view + 1)
        assert torch.equal(together[here], rand_augment(images[here], draws.operations[here], draws.arguments[here]))


def test_an_operation_does_not_depend_on_the_batch():
    images = torch.stack([*IMAGES.values()]).float()
    for name in OPERATIONS:
        arguments = np.tile(np.resize(ARGUMENTS.get(name, [-30.0, 7.0, 28.0]), len(images))[:, None], 2)
        arguments = np.where(np.equal(arguments, None), 0, arguments).astype(np.float32)
        operations = np.tile([OPERATIONS.index(name), NO_OPERATION], (len(images), 1))
        for batch in (images, elsewhere(images)):
            together = rand_augment(batch, operations, arguments)
            alone = [rand_augment(images[[i]], operations[[i]], arguments[[i]]) for i in range(len(images))]
            assert torch.equal(together, torch.cat(alone)), name


@pytest.mark.parametrize("mixing", [{}, {"mixup_alpha": 0, "cutmix_alpha": 0}])
def test_a_pair_does_not_depend_on_the_batch(mixing):
    draws, images = recipe(24, **mixing), photos(24)
    whole = augment(images, draws, MEAN, STD)
    for size in (2, 6, 24):
        for begin in range(0, 24, size):
            here = slice(begin, begin + size)
            assert torch.equal(whole[here], augment(images[here], part(draws, begin, begin + size), MEAN, STD))


@pytest.mark.parametrize("mixing", [{}, {"mixup_alpha": 0}, {"cutmix_alpha": 0}, {"mixup_alpha": 0, "cutmix_alpha": 0}])
def test_other_devices_give_what_the_cpu_gives(mixing):
    draws, images = recipe(24, **mixing), photos(24)
    result = augment(elsewhere(images), draws, MEAN, STD)
    assert isinstance(result, Elsewhere)  # so the other path was taken
    torch.testing.assert_close(fetched(result), augment(images, draws, MEAN, STD), rtol=0, atol=1e-5)


def test_flip_marked_views_only():
    images, flipped = photos(5), np.array([True, False, True, True, False])
    for batch in (images, elsewhere(images)):
        result = flip(batch, flipped)
        for view in range(5):
            expected = torch.from_numpy(images[view].numpy()[..., ::-1].copy()) if flipped[view] else images[view]
            assert torch.equal(result[view], expected)
    assert torch.equal(flip(images, np.ones(5, dtype=bool)), images.flip(-1))
    assert torch.equal(flip(images, np.zeros(5, dtype=bool)), images)


def test_histograms_are_the_same_on_every_device():
    bins = (photos(3).flatten(2) + 256 * torch.arange(9).view(3, 3, 1)).int().flatten()
    expected = torch.stack([torch.bincount(channel, minlength=256) for channel in photos(3).flatten(2).flatten(0, 1)])
    assert torch.equal(_histogram(bins, 9 * 256).view(9, 256), expected)
    assert torch.equal(_histogram(elsewhere(bins), 9 * 256).view(9, 256), expected)


# ---- augment ----


def normalised(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(value, dtype=torch.float64).view(3, 1, 1) for value in (MEAN, STD))
    return ((images / 255.0 - mean) / std).float()


def test_without_operations_augment_normalises():
    images = photos(4)
    torch.testing.assert_close(augment(images, idle(4), MEAN, STD), normalised(images), rtol=0, atol=1e-6)
    assert torch.equal(augment(images, idle(4), *PLAIN), images.float() * torch.tensor(1 / 255))


def test_augment_flips_then_transforms_then_normalises_then_erases():
    image, box = photo(), (5, 7, 20, 30)
    draws = idle(1, flip=np.array([True]), erased_box=np.array([box]), noise_seed=np.array([11]))
    draws.operations, draws.arguments = chain(("translate_x", 0.25), ("invert", None))
    result = augment(image[None], draws, MEAN, STD)[0]
    expected = normalised(ours(image.flip(-1), ("translate_x", 0.25), ("invert", None)))
    erased = torch.zeros(S, S, dtype=torch.bool)
    erased[5:25, 7:37] = True
    torch.testing.assert_close(result[:, ~erased], expected[:, ~erased], rtol=0, atol=1e-6)
    assert (result[:, erased] != expected[:, erased]).all()


def test_augment_mixes_last():
    images, draws = photos(2), recipe(2)
    draws.mix_ratio, draws.mix_box = np.array([0.25], dtype=np.float32), np.array([[0, 0, -1, -1]])
    draws.erased_box, draws.flip = np.array([[3, 4, 30, 20], [0, 0, 0, 0]]), np.array([True, False])
    unmixed = part(draws, 0, 2)
    unmixed.mix_ratio = unmixed.mix_box = None
    first, second = augment(images, unmixed, MEAN, STD)
    expected = torch.stack([0.25 * first + 0.75 * second, 0.25 * second + 0.75 * first])
    torch.testing.assert_close(augment(images, draws, MEAN, STD), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("place", [torch.Tensor.clone, elsewhere], ids=["cpu", "elsewhere"])
def test_out_is_used_and_returned(place):
    images, draws = photos(4), recipe(4)
    expected = augment(images, draws, MEAN, STD)
    out = place(torch.full((4, 3, S, S), torch.nan))
    result = augment(place(images), draws, MEAN, STD, out=out)
    assert result is out
    torch.testing.assert_close(fetched(result), expected, rtol=0, atol=1e-5)
    again = augment(place(images), draws, MEAN, STD, out=out)  # nothing of the last batch remains
    torch.testing.assert_close(fetched(again), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("place", [torch.Tensor.clone, elsewhere], ids=["cpu", "elsewhere"])
def test_crops_are_not_modified(place):
    images, draws = place(photos(24)), recipe(24)
    before = images.clone()
    augment(images, draws, MEAN, STD)
    assert torch.equal(images, before)


def test_memory_layout_does_not_matter():
    images, draws = photos(24), recipe(24)
    other = images.contiguous(memory_format=torch.channels_last)
    assert other.stride() != images.stride()
    expected = augment(images, draws, MEAN, STD)
    torch.testing.assert_close(augment(other, draws, MEAN, STD), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(fetched(augment(elsewhere(other), draws, MEAN, STD)), expected, rtol=0, atol=1e-5)


# ---- erasing and its noise ----


def pixel_numbers(size: int) -> torch.Tensor:
    return torch.arange(3 * size * size, dtype=torch.int32).view(3, size, size)


def seed_tensor(seed: int) -> torch.Tensor:
    return torch.tensor(seed, dtype=torch.int32)


def noise(numbers: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    return augmentation.noise(numbers, augmentation._hash(seed))


BOXES = np.array([[0, 0, 0, 0], [5, 9, 11, 40], [0, 0, 63, 1], [40, 20, 24, 44], [0, 0, 0, 0], [63, 63, 1, 1]])
SEEDS = np.array([1, 2, 3, 2**31 - 1, 5, 0])


def boxed(box) -> torch.Tensor:
    inside = torch.zeros(S, S, dtype=torch.bool)
    inside[box[0] : box[0] + box[2], box[1] : box[1] + box[3]] = True
    return inside


@pytest.mark.parametrize("place", [torch.Tensor.clone, elsewhere], ids=["cpu", "elsewhere"])
def test_erasing_fills_the_box_and_nothing_else(place):
    images = place(torch.full((6, 3, S, S), 7.0))
    erase(images, BOXES, SEEDS)
    for image, box, seed in zip(fetched(images), BOXES, SEEDS, strict=True):
        inside = boxed(box)
        assert (image[:, ~inside] == 7).all()
        assert torch.equal(image[:, inside], noise(pixel_numbers(S), seed_tensor(seed))[:, inside])


def test_erased_pixels_are_standard_normal_and_their_own():
    images = torch.full((2, 3, S, S), 100.0)
    erase(images, np.tile([2, 2, 60, 60], (2, 1)), np.array([8, 9]))
    first, second = images[:, :, 2:62, 2:62].flatten(1)
    for values in (first, second):
        assert abs(values.mean()) < 4 / len(values) ** 0.5
        assert values.std() == pytest.approx(1, abs=0.03)
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 4 / len(first) ** 0.5


def test_erased_noise_belongs_to_the_view():
    box = np.array([10, 20, 30, 25])
    alone = torch.zeros(1, 3, S, S)
    erase(alone, box[None], np.array([77]))
    batch = torch.zeros(5, 3, S, S)
    erase(batch, np.tile(box, (5, 1)), np.array([1, 2, 77, 3, 78]))
    assert torch.equal(batch[2], alone[0])
    larger = torch.zeros(1, 3, S, S)
    erase(larger, np.array([[8, 18, 40, 40]]), np.array([77]))
    assert torch.equal(larger[0, :, 10:40, 20:45], alone[0, :, 10:40, 20:45])


def test_nothing_to_erase():
    for images in (photos(2).float(), elsewhere(photos(2).float())):
        erase(images, np.zeros((2, 4), dtype=np.int64), np.array([1, 2]))
        assert torch.equal(images, photos(2).float())


def test_noise_is_normal_and_its_neighbours_independent():
    for seed in (0, 1, 2**31 - 1):
        values = noise(pixel_numbers(224), seed_tensor(seed))
        assert values.shape == (3, 224, 224) and values.dtype == torch.float32 and values.isfinite().all()
        assert stats.kstest(values.flatten().numpy(), "norm").pvalue > 1e-3, seed
        tolerance = 4.5 / values.numel() ** 0.5
        neighbours = [
            (values[..., :-1], values[..., 1:]),
            (values[:, :-1], values[:, 1:]),
            (values[:-1], values[1:]),
            (values[..., :-2], values[..., 2:]),
        ]
        for some, others in neighbours:
            for change in (torch.Tensor.clone, torch.abs):  # signs and sizes
                both = torch.stack([change(some).flatten(), change(others).flatten()])
                assert abs(torch.corrcoef(both)[0, 1]) < 2 * tolerance, seed


def test_noise_of_different_seeds_is_independent():
    seeds = torch.cat([torch.arange(100), 2 ** torch.arange(7, 31), torch.tensor([2**31 - 1])]).int()
    values = noise(torch.arange(4096, dtype=torch.int32), seeds[:, None])
    others = torch.corrcoef(values) - torch.eye(len(seeds))
    assert others.abs().max() < 5.5 / 4096**0.5
    # At one pixel, over seeds, the noise is normal too.
    at_a_pixel = noise(torch.tensor(12345, dtype=torch.int32), torch.arange(50_000, dtype=torch.int32))
    assert stats.kstest(at_a_pixel.numpy(), "norm").pvalue > 1e-3
    assert abs(torch.corrcoef(torch.stack([at_a_pixel[:-1], at_a_pixel[1:]]))[0, 1]) < 4.5 / 50_000**0.5


def test_noise_is_a_pure_function_of_pixel_and_seed():
    numbers, seeds = torch.arange(1000, dtype=torch.int32), torch.tensor([[3], [4]], dtype=torch.int32)
    both = noise(numbers, seeds)
    assert torch.equal(numbers, torch.arange(1000).int()) and seeds.flatten().tolist() == [3, 4]
    torch.manual_seed(1)
    order = torch.randperm(1000)
    assert torch.equal(noise(numbers[order], seeds), both[:, order])
    assert torch.equal(noise(numbers, seed_tensor(4)), both[1])
    assert noise(numbers[17], seed_tensor(3)) == both[0, 17]


# ---- mixup, cutmix and their labels ----


def mixed(images: torch.Tensor, ratios, boxes) -> torch.Tensor:
    images = images.clone()
    mix(images, np.array(ratios, dtype=np.float32), np.array(boxes))
    return images


def test_mixup_by_hand():
    levels = torch.tensor([0, 100, 50, 200], dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, S, S)
    boxes = np.tile([0, 0, -1, -1], (2, 1))
    draws = idle(4, mix_ratio=np.array([0.75, 0.1], dtype=np.float32), mix_box=boxes)
    result = 255 * augment(levels, draws, *PLAIN)
    # 0.75·0 + 0.25·100, 0.75·100 + 0.25·0; 0.1·50 + 0.9·200, 0.1·200 + 0.9·50
    expected = torch.tensor([25.0, 75.0, 185.0, 65.0]).view(4, 1, 1, 1).expand(4, 3, S, S)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-4)


def test_mixup_keeps_all_or_nothing():
    images = torch.rand(4, 3, 8, 8)
    result = mixed(images, [1.0, 0.0], [[0, 0, -1, -1]] * 2)
    torch.testing.assert_close(result, images[[0, 1, 3, 2]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("place", [torch.Tensor.clone, elsewhere], ids=["cpu", "elsewhere"])
def test_cutmix_swaps_the_box_between_partners(place):
    images = photos(8).float()
    boxes = [[10, 20, 30, 15], [0, 0, -1, -1], [0, 0, 0, 0], [0, 0, S, S]]
    result = fetched(mixed(place(images), [0.9, 1.0, 1.0, 0.0], boxes))
    expected = images.clone()
    expected[0, :, 10:40, 20:35], expected[1, :, 10:40, 20:35] = images[1, :, 10:40, 20:35], images[0, :, 10:40, 20:35]
    expected[6], expected[7] = images[7], images[6]
    assert torch.equal(result, expected)


def test_mixup_and_cutmix_in_one_batch():
    images = torch.rand(6, 3, 16, 16)
    ratios, boxes = [0.3, 0.75, 0.6], [[0, 0, -1, -1], [4, 4, 8, 8], [0, 0, -1, -1]]
    result = mixed(images, ratios, boxes)
    for pair in range(3):
        here = slice(2 * pair, 2 * pair + 2)
        alone = mixed(images[here], ratios[pair : pair + 1], boxes[pair : pair + 1])
        torch.testing.assert_close(result[here], alone, rtol=0, atol=1e-7)
    torch.testing.assert_close(result[0], 0.3 * images[0] + 0.7 * images[1])
    assert torch.equal(fetched(mixed(elsewhere(images), ratios, boxes)), result)


def test_labels_are_shared_as_pixels_are():
    draws = recipe(64)
    draws.operations[:], draws.erased_box[:] = NO_OPERATION, 0
    assert 5 < (draws.mix_box[:, 2] >= 0).sum() < 27  # some of each kind
    labels = torch.arange(64)
    levels = (255 * (labels % 2)).view(-1, 1, 1, 1).expand(-1, 3, S, S).to(torch.uint8)
    own = augment(levels, draws, *PLAIN).mean(dim=(1, 2, 3))  # the share of the odd views' white
    own[0::2] = 1 - own[0::2]
    shares = mix_labels(labels, draws.mix_ratio, 64)
    torch.testing.assert_close(shares[labels, labels], own, rtol=0, atol=1e-5)
    torch.testing.assert_close(shares[labels, labels ^ 1], 1 - own, rtol=0, atol=1e-5)
    assert ((shares > 0).sum(dim=1) <= 2).all()


def test_mixed_labels_by_hand():
    labels = torch.tensor([0, 2, 1, 1])
    expected = [[0.75, 0, 0.25], [0.25, 0, 0.75], [0, 1, 0], [0, 1, 0]]
    result = mix_labels(labels, np.array([0.75, 0.375], dtype=np.float32), 3)
    assert result.dtype == torch.float32 and result.tolist() == expected
    assert torch.equal(mix_labels(elsewhere(labels), np.array([0.75, 0.375], dtype=np.float32), 3), result)


def test_mixed_labels_sum_to_one():
    labels = torch.randint(0, 10, (200,))
    ratios = np.random.default_rng(0).random(100).astype(np.float32)
    result = mix_labels(labels, ratios, 10)
    assert result.shape == (200, 10) and result.min() >= 0
    torch.testing.assert_close(result.sum(dim=1), torch.ones(200))


def test_labels_stay_without_mixing():
    labels = torch.tensor([3, 1, 2])
    assert mix_labels(labels, None, 5) is labels


def test_smoothing_in_the_loss_equals_timms_smoothed_targets():
    for labels, smoothing in itertools.product(([4, 1], [2, 2]), (0.0, 0.1)):
        labels, ratio, logits = torch.tensor(labels), np.float32(0.3), 3 * torch.randn(2, 6)
        target = mixup_target(labels, 6, lam=float(ratio), smoothing=smoothing)  # timm mixes the first with the last
        expected = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
        loss = F.cross_entropy(logits, mix_labels(labels, np.array([ratio]), 6), label_smoothing=smoothing)
        torch.testing.assert_close(loss, expected)
