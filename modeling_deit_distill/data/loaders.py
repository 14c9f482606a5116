"""The DataLoader of a training: whole optimiser steps of views in their order, or of any other samples."""

import functools
from collections.abc import Callable

import torch
from torch.utils.data import DataLoader, RandomSampler, Sampler
from transformers import TrainerCallback
from transformers.trainer_utils import seed_worker

from .datasets import StreamingViewDataset, ViewDataset
from .views import ViewSampler


def training_loader(dataset, sampler: Sampler | None, args, collate_fn, accelerator) -> DataLoader:
    """The batches of a training. A stream yields those of its own share, which Accelerate must not share out again.

    Args:
        dataset: the training set.
        sampler: from [`training_sampler`].
        args: the [`DistillationTrainingArguments`].
        collate_fn: from samples to a batch.
        accelerator: shares batches out and moves them to the device.
    """
    settings = {
        "collate_fn": collate_fn,
        "num_workers": args.dataloader_num_workers,
        "pin_memory": args.dataloader_pin_memory,
        "persistent_workers": args.dataloader_persistent_workers,
        "multiprocessing_context": args.dataloader_multiprocessing_context,
        "prefetch_factor": args.dataloader_prefetch_factor,
    }
    if isinstance(dataset, StreamingViewDataset):
        return DataLoader(dataset, batch_size=None, **settings)
    seeded = functools.partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index)
    loader = DataLoader(dataset, args.train_batch_size, sampler=sampler, worker_init_fn=seeded, **settings)
    return accelerator.prepare(loader)


class SetEpoch(TrainerCallback):
    """Tells the sampler the epoch; what Trainer and Accelerate wrap around it does not always pass it on.

    Args:
        sampler: called for the [`ViewSampler`] of the training; None where there is none.
    """

    def __init__(self, sampler: Callable[[], ViewSampler | None]):
        self._sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Before the epoch's first view is drawn."""
        if (sampler := self._sampler()) is not None:
            sampler.set_epoch(int(state.epoch or 0))


def training_sampler(dataset, args) -> Sampler | None:
    """The order of a training set, in whole optimiser steps: of views, or of rows at random; a stream has its own."""
    if isinstance(dataset, ViewDataset):
        return ViewSampler.from_arguments(args, dataset)
    if isinstance(dataset, torch.utils.data.IterableDataset):
        return None
    step = args.effective_batch_size
    return RandomSampler(dataset, num_samples=max(len(dataset) // step * step, min(len(dataset), step)))


def views_per_step(dataset, args) -> int:
    """Views, or samples, of an optimiser step over all processes; see [`training_sampler`]."""
    is_small = not isinstance(dataset, (ViewDataset, torch.utils.data.IterableDataset))
    return min(args.effective_batch_size, len(dataset)) if is_small else args.effective_batch_size
