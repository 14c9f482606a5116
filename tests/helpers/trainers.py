"""Small students, a teacher that counts, and trainers on random images."""

import io
from types import SimpleNamespace

import datasets
import numpy as np
import PIL.Image
import torch

from modeling_deit_distill import (
    DeiTDistillConfig,
    DeiTDistillForImageClassification,
    DistillationTrainer,
    DistillationTrainingArguments,
)
from modeling_deit_distill.data.datasets import ViewDataset
from modeling_deit_distill.data.views import AugmentationSettings

CLASSES = 7
# The arguments of a trainer, unless a test says otherwise. The precision is always said: where nobody says
# it, the processor decides, and bits would differ from machine to machine.
SETTINGS = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "bf16": False}
SETTINGS |= {"save_strategy": "no", "learning_rate": 1e-2}


class Images(torch.utils.data.Dataset):
    """Fixed random images with fixed labels."""

    def __init__(self, length=32):
        generator = torch.Generator().manual_seed(1)
        self.pixel_values = torch.randn(length, 3, 16, 16, generator=generator)
        self.labels = torch.randint(CLASSES, (length,), generator=generator)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"pixel_values": self.pixel_values[index], "labels": int(self.labels[index])}


class CountingTeacher(torch.nn.Module):
    """A convnet with batch statistics and dropout, so that a mistake in freezing shows; counts the images it sees."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 4, 4),
            torch.nn.BatchNorm2d(8),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.5),
            torch.nn.Flatten(),
            torch.nn.Linear(8 * 16, CLASSES),
        )
        self.asked = 0

    def forward(self, pixel_values):
        self.asked += len(pixel_values)
        return SimpleNamespace(logits=self.net(pixel_values))


def student(**overrides):
    torch.manual_seed(3)
    settings = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    settings |= {"image_size": 16, "patch_size": 8, "num_labels": CLASSES, "drop_path_rate": 0.0}
    return DeiTDistillForImageClassification(DeiTDistillConfig(**{**settings, **overrides}))


def trainer(tmp_path, model=None, teacher=None, length=32, **arguments):
    settings = {**SETTINGS, "output_dir": str(tmp_path), "per_device_train_batch_size": 8, "max_steps": 2}
    settings |= {"mixup_alpha": 0.0, "cutmix_alpha": 0.0, "logging_steps": 1}
    args = DistillationTrainingArguments(**{**settings, **arguments})
    data = Images(length)
    return DistillationTrainer(model or student(), args, teacher, train_dataset=data, eval_dataset=data)


def rows(length=64, bad=()):
    """Encoded random images with labels; those in `bad` cannot be read."""
    draws, encoded = np.random.default_rng(4), []
    for row in range(length):
        buffer = io.BytesIO()
        PIL.Image.fromarray(draws.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(buffer, "PNG")
        encoded.append({"bytes": b"no image" if row in bad else buffer.getvalue(), "path": f"{row}.png"})
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.ClassLabel(CLASSES)})
    labels = draws.integers(CLASSES, size=length).tolist()
    return datasets.Dataset.from_dict({"image": encoded, "label": labels}, features=features)


def views_trainer(tmp_path, rows, **arguments):
    """A trainer on views, with what `compute_loss` was given kept under `seen`."""
    settings = {**SETTINGS, "output_dir": str(tmp_path), "per_device_train_batch_size": 4, "num_train_epochs": 2}
    args = DistillationTrainingArguments(**{**settings, **arguments})
    dataset = ViewDataset(rows, AugmentationSettings.from_arguments(args, 16), args.views_seed)
    run = DistillationTrainer(student(drop_path_rate=0.2), args, CountingTeacher(), train_dataset=dataset)
    run.seen = []
    original = run.compute_loss

    def remember(model, inputs, **kwargs):
        run.seen += [(int(epoch), int(place)) for epoch, place in zip(inputs["epoch"], inputs["position"], strict=True)]
        return original(model, inputs, **kwargs)

    run.compute_loss = remember
    return run


def snapshot(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
