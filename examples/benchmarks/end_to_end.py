"""From JPEG files to trained images: how near training comes to the bare step, and to timm's loader and step.

    python examples/benchmarks/end_to_end.py IMAGES [--size tiny] [--workers 0] [--json FILE]

IMAGES is a folder of images (one folder per class) or of parquet files. All take turns in one process, figures are
medians:

    bare step    forward, loss of both heads, backward and AdamW on one batch that lies ready: the most there can be
    ours         what `train_deit.py` does: ViewDataset and its loader (3 views an image), augmentation on the device, a
                 teacher's stored answers, DistillationTrainer
    timm         timm's `create_loader` and `Mixup` for DeiT's recipe, timm's model and the bare step; the teacher's
                 labels come for nothing

`ratios`: `fraction_of_bare_step`, ours over the bare step; `over_timm`, ours over timm's; `trainer_overhead`, what is
left of our step beyond waiting for the batch, augmentation and the bare step, as a share of the bare step (without
workers: with them, these overlap).
"""

import argparse
import functools
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from data_pipeline import MEAN, STD, patch_posterize
from student_speed import NUM_CLASSES, make_batch, make_model, training_step
from timing import synchronize, time_once
from timm.data import Mixup, create_loader
from transformers import TrainerCallback

from modeling_deit_distill import DistillationTrainer, DistillationTrainingArguments
from modeling_deit_distill.augmentation.augment import AUGMENTATION_VERSION, augment
from modeling_deit_distill.data.datasets import ViewDataset
from modeling_deit_distill.data.decoding import decode_image
from modeling_deit_distill.data.evaluation import evaluation_processor
from modeling_deit_distill.data.sources import load_image_data
from modeling_deit_distill.data.views import AugmentationSettings, ViewSampler
from modeling_deit_distill.hardware import keep_freed_memory
from modeling_deit_distill.script import run_script
from modeling_deit_distill.teachers.store import create_store

DROP_PATH_RATE = 0.1
# Steps of a run that do not count, besides those whose batches workers prepare in the meantime.
SKIPPED = 3


def main(arguments: list[str]):
    patch_posterize()
    options = parse_options(arguments)
    keep_freed_memory(torch.device(options.device).type)  # for all, as train_deit.py does
    name = "train_dir" if any(Path(options.images).glob("*/*.[jJ]*")) else "dataset_name"
    # None is held out: a sample may have one image a class.
    rows = load_image_data(**{name: options.images}, validation_split="train").train
    num_views = options.batch_size * (options.skipped + options.steps)
    rows = rows.select([index % len(rows) for index in range(num_views)])
    with tempfile.TemporaryDirectory() as folder:
        kinds = {
            "ours": lambda: our_steps(rows, options, folder),
            "timm": lambda: timm_steps(rows, options),
        }
        rounds = [{name: run() for name, run in kinds.items()} for _ in range(options.rounds)]
    milliseconds = {
        name: {part: 1000 * statistics.median(taken[name][part] for taken in rounds) for part in rounds[0][name]}
        for name in kinds
    }
    milliseconds["ours"]["augmentation"] = 1000 * augmentation_seconds(rows, options)
    report(options, milliseconds)


def parse_options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", help="folder of images, one folder per class, or of parquet files")
    parser.add_argument("--size", choices=["tiny", "small", "base"], default="tiny")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch_size", type=int, help="default: 48 on a CPU, 256 on a GPU")
    parser.add_argument("--workers", type=int, help="of the loaders; default: none on a CPU, 14 on a GPU")
    parser.add_argument("--steps", type=int, help="steps of a run that count; default: 5, or 4 a worker")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind, alternating")
    parser.add_argument("--json", help="write the figures here")
    options = parser.parse_args(arguments)
    on_gpu = options.device.startswith("cuda")
    options.batch_size = options.batch_size or (256 if on_gpu else 48)
    options.workers = options.workers if options.workers is not None else (14 if on_gpu else 0)
    options.precision = "bf16" if on_gpu else "fp32"
    options.skipped = SKIPPED + 2 * options.workers
    options.steps = options.steps or max(5, 4 * options.workers)
    return options


class Clock(TrainerCallback):
    """Seconds of a trainer's steps after those that do not count, and how long it waited for their batches.

    With `between`, each step is timed by itself and followed by a call of that, timed as well: what is compared is
    then a second apart. Without, the device is waited for only at both ends of the run, as in training.
    """

    def __init__(self, trainer: DistillationTrainer, options, between=None):
        self.options, self.between = options, between
        self.every = 1 if between else options.steps
        self.step, self.wait, self.bare, self.waited, self.begin = [], [], [], 0.0, None
        self.original = trainer.get_batch_samples
        trainer.get_batch_samples = self.get_batch_samples
        trainer.add_callback(self)

    def get_batch_samples(self, *args, **kwargs):
        """The trainer's own, timed."""
        begin = time.perf_counter()
        batches = self.original(*args, **kwargs)
        self.waited += time.perf_counter() - begin
        return batches

    def on_step_end(self, args, state, control, **kwargs):
        """Take the time."""
        steps = state.global_step - self.options.skipped
        if steps < 0 or steps % self.every:
            return
        synchronize(self.options.device)
        if self.begin is not None:
            self.step.append((time.perf_counter() - self.begin) / self.every)
            self.wait.append(self.waited / self.every)
        if self.between:
            self.bare.append(time_once(self.between, self.options.device))
        self.begin, self.waited = time.perf_counter(), 0.0


def our_steps(rows, options, folder: str) -> dict[str, float]:
    """Seconds of a step in all, of waiting for its batch and of the bare step, of a run of the trainer.

    With workers the bare step is measured by itself: between the trainer's steps, it would give them time to work.
    """
    args = DistillationTrainingArguments(
        output_dir=str(Path(folder, "run")),
        per_device_train_batch_size=options.batch_size,
        max_steps=options.skipped + options.steps,
        dataloader_num_workers=options.workers,
        bf16=options.precision == "bf16",
        use_cpu=options.device == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=100,
    )
    settings = AugmentationSettings.from_arguments(args, options.image_size)
    trainer = DistillationTrainer(
        make_model("ours", options, DROP_PATH_RATE),
        args,
        teacher_store=filled_store(Path(folder), args, settings, len(rows)),
        train_dataset=ViewDataset(rows, settings, args.seed),
        processing_class=evaluation_processor(options.image_size),
    )
    step = bare_step(options)
    clock = Clock(trainer, options, None if options.workers else step)
    trainer.train()
    bare = clock.bare or [time_once(lambda: [step() for _ in range(5)], options.device) / 5 for _ in range(4)][1:]
    taken = {"step": clock.step, "waiting for the batch": clock.wait, "bare step": bare}
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def filled_store(folder: Path, args, settings: AugmentationSettings, num_views: int):
    """A store with an answer for every view of an epoch, one for each run."""
    fingerprint = {**vars(settings), "augmentation_version": AUGMENTATION_VERSION, "num_images": num_views}
    fingerprint |= {"data_seed": args.seed, "repeated_augmentation": args.repeated_augmentation}
    fingerprint |= {"distillation_type": "hard", "num_classes": NUM_CLASSES, "num_views": num_views}
    store = create_store(Path(tempfile.mkdtemp(dir=folder), "store"), fingerprint, {})
    store.write(0, np.arange(num_views), np.ones(num_views, store.dtype))
    return store


def bare_step(options):
    """The step alone, with the same model."""
    model = make_model("ours", options, DROP_PATH_RATE).train()
    return training_step(model, model, make_batch(options), options.precision, options.device)


class Images(torch.utils.data.Dataset):
    """Decoded images for timm, which sets the transform."""

    transform = None

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        return self.transform(decode_image(row["image"])), row["label"]


def timm_steps(rows, options) -> dict[str, float]:
    """Seconds of a step of timm's loader, mixing, model and the bare step."""
    model = make_model("timm", options, DROP_PATH_RATE).train()
    on_gpu = options.device.startswith("cuda")
    recipe = {"auto_augment": "rand-m9-mstd0.5-inc1", "interpolation": "bicubic", "re_prob": 0.25, "re_mode": "pixel"}
    loader = create_loader(
        Images(rows),
        (3, options.image_size, options.image_size),
        options.batch_size,
        is_training=True,
        use_prefetcher=on_gpu,
        num_workers=options.workers,
        persistent_workers=False,
        pin_memory=on_gpu,
        mean=MEAN,
        std=STD,
        device=torch.device(options.device),
        **recipe,
    )
    mix = Mixup(0.8, 1.0, label_smoothing=0.0, num_classes=NUM_CLASSES)  # the loss smooths
    batch = list(make_batch(options))
    step = training_step(model, model, batch, options.precision, options.device)
    for number, (pixel_values, labels) in enumerate(loader, 1):
        batch[:2] = mix(pixel_values.to(options.device), labels.to(options.device))
        step()
        if number == options.skipped:
            synchronize(options.device)
            start = time.perf_counter()
    synchronize(options.device)
    return {"step": (time.perf_counter() - start) / (number - options.skipped)}


def augmentation_seconds(rows, options) -> float:
    """Seconds that the device part takes for a batch, the median over some."""
    dataset, seconds = ViewDataset(rows, AugmentationSettings(options.image_size)), []
    views = iter(ViewSampler(len(rows), options.batch_size))
    output = torch.empty(options.batch_size, 3, options.image_size, options.image_size, device=options.device)
    for _ in range(options.skipped + options.steps):
        batch = dataset.__getitems__([next(views) for _ in range(options.batch_size)])
        pixels, draws = batch["pixel_values"].to(options.device), batch["draws"]
        run = functools.partial(augment, pixels, draws, MEAN, STD, out=output)
        seconds.append(time_once(run, options.device))
    return statistics.median(seconds[options.skipped :])


def report(options, milliseconds: dict[str, dict[str, float]]):
    """Where a step's time goes, and the ratios last."""
    ours = milliseconds["ours"]
    bare = ours["bare step"]
    parts = {
        "waiting for the batch": ours["waiting for the batch"],
        "augmentation": ours["augmentation"],
        "bare step": bare,
    }
    parts["the rest: trainer"] = ours["step"] - sum(parts.values())
    for name, taken in {"ours": ours["step"], "bare step": bare, "timm": milliseconds["timm"]["step"]}.items():
        rate = 1000 * options.batch_size / taken
        print(f"{name:22} {taken:9.1f} ms a step of {options.batch_size}, {rate:8.1f} images/s")
    for name, taken in parts.items():
        print(f"  ours, {name:22} {taken:9.1f} ms, {taken / ours['step']:6.1%}")
    ratios = {
        "fraction_of_bare_step": bare / ours["step"],
        "over_timm": milliseconds["timm"]["step"] / ours["step"],
    }
    if not options.workers:  # else the parts overlap
        ratios["trainer_overhead"] = parts["the rest: trainer"] / bare
    ratios = {name: round(ratio, 4) for name, ratio in ratios.items()}
    print(json.dumps({"ratios": ratios}))
    if options.json:
        figures = {"ratios": ratios, "milliseconds": milliseconds, "parts": parts, "options": vars(options)}
        Path(options.json).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    run_script(main)
