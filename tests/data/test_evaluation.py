"""The evaluation transform and batches of evaluation."""

import traceback

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
import torch
from helpers.images import encode, grey, picture, undecoded, with_bad_rows
from torch.utils.data import DataLoader
from transformers import AutoImageProcessor

from modeling_deit_distill import InputError
from modeling_deit_distill.data.datasets import (
    collate,
)
from modeling_deit_distill.data.evaluation import (
    EvaluationDataset,
    ImageDataset,
    collate_images,
    evaluation_processor,
    evaluation_transform,
)

BICUBIC = PIL.Image.Resampling.BICUBIC
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# --- the evaluation transform -----------------------------------------------------------------------------------------


def test_evaluation_by_hand():
    # resized: the shorter side at image_size / crop_pct, the other in proportion; corner: half of what is left over
    for size, image_size, crop_pct, resized, corner in [
        ((600, 400), 224, 0.875, (384, 256), (80, 16)),
        ((300, 450), 224, 0.875, (256, 384), (16, 80)),
        ((120, 80), 32, 1.0, (48, 32), (8, 0)),
        ((80, 100), 32, 0.8, (40, 50), (4, 9)),
    ]:
        image = picture(*size)
        pixels = evaluation_transform(evaluation_processor(image_size, crop_pct))(image)
        assert pixels.shape == (3, image_size, image_size) and pixels.dtype == torch.float32
        left, top = corner
        box = (left, top, left + image_size, top + image_size)
        crop = image.resize(resized, PIL.Image.Resampling.BICUBIC).crop(box)
        levels = 255 * (pixels.permute(1, 2, 0).numpy() * IMAGENET_STD + IMAGENET_MEAN)
        # PIL and torch round apart.
        np.testing.assert_allclose(levels, np.asarray(crop), rtol=0, atol=2.01, err_msg=f"{size}")


def test_evaluation_uses_imagenet_s_statistics():
    pixels = evaluation_transform(evaluation_processor(8))(PIL.Image.new("RGB", (9, 12), (255, 51, 0)))
    # (1 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (0 - 0.406) / 0.225
    for channel, value in zip(pixels, (2.24891, -1.14286, -1.80444), strict=True):
        torch.testing.assert_close(channel, torch.full((8, 8), value), atol=1e-4, rtol=0)


def test_evaluation_with_other_statistics():
    processor = evaluation_processor(8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    torch.testing.assert_close(evaluation_transform(processor)(grey(255)), torch.ones(3, 8, 8))


def test_the_saved_processor_is_the_same_transform(tmp_path):
    processor = evaluation_processor(32, 0.8)
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    image = picture(80, 100)
    assert torch.equal(evaluation_transform(loaded)(image), evaluation_transform(processor)(image))


# --- batches of evaluation --------------------------------------------------------------------------------------------


def test_evaluation_rows():
    seen = []

    def transform(image):
        seen.append(image.mode)
        return torch.full((3, 2, 2), float(image.getpixel((0, 0))[0]))

    dataset = EvaluationDataset(undecoded([encode(grey(level)) for level in (7, 8, 9)], [1, 0, 1]), transform)
    assert len(dataset) == 3
    batch = collate([dataset[np.int64(2)], dataset[0]])
    assert seen == ["RGB", "RGB"]
    assert set(batch) == {"pixel_values", "labels"}
    assert batch["pixel_values"].shape == (2, 3, 2, 2)
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [9.0, 7.0]
    assert batch["labels"].dtype == torch.int64 and batch["labels"].tolist() == [1, 1]


def bad_validation() -> EvaluationDataset:
    return EvaluationDataset(with_bad_rows(4, {2: b""}), evaluation_transform(evaluation_processor(8)))


def test_a_bad_image_makes_evaluation_impossible():
    dataset = bad_validation()
    assert dataset[1]["pixel_values"].shape == (3, 8, 8)
    with pytest.raises(InputError) as caught:
        dataset[2]
    message = str(caught.value)
    assert "validation row 2 (2.png)" in message and "the file is empty" in message and "\n" not in message


def test_a_bad_image_in_a_worker_is_one_line_too():
    with pytest.raises(InputError) as caught:
        list(DataLoader(bad_validation(), batch_size=2, collate_fn=collate, num_workers=1))
    assert str(caught.value).startswith("validation row 2 (2.png)") and "\n" not in str(caught.value)
    traceback.clear_frames(
        caught.tb
    )  # frees the iterator; the garbage collector would wait five seconds for its worker


# --- images to predict ------------------------------------------------------------------------------------------------


def test_images_to_predict_are_shown_as_held_out_ones_and_bad_ones_are_no_error():
    rows = undecoded([encode(picture(40, 30)), encode(picture(30, 40)), b"no image"], [0, 0, 0])
    transform = evaluation_transform(evaluation_processor(16))
    images = [rows[0]["image"], "empty file", rows[1]["image"], rows[2]["image"]]
    dataset, held_out = ImageDataset(images, transform), EvaluationDataset(rows, transform)
    batch = collate_images([dataset[row] for row in range(len(dataset))])
    assert batch["rows"] == [0, 2]
    torch.testing.assert_close(batch["pixel_values"][1], held_out[1]["pixel_values"], rtol=0, atol=0)
    assert list(batch["errors"]) == [1, 3] and batch["errors"][1] == "empty file"
    assert "cannot identify it as an image" in batch["errors"][3]
    assert collate_images([dataset[1]]) == {"rows": [], "pixel_values": None, "errors": {1: "empty file"}}


def test_images_of_several_sizes_do_not_fit_into_a_batch():
    samples = [{"row": row, "pixel_values": torch.zeros(3, 8, 8 + row)} for row in range(2)]
    with pytest.raises(InputError, match=r"several sizes \(\(3, 8, 8\), \(3, 8, 9\)\).*--batch_size 1"):
        collate_images(samples)
