"""A teacher and the views of a run brought together in a store: what must agree, asking, filling, verifying.

`train_deit.py` fills a store as it trains, `examples/label_with_teacher.py` without training, and `store_cli.py`
verifies what lies in one.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..arguments import DistillationTrainingArguments, ModelArguments
from ..augmentation.augment import AUGMENTATION_VERSION, augment
from ..data.datasets import ViewDataset, collate
from ..data.evaluation import DEFAULT_CROP_PCT, EvaluationDataset
from ..data.sources import ImageData
from ..data.views import ViewSampler
from ..errors import InputError
from .classes import read_label_map
from .description import describe_teacher, teacher_classes
from .store import TeacherStore, create_store, fingerprint_of, is_store
from .teacher import Teacher, decisions_of, load_teacher, teacher_view, weights_checksum
from .training import TRAINING_RECORD, find_or_train_teacher, training_record


def teacher_description(model_args: ModelArguments, args: DistillationTrainingArguments, data: ImageData):
    """The teacher's configuration, checked against the data's classes; None without distillation.

    None also where a store is to answer in the place of a teacher that nobody named.

    Raises:
        InputError: a label map that cannot be read, wherever it would be used; a teacher that is not found or does not
            fit; a store that is none.
    """
    label_map = read_label_map(model_args.teacher_label_map)
    named = model_args.teacher_name_or_path or model_args.teacher_config_name
    if args.distillation_type != "none" and args.teacher_store and not named and not is_store(args.teacher_store):
        raise InputError(
            f"teacher_store {args.teacher_store!r} is no store yet, and no teacher is named to fill it; mend the path, "
            "or give --teacher_name_or_path"
        )
    if args.distillation_type == "none" or (not named and is_store(args.teacher_store)):
        return None
    try:
        return describe_teacher(
            data.class_names,
            model_args.teacher_name_or_path,
            model_args.teacher_config_name,
            model_args.teacher_config_overrides,
            model_args.train_teacher,
            model_args.trust_remote_code,
            label_map,
        )
    except InputError as error:
        if not _is_gone(model_args.teacher_name_or_path):
            raise
        if is_store(args.teacher_store) and TeacherStore(args.teacher_store).about.get("teacher") == named:
            return None
        raise InputError(f"{error}; bring it back, or name a copy of it (a full --teacher_store asks none)") from error


def find_store(model_args, args, data: ImageData, teacher_config, views: ViewDataset) -> TeacherStore | None:
    """The store that the user named, if it exists; it must fit what will run."""
    if args.distillation_type == "none" or not is_store(args.teacher_store):
        return None
    store = TeacherStore(args.teacher_store)
    store.check(wanted_of_views(args, data, views))
    record = None
    if teacher_config is not None and model_args.train_teacher:
        record = training_record(teacher_config, data, **teacher_schedule(model_args, views))
    store.check(wanted_of_teacher(model_args, teacher_config, data.class_names, views.settings.image_size, record))
    return store


def teacher_schedule(model_args: ModelArguments, views: ViewDataset) -> dict:
    """How the teacher is trained, if it is trained here: a new one at the size at which it will be asked."""
    is_new = model_args.teacher_name_or_path is None
    return {
        "image_size": (is_new and model_args.teacher_image_size) or views.settings.image_size,
        "num_train_epochs": model_args.teacher_num_train_epochs,
        "learning_rate": model_args.teacher_learning_rate,
        "name_or_path": model_args.teacher_name_or_path,
    }


def prepare_teacher(
    model_args, data_args, args, data: ImageData, teacher_config, views, store: TeacherStore | None
) -> Teacher:
    """The frozen teacher, trained first where the user asked for it."""
    if teacher_config is None:
        missing = store.missing(planned_views(args, views))
        gone = model_args.teacher_name_or_path
        nobody = f"the teacher {gone!r} is gone: bring it back, or" if gone else "no teacher is named to ask;"
        raise InputError(
            f"teacher_store {args.teacher_store!r} has not all the views of this run: it lacks "
            f"{sum(missing.values()):,}, the first of epoch {min(missing)}, and {nobody} give "
            f"--teacher_name_or_path (the store was made with {store.about.get('teacher')}), or train for fewer epochs"
        )
    name_or_path = model_args.teacher_name_or_path
    if model_args.train_teacher:
        name_or_path = find_or_train_teacher(
            teacher_config,
            data,
            Path(args.output_dir, "teacher"),
            args,
            crop_pct=data_args.crop_pct or DEFAULT_CROP_PCT,
            trust_remote_code=model_args.trust_remote_code,
            **teacher_schedule(model_args, views),
        )
    return load_teacher(
        str(name_or_path),
        data.class_names,
        views.settings.image_size,
        trust_remote_code=model_args.trust_remote_code,
        label_map=read_label_map(model_args.teacher_label_map),
        compile=model_args.teacher_compile,
        **teacher_numerics(model_args, args, store),
    ).to(args.device)


def store_for(data_args, args, data: ImageData, views, teacher: Teacher, store: TeacherStore | None):
    """The store for a loaded teacher's answers, a new one if there is none yet; None if the user wants none."""
    if args.teacher_store is None:
        return None
    described, name_or_path = describe_loaded(teacher), teacher.model.name_or_path
    if store is None:
        wanted = wanted_of_views(args, data, views) | described
        wanted["teacher_training"] = _training_record(name_or_path)
        store = create_store(args.teacher_store, wanted, {"teacher": name_or_path, "data": asdict(data_args)})
    store.check(described)
    return store


def check_teacher_remains(model_args: ModelArguments, args: DistillationTrainingArguments, checkpoint: str | None):
    """Refuse to go on with another teacher than the one a run trained before, which is gone.

    Raises:
        InputError: with the folder, and the remedy.
    """
    directory = Path(args.output_dir, "teacher")
    if checkpoint is not None and model_args.train_teacher and not (directory / TRAINING_RECORD).exists():
        raise InputError(
            f"{directory} is gone, where this run keeps the teacher that it trained; bring it back to go on from "
            f"{checkpoint}, or start again with --overwrite_output_dir true and without --resume_from_checkpoint"
        )


def teacher_numerics(model_args: ModelArguments, args: DistillationTrainingArguments, store: TeacherStore | None):
    """The teacher's input size and precision: the user's word, else the store's, else its own and the run's."""
    kept = store.fingerprint if store else {}
    return {
        "image_size": model_args.teacher_image_size or kept.get("teacher_image_size"),
        "precision": model_args.teacher_precision or kept.get("teacher_precision") or args.precision,
    }


def wanted_of_views(args: DistillationTrainingArguments, data: ImageData, views: ViewDataset) -> dict[str, object]:
    """What a store must agree to about the views of a run; see `teacher_store.fingerprint_of`."""
    return fingerprint_of(
        views.settings,
        augmentation_version=AUGMENTATION_VERSION,
        dataset=data.fingerprint(),
        num_images=len(data.train),
        num_classes=len(data.class_names),
        num_views=max(len(data.train), len(sampler_of(args, views))),
        data_seed=views.seed,
        repeated_augmentation=args.repeated_augmentation,
        distillation_type=args.distillation_type,
        k=args.teacher_store_top_k,
        temperature=args.distillation_temperature,
    )


def wanted_of_teacher(
    model_args: ModelArguments, teacher_config, class_names: list[str], image_size: int, record: dict | None
) -> dict[str, object]:
    """What a store must agree to about the teacher that a run names, as far as its arguments say.

    Args:
        teacher_config: from `teacher.describe_teacher`; None if the run names no teacher.
        class_names: of the dataset.
        image_size: of the student.
        record: of a teacher that the run trains itself, from `teacher.training_record`.
    """
    if teacher_config is None:
        return {}
    given = {"teacher_precision": model_args.teacher_precision, "teacher_image_size": model_args.teacher_image_size}
    wanted = {name: value for name, value in given.items() if value is not None}
    if model_args.train_teacher:
        return wanted | {"teacher_training": record, "label_map": None}
    view = teacher_view(model_args.teacher_name_or_path, image_size, trust_remote_code=model_args.trust_remote_code)
    return wanted | {
        "teacher_weights": weights_checksum(model_args.teacher_name_or_path),
        "teacher_mean": list(view.mean),
        "teacher_std": list(view.std),
        "label_map": teacher_classes(teacher_config, class_names, read_label_map(model_args.teacher_label_map)),
    }


def describe_loaded(teacher: Teacher) -> dict[str, object]:
    """What a store must agree to about a loaded teacher."""
    return {
        "teacher_weights": weights_checksum(teacher.model.name_or_path),
        "teacher_mean": list(teacher.view.mean),
        "teacher_std": list(teacher.view.std),
        "teacher_image_size": teacher.view.image_size,
        "teacher_precision": teacher.precision,
        "label_map": None if teacher.classes is None else teacher.classes.tolist(),
    }


def sampler_of(args: DistillationTrainingArguments, views: ViewDataset) -> ViewSampler:
    """The order of a run's views."""
    return ViewSampler(
        len(views),
        args.effective_batch_size,
        args.repeated_augmentation,
        views.seed,
        args.train_batch_size,
        views.settings.mixes,
    )


def whole_sampler(store: TeacherStore, views: ViewDataset) -> ViewSampler:
    """The order of all views that a store has room for, also of those that a run's batches leave out."""
    sampler = ViewSampler(len(views), 1, store.fingerprint["repeated_augmentation"], views.seed)
    sampler.length = store.num_views - (store.num_views % 2 if views.settings.mixes else 0)
    return sampler


def planned_views(args: DistillationTrainingArguments, views: ViewDataset) -> dict[int, int]:
    """How many views a run sees of each epoch."""
    length = len(sampler_of(args, views))
    steps_per_epoch = length // args.effective_batch_size
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
    total = steps * args.effective_batch_size
    return {epoch: min(length, total - epoch * length) for epoch in range(math.ceil(total / length))}


def is_full(args: DistillationTrainingArguments, views, store: TeacherStore | None) -> bool:
    """Whether a store has all the views of a run; all processes hear the first one's answer, others may be writing."""
    return broadcast_object_list([store is not None and store.holds(planned_views(args, views))])[0]


@torch.no_grad()
def ask(store: TeacherStore, teacher: Teacher, batch: Mapping) -> np.ndarray:
    """Augment a batch of views on the teacher's device and ask it: entries (views,) as the store keeps them."""
    pixels = batch["pixel_values"].to(teacher.scale.device, non_blocking=True)
    pixels = augment(pixels, batch["draws"], IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    return store.encode(teacher(pixels))


def fill(
    store: TeacherStore,
    teacher: Teacher,
    views: ViewDataset,
    sampler: ViewSampler,
    epochs: Iterable[int],
    *,
    batch_size: int,
    rank: int = 0,
    num_processes: int = 1,
    num_workers: int = 0,
) -> Iterator[tuple[int, int]]:
    """Ask about every view that is not known yet, each process about its share of the batches.

    Args:
        batch_size: views at a time, even if they are mixed.
        rank, num_processes: whose share.

    Yields:
        (epoch, views asked) after each batch.
    """
    for epoch in epochs:
        sampler.set_epoch(epoch)
        plan, positions = sampler.plan(), np.arange(len(sampler))
        batches = np.unique(np.flatnonzero(~store.read(epoch, positions)[1]) // batch_size)
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
    store: TeacherStore, teacher: Teacher, held_out: EvaluationDataset, view: str, batch_size: int
) -> float:
    """Keep the teacher's answers about the validation images; its accuracy, from 0 to 1.

    Args:
        held_out: the validation images, normalised for the student.
        view: how they are shown, see `data.evaluation_view`.
    """
    answers, labels = decisions_of(teacher, held_out, batch_size)
    accuracy = float(np.mean(answers == labels))
    store.write_validation(view, accuracy, answers, labels)
    return accuracy


def verify(store: TeacherStore, teacher: Teacher, views: ViewDataset, sampler: ViewSampler, num_samples: int) -> tuple:
    """Ask the live teacher again about stored views, drawn from all epochs.

    A decision is alike if it is the same class; for top-k, if the most likely class is.

    Returns:
        How many answers are alike, and how many were compared.
    """
    generator = np.random.default_rng(0)
    epochs, together = store.epochs(), 2 if views.settings.mixes else 1  # mixed views need their partners
    alike = compared = 0
    for epoch in epochs:
        sampler.set_epoch(epoch)
        plan = sampler.plan()
        known = store.read(epoch, np.arange(len(sampler)))[1].reshape(-1, together).all(axis=1)
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


def _is_gone(name_or_path: str | None) -> bool:
    """Whether a folder was named that is not there; a name on the Hub has one slash at most."""
    return name_or_path is not None and not Path(name_or_path).exists() and str(name_or_path).count("/") != 1


def _training_record(name_or_path: str) -> dict | None:
    path = Path(name_or_path, TRAINING_RECORD)
    return json.loads(path.read_text()) if path.exists() else None
