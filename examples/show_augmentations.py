"""Look at what training sees before spending days on it.

    python examples/show_augmentations.py RECIPE.yaml [--key value ...]

Takes the arguments of `train_deit.py` and writes `<output_dir>/augmentations.png`: in each row an original, three of
its views, and a view mixed with its partner's.
"""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from modeling_deit_distill.augmentation.augment import augment
from modeling_deit_distill.data.bad_images import describe_row
from modeling_deit_distill.data.datasets import ViewDataset
from modeling_deit_distill.data.decoding import decode_image
from modeling_deit_distill.data.views import AugmentationSettings, View, ViewSampler, labels_to_balance
from modeling_deit_distill.errors import BadImageError, InputError
from modeling_deit_distill.plan import Plan
from modeling_deit_distill.screen import keep_libraries_quiet
from modeling_deit_distill.script import run_script

NUM_IMAGES, NUM_TRIED = 6, 256
# Pixels stay in 0 ... 1; erased boxes hold the noise that the normalised image would.
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
TILE, GAP = 160, 4
# It draws on the CPU, whatever the recipe trains on: several GPUs or a GPU's precision are no reason to refuse it.
ON_CPU = ("--use_cpu", "true", "--fp16", "false")


def main(arguments: list[str]):
    keep_libraries_quiet()
    plan = Plan.from_arguments([*arguments, *ON_CPU])
    plan.data_args.streaming = False  # a few images are looked at, again and again
    rows, settings, seed = plan.data.train, plan.views.settings, plan.args.views_seed
    sampler = ViewSampler(len(rows), 1, repeats=1, seed=seed, labels=labels_to_balance(plan.args, rows))
    images = readable_images(rows, [view.image for view in sampler])
    columns = [[decode_image(rows[image]["image"]) for image in images]]
    unmixed = dataclasses.replace(settings, mixup_alpha=0.0, cutmix_alpha=0.0)
    columns += [views_of(rows, unmixed, seed, epoch, images) for epoch in range(3)]
    if settings.mixes:
        columns.append(views_of(rows, settings, seed, 3, images))
    path = Path(plan.args.output_dir, "augmentations.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_grid(columns).save(path)
    print(path)


def readable_images(rows, order: list[int]) -> list[int]:
    """The first images of an order that can be read, again from the first where there are too few.

    Raises:
        InputError: none can be read, of the first `NUM_TRIED`.
    """
    images, reasons = [], []
    for image in order[:NUM_TRIED]:
        try:
            decode_image(rows[image]["image"])
            images.append(image)
        except BadImageError as error:
            reasons.append(f"{describe_row(rows, image)}: {error}")
        if len(images) == NUM_IMAGES:
            break
    if not images:
        raise InputError(
            f"none of {len(reasons):,} training image(s) can be read; the first, {reasons[0]}; repair or remove them"
        )
    return list(itertools.islice(itertools.cycle(images), NUM_IMAGES))


def views_of(rows, settings: AugmentationSettings, seed: int, epoch: int, images: list[int]) -> list[PIL.Image.Image]:
    """One view of each image, as the model gets it."""
    views = [View(image, epoch, position) for position, image in enumerate(images)]
    batch = ViewDataset(rows, settings, seed).__getitems__(views)
    pixels = augment(batch["pixel_values"], batch["draws"], MEAN, STD)
    pixels = pixels * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    levels = (pixels.clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).numpy()
    return [PIL.Image.fromarray(view) for view in levels]


def draw_grid(columns: list[list[PIL.Image.Image]]) -> PIL.Image.Image:
    """Columns of pictures, each fitted into a tile."""
    side = TILE + GAP
    grid = PIL.Image.new("RGB", (side * len(columns) - GAP, side * len(columns[0]) - GAP), "white")
    for column, pictures in enumerate(columns):
        for row, picture in enumerate(pictures):
            scale = TILE / max(picture.size)
            fitted = picture.resize(np.maximum(np.rint(np.array(picture.size) * scale), 1).astype(int).tolist())
            left, top = ((TILE - length) // 2 for length in fitted.size)
            grid.paste(fitted, (column * side + left, row * side + top))
    return grid


if __name__ == "__main__":
    run_script(main)
