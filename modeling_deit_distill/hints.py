"""Hints before a run that will go poorly: what makes it so, and what to do. Nothing is refused for it."""

import math
import os

import torch
from datasets import Dataset

from .configuration_deit_distill import DeiTDistillConfig, as_pair
from .data.loaders import planned_steps, steps_per_epoch
from .hardware import THREADS_VARIABLE, num_cores
from .launcher import is_of_accelerate, program
from .output_folder import list_checkpoints, results_of
from .report import count_as_said
from .training.extension import holds_shorter_run
from .training.schedule import short_of_the_peak

# Below so many photographs a student from scratch is far behind one that starts from a published DeiT.
FEW_FROM_SCRATCH = 10_000
# DeiT has 196 patches at 224 pixels and 576 at 384; attention grows with their square.
USUAL_PATCHES, MANY_PATCHES = 196, 576
FINETUNING, FROM_SCRATCH = "examples/recipes/finetune_own_images.yaml", "examples/recipes/own_images.yaml"


def run_hints(plan) -> dict[str, str]:
    """What will go poorly in a run as its [`Plan`] has it, by name; empty if nothing will."""
    args, data = plan.args, plan.data
    num_images = len(plan.views) if isinstance(data.train, Dataset) else None
    found = {"patches": of_patches(plan.config, is_new=plan.start is None)}
    if num_images is not None:
        is_photographs = plan.data_args.dataset_name != "digits"  # which are learned from few
        found["few images"] = of_few_images(num_images) if is_photographs and plan.start is None else None
        found["batch"] = of_batch(args.effective_batch_size, num_images)
    found["warm-up"] = of_warmup(args, num_images)
    found["output"] = of_output(args) if args.dry_run else None
    found["threads"] = of_threads(args)
    return {name: words for name, words in found.items() if words}


def of_output(args) -> str | None:
    """What `output_dir` holds already, where the command would then not train from the beginning."""
    if args.overwrite_output_dir or args.resume_from_checkpoint and holds_shorter_run(args):
        return None
    if results_of(args.output_dir) is not None:
        kind, end, remedy = "a finished run", "trains nothing", ""
    elif list_checkpoints(args.output_dir) and not args.resume_from_checkpoint:
        kind, end, remedy = "an unfinished run", "is refused", "--resume_from_checkpoint true, "
    else:
        return None
    return (
        f"{args.output_dir} holds {kind}: without --dry_run this command {end}; add {remedy}--overwrite_output_dir "
        "true, or choose another --output_dir"
    )


def of_threads(args) -> str | None:
    """Cores that a CPU's single process leaves alone because a launcher limits its threads."""
    threads, cores = torch.get_num_threads(), num_cores()
    if args.device.type != "cpu" or args.world_size > 1 or THREADS_VARIABLE not in os.environ or threads >= cores:
        return None
    words = f"{THREADS_VARIABLE} leaves this run {threads} of {cores} cores; "
    if is_of_accelerate():
        return f"{words}all of them: accelerate launch --quiet --num_cpu_threads_per_process {cores} {program()} ..."
    return f"{words}all of them: {THREADS_VARIABLE}={cores}"


def of_few_images(num_images: int) -> str | None:
    """Too few images for a student that starts from scratch."""
    if num_images >= FEW_FROM_SCRATCH:
        return None
    return f"{num_images:,} images are few to start from scratch; with internet access {FINETUNING} does better"


def of_patches(config: DeiTDistillConfig, is_new: bool) -> str | None:
    """More patches than make sense; a student that is not new keeps its patch size, and sees smaller images."""
    (height, width), (patch_height, patch_width) = as_pair(config.image_size), as_pair(config.patch_size)
    patches = height // patch_height * (width // patch_width)
    if patches <= MANY_PATCHES:
        return None
    words = (
        f"image_size {config.image_size} with patch_size {config.patch_size} makes {patches:,} patches, and every step "
        f"takes at least {patches / USUAL_PATCHES:.0f} times as long as with the usual {USUAL_PATCHES}; "
    )
    if is_new and height == width and patch_height == patch_width:
        side = fitting_patch_size(height, patch_height)
        return words + f"--patch_size {side} makes {(height // side) ** 2:,}"
    return words + "lower --image_size"


def fitting_patch_size(image_size: int, patch_size: int) -> int:
    """The patch size next above that divides the image and makes a usual number of patches; doubled ones first."""
    most = 1.5 * USUAL_PATCHES
    doubled = [patch_size * 2**power for power in range(1, int(math.log2(image_size)) + 1)]
    for side in (*doubled, *range(patch_size + 1, image_size + 1)):
        if image_size % side == 0 and (image_size // side) ** 2 <= most:
            return side
    return image_size


def of_batch(batch_size: int, num_images: int) -> str | None:
    """A step of more views than there are images."""
    if batch_size <= num_images:
        return None
    return (
        f"a step takes {batch_size:,} views and the training set has {num_images:,} images, so every step sees images "
        f"more than once and an epoch is one step; lower --per_device_train_batch_size"
    )


def of_warmup(args, num_images: int | None) -> str | None:
    """A warm-up that is longer than the run; a stream has no epochs of it."""
    num_steps = planned_steps(num_images, args.num_train_epochs, args, args.max_steps)
    warmup = args.get_warmup_steps(num_steps)
    if args.warmup_epochs > 0 and num_images is not None:
        warmup = round(args.warmup_epochs * steps_per_epoch(num_images, args))
    words = short_of_the_peak(num_steps, warmup)
    if words is not None:
        count_as_said(words)  # training would say so later
    return words
