"""Ask a teacher about every view of a run, before any student is trained.

    accelerate launch examples/label_with_teacher.py RECIPE.yaml --teacher_store answers [--epochs 0-99] [--key value]

Takes the arguments of `train_deit.py`. Epochs in ranges can be filled by several jobs beside each other, each with any
number of processes; what is known already is not asked again, so a job that was killed is simply run again. Students
then train with the same recipe and `--teacher_store answers`: no teacher is loaded.
"""

import time
from dataclasses import asdict

import torch

from modeling_deit_distill import InputError
from modeling_deit_distill.data.datasets import ViewDataset
from modeling_deit_distill.data.evaluation import EvaluationDataset, evaluation_transform, evaluation_view
from modeling_deit_distill.data.sources import load_image_data
from modeling_deit_distill.data.views import AugmentationSettings
from modeling_deit_distill.errors import run_command
from modeling_deit_distill.process_end import end_process
from modeling_deit_distill.recipes import parse_arguments
from modeling_deit_distill.student import load_start, student_config, student_processor
from modeling_deit_distill.teachers.labelling import (
    ask_about_validation,
    fill,
    find_store,
    planned_views,
    prepare_teacher,
    store_for,
    teacher_description,
    whole_sampler,
)
from modeling_deit_distill.teachers.teacher import check_teacher

SECONDS_BETWEEN_REPORTS = 10


def main(arguments: list[str]):
    if {"-h", "--help"} & {*arguments}:
        print(f"{__doc__}\nThe arguments of train_deit.py:\n")
    epochs, arguments = take_epochs(arguments)
    model_args, data_args, args = parse_arguments(arguments)
    if args.teacher_store is None or args.distillation_type == "none" or data_args.streaming:
        raise InputError("give --teacher_store FOLDER, --distillation_type hard or soft, and data that is not a stream")
    with args.main_process_first(desc="loading data"):
        sources = asdict(data_args)
        crop_pct = sources.pop("crop_pct")
        data = load_image_data(**sources)
    start = load_start(model_args)
    config = student_config(model_args, args, data.class_names, start)
    settings = AugmentationSettings.from_arguments(args, config.image_size)
    views = ViewDataset(data.train, settings, args.views_seed, args.keep_decoded_images)
    teacher_config = teacher_description(model_args, args, data)
    store = find_store(model_args, args, data, teacher_config, views)
    if epochs is None:
        epochs = range(len(planned_views(args, views)))
    if store and store.holds({epoch: len(whole_sampler(store, views)) for epoch in epochs}):
        print(f"{args.teacher_store}: all views known, epochs {epochs.start} to {epochs.stop - 1}; nothing to ask")
        return
    teacher = prepare_teacher(model_args, data_args, args, data, teacher_config, views, store)
    processor = student_processor(config, crop_pct, start)
    held_out = EvaluationDataset(data.validation, evaluation_transform(processor))
    check_teacher(teacher, held_out, args.per_device_eval_batch_size, model_args.allow_weak_teacher)
    store = store_for(data_args, args, data, views, teacher, store)
    keep_validation(args, store, teacher, held_out, evaluation_view(processor))
    label(args, store, teacher, views, epochs)


def keep_validation(args, store, teacher, held_out: EvaluationDataset, view: str):
    """Keep what the teacher says about the held-out images, so that students are compared with it."""
    if args.process_index == 0 and store.read_validation(view) is None:
        accuracy = ask_about_validation(store, teacher, held_out, view, args.per_device_eval_batch_size)
        print(f"the teacher is right on {accuracy:.1%} of {len(held_out):,} held-out images", flush=True)


def label(args, store, teacher, views: ViewDataset, epochs: range):
    """Fill the store and say how it goes; each process reports on its own share."""
    asked, start = 0, time.monotonic()
    last = start
    share = {"rank": args.process_index, "num_processes": args.world_size, "num_workers": args.dataloader_num_workers}
    sampler = whole_sampler(store, views)
    batches = fill(store, teacher, views, sampler, epochs, batch_size=args.train_batch_size, **share)
    for epoch, num_views in batches:
        asked += num_views
        if time.monotonic() - last > SECONDS_BETWEEN_REPORTS:
            last = time.monotonic()
            print(f"process {args.process_index}: epoch {epoch}, {asked / (last - start):.0f} views/s", flush=True)
    if args.world_size > 1:
        torch.distributed.barrier()
    if args.process_index == 0:
        known, total = sum(store.count(epoch) for epoch in epochs), len(epochs) * len(sampler)
        print(f"{args.teacher_store}: {known:,} of {total:,} views known, epochs {epochs.start} to {epochs.stop - 1}")


def take_epochs(arguments: list[str]) -> tuple[range | None, list[str]]:
    """`--epochs FIRST-LAST` (or one number) as a range, and the other arguments."""
    arguments = [word for argument in arguments for word in _halves(argument)]
    if "--epochs" not in arguments:
        return None, arguments
    place = arguments.index("--epochs")
    try:
        first, _, last = arguments[place + 1].partition("-")
        epochs = range(int(first), int(last or first) + 1)
    except (IndexError, ValueError):
        raise InputError("--epochs takes a range like 0-99, or one epoch") from None
    if not epochs:
        raise InputError(f"--epochs {arguments[place + 1]} is empty; give the lower number first")
    return epochs, arguments[:place] + arguments[place + 2 :]


def _halves(argument: str) -> list[str]:
    return argument.split("=", 1) if argument.startswith("--epochs=") else [argument]


if __name__ == "__main__":
    end_process(run_command(main))
