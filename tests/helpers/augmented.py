"""Images, draws given by hand, and what Pillow and we make of them."""

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from timm.data import auto_augment

from modeling_deit_distill.augmentation.augment import rand_augment
from modeling_deit_distill.augmentation.geometry import FILL
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
    """The draws of the views from `begin` to `end`."""
    views, pairs = slice(begin, end), slice(begin // 2, end // 2)
    places = {name: pairs if name in ("mix_ratio", "mix_box") else views for name in vars(draws)}
    return Draws(**{name: None if value is None else value[places[name]] for name, value in vars(draws).items()})


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


def well_inside(mask: torch.Tensor, margin: int = 3) -> torch.Tensor:
    """(S, S) bool: further than `margin` from where the mask is not set, and from the border."""
    unset = F.pad((~mask).float(), [margin] * 4, value=1.0)
    return F.max_pool2d(unset[None], 2 * margin + 1, stride=1)[0] == 0


# ---- augment ----


def normalised(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(value, dtype=torch.float64).view(3, 1, 1) for value in (MEAN, STD))
    return ((images / 255.0 - mean) / std).float()
