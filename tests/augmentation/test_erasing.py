"""Erased boxes and their noise."""

import numpy as np
import pytest
import torch
from helpers.augmented import S, elsewhere, fetched, photos
from scipy import stats

from modeling_deit_distill.augmentation import augment as augmentation
from modeling_deit_distill.augmentation.augment import erase


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
