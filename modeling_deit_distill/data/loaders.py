"""The DataLoader of a training: whole optimiser steps of views in their order, or of any other samples."""

import functools
import math
from collections.abc import Callable

import torch
from torch.utils.data import DataLoader, RandomSampler, Sampler
from transformers import TrainerCallback
from transformers.trainer_utils import seed_worker

from ..errors import InputError
from .datasets import StreamingViewDataset, ViewDataset, collate
from .views import ViewSampler

# Arguments of a DataLoader that are a run's too, there behind `dataloader_`.
LOADER_ARGUMENTS = ("num_workers", "pin_memory", "persistent_workers", "multiprocessing_context", "prefetch_factor")


def training_loader(dataset, sampler: Sampler | None, args, collate_fn, accelerator) -> DataLoader:
    """The batches of a training, in the order of the sampler, see [`training_sampler`].

    Views come as whole batches, which `collate_fn` never sees.
    """
    settings = {name: getattr(args, f"dataloader_{name}") for name in LOADER_ARGUMENTS}
    settings["collate_fn"] = collate if isinstance(dataset, (ViewDataset, StreamingViewDataset)) else collate_fn
    if isinstance(dataset, StreamingViewDataset):
        # It yields the batches of its own share, which Accelerate must not share out again.
        return DataLoader(dataset, batch_size=None, **settings)
    seeded = functools.partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index)
    loader = DataLoader(dataset, args.train_batch_size, sampler=sampler, worker_init_fn=seeded, **settings)
    return accelerator.prepare(loader)


class SetEpoch(TrainerCallback):
    """Tells the training's sampler, if it has one, the epoch; what Trainer and Accelerate wrap around it may not."""

    def __init__(self, sampler: Callable[[], ViewSampler | None]):
        self._sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Before the epoch's first view is drawn."""
        if (sampler := self._sampler()) is not None:
            sampler.set_epoch(int(state.epoch or 0))


def training_sampler(dataset, args) -> Sampler | None:
    """The order of a training set, in whole optimiser steps: of views, or of rows at random; a stream has its own.

    Raises:
        InputError: `balanced_views` of a training set that is not of views with positions.
        ValueError: there is no training set; in Trainer's words.
    """
    if dataset is None:
        raise ValueError("Trainer: training requires a train_dataset.")
    if isinstance(dataset, ViewDataset):
        return ViewSampler.from_arguments(args, dataset)
    if args.balanced_views:
        raise InputError("balanced_views draws images by their class, which needs a dataset of views; leave it out")
    if isinstance(dataset, torch.utils.data.IterableDataset):
        return None
    step = args.effective_batch_size
    return RandomSampler(dataset, num_samples=max(len(dataset) // step * step, min(len(dataset), step)))


def seed_of_process(dataset, args) -> int:
    """The seed of what a process draws beside the views, which have their own: what it drops of its student."""
    is_of_views = isinstance(dataset, (ViewDataset, StreamingViewDataset))
    return args.seed + (args.process_index if is_of_views else 0)


def views_per_step(dataset, args) -> int:
    """Views, or samples, of an optimiser step over all processes; see [`training_sampler`]."""
    is_small = not isinstance(dataset, (ViewDataset, torch.utils.data.IterableDataset))
    return min(args.effective_batch_size, len(dataset)) if is_small else args.effective_batch_size


def steps_per_epoch(num_images: int, args) -> int:
    """Optimiser steps of an epoch of views: whole ones, and at least one, see [`ViewSampler`]."""
    return ViewSampler(num_images, args.effective_batch_size).length // args.effective_batch_size


def planned_steps(num_images: int | None, num_epochs: float, args, max_steps: int = -1) -> int:
    """Optimiser steps of a whole training, as Trainer counts them.

    Args:
        num_images: of the training set; None for a stream, whose `max_steps` are given.
        num_epochs: may be a fraction.
        args: the [`DistillationTrainingArguments`], whose batch counts.
        max_steps: instead of the epochs, if above 0.
    """
    return max_steps if max_steps > 0 else math.ceil(num_epochs * steps_per_epoch(num_images, args))


def views_repeat(args, num_images: int | None = None) -> bool:
    """Whether a run is long enough to show views again, of which it has `view_epochs`.

    Args:
        args: the [`DistillationTrainingArguments`].
        num_images: of the training set; None where it is not read yet, and any `max_steps` may be long enough.
    """
    num_epochs = args.num_train_epochs
    if args.max_steps > 0:
        num_epochs = math.inf if num_images is None else args.max_steps / steps_per_epoch(num_images, args)
    return num_epochs > args.view_epochs > 0
