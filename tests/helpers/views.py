"""Datasets of views on small photos, some of them bad, and their batches."""

import dataclasses

import numpy as np
from datasets import Dataset
from torch.utils.data import DataLoader

from helpers.images import encode, picture, undecoded
from modeling_deit_distill.data.datasets import ViewDataset, collate
from modeling_deit_distill.data.views import AugmentationSettings, View, ViewSampler

SETTINGS = AugmentationSettings(image_size=16)
PLAIN = AugmentationSettings(image_size=16, mixup_alpha=0.0, cutmix_alpha=0.0)  # any view may come alone
BAD_PHOTOS = (4, 17, 30)


def photos(bad=BAD_PHOTOS) -> Dataset:
    """Rows of several sizes and formats; those in `bad` are broken."""
    images = []
    for row in range(48):
        image = picture(40 + row, 90 - row).rotate(row)
        encoded = encode(image, "PNG") if row % 5 == 0 else encode(image, "JPEG")
        images.append({"bytes": b"broken", "path": None} if row in bad else encoded)
    return undecoded(images)


def views_of(dataset: ViewDataset, epoch: int = 0, repeats: int = 3) -> list[View]:
    sampler = ViewSampler(len(dataset), 16, repeats, dataset.seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def loader(dataset: ViewDataset, batch_size: int, num_workers: int = 0, epoch: int = 1) -> DataLoader:
    sampler = ViewSampler(len(dataset), 16, 3, dataset.seed)
    sampler.set_epoch(epoch)
    return DataLoader(dataset, batch_size, sampler=sampler, collate_fn=collate, num_workers=num_workers)


def by_position(batches) -> dict[int, tuple[bytes, ...]]:
    """All that batches say of each view, its pair's mixing included, as bytes: `==` compares bit by bit."""
    seen = {}
    for batch in batches:
        for slot, position in enumerate(batch["position"].tolist()):
            own = [batch[name][slot] for name in ("pixel_values", "labels", "epoch")]
            for field in dataclasses.fields(batch["draws"]):
                values = getattr(batch["draws"], field.name)
                if values is not None:
                    own.append(values[slot // 2 if field.name.startswith("mix") else slot])
            assert position not in seen
            seen[position] = tuple(np.asarray(value).tobytes() for value in own)
    return seen
