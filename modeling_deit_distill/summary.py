"""What will run, in words: for the summary on the screen and for the card."""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from .analysis import FEW_IN_ALL, wilson_interval
from .arguments import DistillationTrainingArguments
from .data.class_weights import BALANCED
from .data.columns import image_paths, label_column
from .data.cutting import relative_paths
from .data.fingerprint import are_among
from .data.image_files import shown
from .data.inspection import readable
from .data.loaders import planned_steps, steps_per_epoch, views_repeat
from .data.sources import ImageData
from .data.views import ViewSampler
from .hardware import device_in_words, workers_in_words
from .modeling_deit_distill import DeiTDistillConfig, DeiTDistillForImageClassification
from .output_folder import TEACHER
from .precision import precision_in_words
from .report import counted
from .student import what_is_kept
from .teachers.labelling import planned_views
from .teachers.trained_on import known_held_out
from .training.checkpoints import as_the_main_process
from .training.early_stopping import early_stopping_in_words
from .training.layers import layers_in_words
from .training.objective import weights_of_classes
from .training.schedule import schedule_in_words

MOST_COMPARED = 100_000  # files that are looked through at each start
FEW_OF_A_CLASS = 10  # below it the summary says how little the held-out images of a class can tell


def summary(plan) -> dict[str, str]:
    """What a [`Plan`] will do, by name, in words."""
    model_args, args, data, config = plan.model_args, plan.args, plan.data, plan.config
    with torch.device("meta"):
        num_parameters = DeiTDistillForImageClassification(config).num_parameters()
    tokens = "class and distillation token" if config.use_distillation_token else "class token"
    rate = f"{args.learning_rate:g}"
    if args.base_learning_rate is not None:
        rate += f" ({args.base_learning_rate:g} × {args.effective_batch_size} / 512)"
    num_images = len(plan.views) if isinstance(data.train, Dataset) else None
    return {
        **data_in_words(data),
        **decoding_in_words(args),
        **held_out_in_words(data, plan.bad_held_out),
        **as_the_main_process(args, lambda: copies_in_words(data, plan.bad_held_out)),
        **unlabelled_in_words(plan),
        "teacher": teacher_in_words(plan),
        **teachers_images_in_words(plan),
        "student": f"DeiT, hidden {config.hidden_size}, {config.num_hidden_layers} layers, "
        f"{config.num_attention_heads} heads, {tokens}, patch {config.patch_size} of {config.image_size} pixels",
        **(
            {}
            if plan.start is None
            else {"starts from": f"{model_args.model_name_or_path}: {what_is_kept(plan.start, config)}"}
        ),
        "parameters": f"{num_parameters:,}",
        "distillation": distillation_in_words(args),
        **rounds_in_words(plan),
        **asking_in_words(plan),
        **balance_in_words(plan),
        **store_in_words(plan),
        "effective batch": f"{args.effective_batch_size} ({args.per_device_train_batch_size} per device, "
        f"{args.gradient_accumulation_steps} accumulation step(s), {args.world_size} process(es))",
        "learning rate": f"{rate}, {schedule_in_words(args)}",
        **layers_in_words(args, config),
        **average_in_words(args),
        **code_in_words(args, config),
        "length": length_in_words(args, num_images),
        **early_stopping_in_words(args, plan.trains_teacher),
        "precision": precision_in_words(args.precision, args.device.type, args.bf16_is_automatic),
        "device": device_in_words(args),
        "workers": workers_in_words(args, args.workers_are_automatic),
        "output": str(args.output_dir),
    }


def data_in_words(data: ImageData) -> dict[str, str]:
    """Which images there are, how many, and what was not read."""
    number = f"{len(data.train):,}" if isinstance(data.train, Dataset) else "a stream of"
    names = ", ".join(map(shown, data.class_names[:10])) + (", ..." if len(data.class_names) > 10 else "")
    return {
        "data": f"{data.source}: {number} images",
        "held out": f"{len(data.validation):,} images, {data.validation_source}",
        "classes": f"{len(data.class_names)}: {names}",
        **({"skipped": data.skipped} if data.skipped else {}),
    }


def decoding_in_words(args: DistillationTrainingArguments) -> dict[str, str]:
    """That large JPEGs are decoded at a part of their size, where they are."""
    if not args.scaled_decoding:
        return {}
    is_automatic = args.as_given.get("scaled_decoding", (True,))[0] is None
    reason = "; --scaled_decoding false decodes them whole" if is_automatic else ""
    return {"decoding": f"training JPEGs at 1/2, 1/4 or 1/8 of their size where no crop is enlarged by it{reason}"}


def held_out_in_words(data: ImageData, bad: list[int]) -> dict[str, str]:
    """What must be known about the held-out images: groups, images and classes left out, how much they can tell.

    Args:
        data: the images.
        bad: the held-out rows that cannot be read.
    """
    rows, names = readable(data.validation, bad), data.class_names
    counts = np.bincount(label_column(rows), minlength=len(names))
    few = np.flatnonzero((counts > 0) & (counts < FEW_OF_A_CLASS))
    said = {}
    if data.groups:
        said["groups"] = data.groups
    if bad:
        paths = relative_paths(data.validation)[1]
        said["left out"] = f"{len(bad):,} held-out image(s) that cannot be read: " + _first(
            paths[row] or f"row {row}" for row in bad
        )
    if not counts.all():
        missing = [names[label] for label in np.flatnonzero(counts == 0)]
        said["not measured"] = f"{len(missing):,} of {len(names):,} classes have no held-out image: {_first(missing)}"
    if len(few):
        fewest = int(counts[few].min())
        known = f"with {fewest} a class's accuracy is known to about ±{100 * _half_width(fewest):.0f} percentage points"
        if fewest == 1:
            known = "the smallest class has 1 held-out image: its accuracy says nothing"
        said["class accuracies"] = (
            f"fewer than {FEW_OF_A_CLASS} held-out images in {len(few):,} of {len(names):,} classes; {known}"
        )
    if len(rows) < FEW_IN_ALL:
        points = f"±{100 * _half_width(len(rows)):.0f} percentage points"
        said["accuracy"] = f"known to about {points} with {counted(len(rows), 'held-out image')}"
        said["accuracy"] += "; a larger --validation_fraction holds out more" if data.is_cut else ""
    return said


def copies_in_words(data: ImageData, bad: list[int]) -> dict[str, str]:
    """Which held-out images are copies of training images, where the images are files and not very many."""
    splits = data.train, data.validation
    if not all(isinstance(rows, Dataset) and not image_paths(rows, only_files=True).null_count for rows in splits):
        return {}
    if sum(map(len, splits)) > MOST_COMPARED:
        return {}
    rows = readable(data.validation, bad)
    paths, copies = relative_paths(rows)[1], np.flatnonzero(are_among(rows, [data.train]))
    if not len(copies):
        return {}
    return {
        "copies": f"of {counted(len(rows), 'held-out image')}, {len(copies):,} also among the training images, byte by "
        f"byte, so the accuracy is too high: {_first(paths[row] for row in copies)}; keep one file of each, and train "
        "again"
    }


def unlabelled_in_words(plan) -> dict[str, str]:
    """How many images without labels there are beside the others, if any, and what teaches what they show."""
    rows = plan.data.unlabelled
    if rows is None:
        return {}
    share = len(rows) / len(plan.views)
    return {
        "unlabelled": f"{plan.data_args.unlabeled_dir}: {len(rows):,} images without labels, {share:.0%} of an epoch; "
        "the teacher's term alone learns of them"
    }


def _half_width(num_images: int) -> float:
    """Half the widest 95 % interval of a share of so many images."""
    low, high = wilson_interval(num_images // 2, num_images)
    return (high - low) / 2


def _first(words: Iterable[str], number: int = 10) -> str:
    words = list(words)
    return ", ".join(words[:number]) + (f", and {len(words) - number:,} others" if len(words) > number else "")


def teacher_in_words(plan) -> str:
    """The teacher, and how it comes to be."""
    model_args = plan.model_args
    if not plan.distils:
        return "none"
    names = plan.teacher_names
    if len(names) > 1:
        combined = plan.store.fingerprint.get("combined") if plan.store else None
        return f"the {combined or 'mean probability'} of {len(names)}: {', '.join(names)}"
    if names and not (model_args.train_teacher and plan.teacher_configs):
        return names[0]
    new = "a new" if plan.trains_teacher else "a"
    name = names[0] if names else f"{new} {plan.teacher_configs[0].model_type}"
    return f"{name}, {teachers_training_in_words(plan)}"


def teachers_images_in_words(plan) -> dict[str, str]:
    """That teachers of earlier runs were, or may have been, trained on images that are held out now."""
    warnings = as_the_main_process(plan.args, lambda: [known_held_out(name, plan.data) for name in plan.teacher_names])
    known = list(filter(None, warnings))
    return {"teacher's images": "; ".join(known)} if known else {}


def teachers_training_in_words(plan) -> str:
    """Whether the teacher of a recipe that trains one will be trained, and for how long."""
    num_epochs = plan.model_args.teacher_num_train_epochs
    epochs = counted(num_epochs, "epoch")
    if plan.trains_teacher:
        steps = planned_steps(len(plan.data.train), num_epochs, plan.args)
        return f"trained first for {epochs}, {counted(steps, 'step')}"
    if plan.needs_teacher:
        return f"trained before for {epochs}, found in the output folder"
    folder = Path(plan.args.output_dir, TEACHER)
    return f"trained before{f' ({folder})' if folder.is_dir() else ''}; all its answers are stored"


def length_in_words(args: DistillationTrainingArguments, num_images: int | None) -> str:
    """How long a run is, in epochs and in steps; `num_images` is None for a stream, which has no epochs."""
    steps = counted(planned_steps(num_images, args.num_train_epochs, args, args.max_steps), "step")
    if args.max_steps <= 0:
        return f"{counted(args.num_train_epochs, 'epoch')}, {steps}"
    if num_images is None:
        return steps
    return f"{steps}, {counted(round(args.max_steps / steps_per_epoch(num_images, args), 2), 'epoch')}"


def store_in_words(plan) -> dict[str, str]:
    """How much of this run the teacher's store knows already."""
    args, store = plan.args, plan.store
    if args.teacher_store is None or not plan.distils:
        return {}
    if store is None:
        return {"teacher's store": f"{args.teacher_store}, new"}
    planned = planned_views(args, plan.views)
    missing, total = sum(store.missing(planned).values()), sum(planned.values())
    known = f"all {total:,} views known, no teacher is loaded or trained"
    if missing:
        who = "each teacher" if len(plan.teacher_names) > 1 else "the teacher"
        known = f"{total - missing:,} of {total:,} views known, {who} is asked about the others"
    known += f"; {store.damage()}" if store.damaged else ""
    return {"teacher's store": f"{args.teacher_store}, {known}"}


def rounds_in_words(plan) -> dict[str, str]:
    """After how many epochs the views are repeated, if they are, and what that spares the teacher."""
    args = plan.args
    if not args.view_epochs:
        return {}
    if not views_repeat(args, len(plan.views)):
        return {"views": f"none is repeated: the run is no longer than --view_epochs {args.view_epochs}"}
    num_views = sum(planned_views(args, plan.views).values())
    steps = planned_steps(len(plan.views), args.num_train_epochs, args, args.max_steps)
    shown = steps * args.effective_batch_size
    words = f"those of {counted(args.view_epochs, 'epoch')} are repeated, each time in another order"
    if plan.distils:
        number = len(plan.teacher_names)
        who = f"each of {number} teachers" if number > 1 else "the teacher"
        words += f"; {who} is asked about {num_views:,} of {shown:,} views"
    return {"views": words}


def asking_in_words(plan) -> dict[str, str]:
    """How many views the teacher is asked about at once, if that was said and it will be asked."""
    args, size = plan.args, plan.args.teacher_batch_size
    if size is None or not plan.needs_teacher:
        return {}
    most = args.train_batch_size * args.gradient_accumulation_steps
    words = f"about {min(size, most):,} views at once"
    if size > most:
        words += f", as many as a step has on a process; more accumulation steps would make it {size:,}"
    return {"teacher is asked": words}


def balance_in_words(plan) -> dict[str, str]:
    """What makes up for classes of few images, if so asked: how often they are drawn, or their weights."""
    args, names, said = plan.args, plan.data.class_names, {}
    if args.balanced_views:
        order = ViewSampler.from_arguments(args, plan.views)
        said["balanced views"] = balanced_views_in_words(order, label_column(plan.data.train), names)
    weights = weights_of_classes(args, plan.views, plan.config)
    if weights is not None:
        rows = plan.data.train if isinstance(plan.data.train, Dataset) else None
        counts = None if rows is None else np.bincount(label_column(rows), minlength=len(names))
        said["class weights"] = class_weights_in_words(args.class_weights, np.array(weights), counts, names)
    return said


def balanced_views_in_words(order: ViewSampler, labels: np.ndarray, names: list[str]) -> str:
    """How often an epoch draws each class, and an image of the class of the most and of the fewest images."""
    counts, drawn = (np.bincount(each, minlength=len(names)) for each in (labels, labels[order.plan()]))
    has_images = np.flatnonzero(counts)
    times = " or ".join(f"{number:,}" for number in np.unique(drawn[has_images]))
    most, fewest = (has_images[place] for place in (counts[has_images].argmax(), counts[has_images].argmin()))
    views = f", {order.repeats} views each" if order.repeats > 1 else ""
    each = ", ".join(f"of {shown(names[label])} {drawn[label] / counts[label]:.2g} times" for label in (most, fewest))
    return (
        f"an epoch keeps its {len(order):,} views and draws each of {len(has_images):,} classes {times} times{views}: "
        f"an image {each}"
    )


def class_weights_in_words(given: str, weights: np.ndarray, counts: np.ndarray | None, names: list[str]) -> str:
    """The smallest and the largest weight, their mean over the training images, and classes that have none.

    Args:
        given: the argument, "balanced" or a file.
        weights: (classes,).
        counts: (classes,) training images of each; None for a stream.
        names: of the classes.
    """
    ends = (f"{weights[label]:.3g} ({shown(names[label])})" for label in (weights.argmin(), weights.argmax()))
    words = f"{given if given == BALANCED else Path(given).name}, from {' to '.join(ends)}"
    if counts is None:
        return words
    words += f"; on average {np.average(weights, weights=counts):.3g} over the training images"
    missing = [shown(names[label]) for label in np.flatnonzero(counts == 0)]
    if missing and given == BALANCED:
        words += f"; 1 for {len(missing):,} class(es) without training images: {_first(missing)}"
    return words


def code_in_words(args: DistillationTrainingArguments, config: DeiTDistillConfig) -> dict[str, str]:
    """What is done as the public code does it, if so asked."""
    words = ["learning-rate schedule"]
    if args.distillation_type == "soft":
        words.append("divergence also divided by the classes")
    if config.use_distillation_token:
        words.append("distillation token decayed")
    return {"as the public code": ", ".join(words)} if args.code_compatible else {}


def average_in_words(args: DistillationTrainingArguments) -> dict[str, str]:
    """The moving average of the weights, if there is one."""
    decay = args.weight_average_decay
    if decay is None:
        return {}
    half_life = math.log(0.5) / math.log(decay)
    return {"average of weights": f"decay {decay:.8g} a step (half-life {half_life:,.0f} steps), kept if it is better"}


def distillation_in_words(args: DistillationTrainingArguments) -> str:
    """The objective with its figures."""
    words = {
        "none": "none: labels alone",
        "soft": f"soft, weight {args.distillation_alpha:g}, temperature {args.distillation_temperature:g}",
        "hard": f"hard, weight {args.distillation_alpha:g}",
    }
    return words[args.distillation_type]
