"""A teacher and the views of a run brought together in a store: asking, filling, verifying.

`train_deit.py` fills a store as it trains, `examples/label_with_teacher.py` without training, and `store_cli.py`
verifies what lies in one.
"""

import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..arguments import DistillationTrainingArguments
from ..augmentation.augment import augment
from ..data.columns import label_column
from ..data.datasets import ViewDataset, collate
from ..data.evaluation import EvaluationDataset
from ..data.loaders import planned_steps
from ..data.views import ViewSampler
from .ensemble import Ensemble
from .store import TeacherStore
from .teacher import Teacher
from .trial import decisions_of


def whole_sampler(store: TeacherStore, views: ViewDataset) -> ViewSampler:
    """The order of all views that a store has room for, also of those that a run's batches leave out."""
    repeats, is_balanced = store.fingerprint["repeated_augmentation"], store.fingerprint["balanced_views"]
    labels = label_column(views.rows) if is_balanced else None
    sampler = ViewSampler(len(views), 1, repeats, views.seed, labels)
    sampler.length = store.num_views - (store.num_views % 2 if views.settings.mixes else 0)
    return sampler


def planned_views(args: DistillationTrainingArguments, views: ViewDataset) -> dict[int, int]:
    """How many different views a run sees of each epoch; with `view_epochs` of the first ones alone."""
    length = len(ViewSampler.from_arguments(args, views))
    total = planned_steps(len(views), args.num_train_epochs, args, args.max_steps) * args.effective_batch_size
    epochs = math.ceil(total / length)
    if args.view_epochs:
        epochs = min(epochs, args.view_epochs)
    return {epoch: min(length, total - epoch * length) for epoch in range(epochs)}


def is_full(args: DistillationTrainingArguments, views, store: TeacherStore | None) -> bool:
    """Whether a store has all the views of a run; all processes hear the first one's answer, others may be writing."""
    return broadcast_object_list([store is not None and store.holds(planned_views(args, views))])[0]


@torch.inference_mode()
def ask(store: TeacherStore, teacher: Teacher | Ensemble, batch: Mapping) -> np.ndarray:
    """Augment a batch of views on the teacher's device and ask it: entries (views,) as the store keeps them."""
    pixels = batch["pixel_values"].to(teacher.device, non_blocking=True)
    pixels = augment(pixels, batch["draws"], IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    return store.encode(teacher(pixels))


def fill(
    store: TeacherStore,
    teacher: Teacher | Ensemble,
    views: ViewDataset,
    sampler: ViewSampler,
    epochs: Iterable[int],
    *,
    batch_size: int,
    rank: int = 0,
    num_processes: int = 1,
    num_workers: int = 0,
) -> Iterator[tuple[int, int]]:
    """Ask about every view that is not known yet, each process about its share; an even batch, if views are mixed.

    Yields (epoch, views asked) after each batch.
    """
    for epoch in epochs:
        sampler.set_epoch(epoch)
        plan, positions = sampler.plan(), np.arange(len(sampler))
        batches = np.unique(np.flatnonzero(~store.known(epoch, len(sampler))) // batch_size)
        # By their number, not by their rank among the unknown: others may be writing already.
        mine = batches[batches % num_processes == rank]
        chosen = (
            [sampler.view(plan, position) for position in positions[batch * batch_size :][:batch_size].tolist()]
            for batch in mine.tolist()
        )
        for batch in DataLoader(views, batch_sampler=chosen, collate_fn=collate, num_workers=num_workers):
            known = store.read(epoch, batch["position"])[1]
            entries = ask(store, teacher, batch)
            store.write(epoch, batch["position"][~known], entries[~known])
            yield epoch, int((~known).sum())


def ask_about_validation(
    store: TeacherStore, teacher: Teacher | Ensemble, held_out: EvaluationDataset, view: str, batch_size: int
) -> float:
    """Keep the teacher's answers about the validation images, shown as `view` says; its accuracy, from 0 to 1."""
    entries: list[np.ndarray] = []
    note = (lambda logits: entries.append(store.encode(logits))) if store.is_soft else None
    answers, labels, members = decisions_of(teacher, held_out, batch_size, note)
    accuracy, shares = float(np.mean(answers == labels)), accuracies_of(members, labels)
    store.write_validation(view, accuracy, answers, labels, shares, np.concatenate(entries) if entries else None)
    return accuracy


def accuracies_of(members: Iterable[np.ndarray], labels: np.ndarray) -> list[float]:
    """The accuracy of each member of an ensemble, from 0 to 1, by its decisions (images,)."""
    return [float(np.mean(decided == labels)) for decided in members]


def verify(
    store: TeacherStore, teacher: Teacher | Ensemble, views: ViewDataset, sampler: ViewSampler, num_samples: int
) -> tuple[int, int]:
    """Ask the live teacher again about stored views, drawn from all epochs: how many are alike, of how many compared.

    An answer is alike if the class is the same; for top-k, the most likely class.
    """
    generator = np.random.default_rng(0)
    epochs, together = store.epochs(), 2 if views.settings.mixes else 1  # mixed views need their partners
    alike = compared = 0
    for epoch in epochs:
        sampler.set_epoch(epoch)
        plan = sampler.plan()
        known = store.known(epoch, len(sampler)).reshape(-1, together).all(axis=1)
        wanted = math.ceil(num_samples / together / len(epochs))
        for group in np.sort(generator.permutation(np.flatnonzero(known))[:wanted]).tolist():
            positions = range(group * together, (group + 1) * together)
            batch = views.__getitems__([sampler.view(plan, position) for position in positions])
            stored, _ = store.read(epoch, batch["position"])
            alike += int((decisions(stored) == decisions(ask(store, teacher, batch))).sum())
            compared += len(positions)
    return alike, compared


def decisions(entries: np.ndarray) -> np.ndarray:
    """The most likely class of each entry, (views,), whatever its layout; -1 for a hole."""
    return (entries if entries.dtype.names is None else entries["classes"][:, 0]).astype(np.int64) - 1
