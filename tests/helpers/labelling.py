"""A run's part that labels: arguments, data, views, teacher, store."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import ResNetConfig, ResNetForImageClassification
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from helpers.teachers import DIGITS, SMALL
from modeling_deit_distill.arguments import DistillationTrainingArguments
from modeling_deit_distill.augmentation.augment import augment
from modeling_deit_distill.data.datasets import ViewDataset
from modeling_deit_distill.data.sources import ImageData, load_image_data
from modeling_deit_distill.data.views import AugmentationSettings, ViewSampler
from modeling_deit_distill.plan import Plan
from modeling_deit_distill.recipes import Arguments
from modeling_deit_distill.teachers.labelling import fill, verify
from modeling_deit_distill.teachers.store import TeacherStore
from modeling_deit_distill.teachers.teacher import Teacher

NUM_IMAGES = 28  # three batches of 8 are an epoch, four images are left out


@functools.cache
def sample_pixels() -> torch.Tensor:
    """What a student is shown of the digits."""
    views = ViewDataset(load_image_data("digits").train, AugmentationSettings(16), seed=1)
    batch = views.__getitems__(list(ViewSampler(128, 128)))
    return augment(batch["pixel_values"], batch["draws"], IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def save_teacher(folder: Path, seed: int, class_names=DIGITS) -> str:
    """An untrained convnet whose head stretches its features, so that each class is said now and then."""
    torch.manual_seed(seed)
    config = ResNetConfig(**SMALL, num_labels=10, id2label=dict(enumerate(class_names)))
    model = ResNetForImageClassification(config).eval()
    head = model.classifier[-1]
    with torch.no_grad():
        features = model.resnet(pixel_values=sample_pixels()).pooler_output.flatten(1)
        values, vectors = torch.linalg.eigh(torch.cov(features.T))
        head.weight.copy_(torch.randn(10, 8) @ (vectors[:, -8:] / values[-8:].sqrt()).T)
        head.bias.copy_(-head.weight @ features.mean(0))
    model.save_pretrained(folder)
    return str(folder)


@dataclass
class Run:
    """The part of a run that labels; each question is asked of a new plan."""

    arguments: Arguments
    data: ImageData

    @property
    def args(self) -> DistillationTrainingArguments:
        return self.arguments[2]

    def plan(self) -> Plan:
        plan = Plan(self.arguments, [])
        plan.data = self.data
        return plan

    @functools.cached_property
    def views(self) -> ViewDataset:
        return self.plan().views

    @property
    def sampler(self) -> ViewSampler:
        return ViewSampler.from_arguments(self.args, self.views)

    def describe(self):
        return next(iter(self.plan().teacher_configs), None)

    def find(self) -> TeacherStore | None:
        return self.plan().store

    def prepare(self) -> tuple[Teacher, TeacherStore]:
        plan = self.plan()
        teacher = plan.live_teacher()
        return teacher, plan.store

    def fill(self, store, teacher, epochs=(0,), batch_size=8, **share) -> list[tuple[int, int]]:
        return list(fill(store, teacher, self.views, self.sampler, epochs, batch_size=batch_size, **share))

    def verify(self, store, teacher, num_samples=1000) -> tuple[int, int]:
        return verify(store, teacher, self.views, self.sampler, num_samples)


def count_asked(teacher: Teacher) -> list[int]:
    """Views of each batch that the teacher will see."""
    asked: list[int] = []
    teacher.register_forward_pre_hook(lambda module, inputs: asked.append(len(inputs[0])))
    return asked


def asked_directly(run: Run, teacher: Teacher, epoch: int = 0) -> torch.Tensor:
    """The teacher's logits about all views of an epoch, without labelling or store."""
    sampler = run.sampler
    sampler.set_epoch(epoch)
    batch = run.views.__getitems__(list(sampler))
    with torch.no_grad():
        return teacher(augment(batch["pixel_values"], batch["draws"], IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))


def content(store: TeacherStore, epoch: int = 0) -> np.ndarray:
    entries, _ = store.read(epoch, np.arange(store.num_views))
    return entries


def forget(store: TeacherStore, positions: Sequence[int], epoch: int = 0):
    store.write(epoch, np.array(positions), np.zeros(len(positions), store.dtype))
