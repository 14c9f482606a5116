"""Ask a teacher about every view of a run, before any student is trained.

    accelerate launch --quiet examples/label_with_teacher.py RECIPE.yaml --teacher_store answers [--epochs 0-99] ...

Takes the arguments of `train_deit.py`. Epochs in ranges can be filled by several jobs beside each other, each with any
number of processes; what is known already is not asked again, so a job that was killed is simply run again. Students
then train with the same recipe and `--teacher_store answers`: no teacher is loaded.
"""

import time

import torch

from modeling_deit_distill import InputError
from modeling_deit_distill.data.evaluation import evaluation_view
from modeling_deit_distill.plan import Plan
from modeling_deit_distill.screen import keep_libraries_quiet
from modeling_deit_distill.script import run_script
from modeling_deit_distill.teachers.labelling import ask_about_validation, fill, planned_views, whole_sampler

SECONDS_BETWEEN_REPORTS = 10


def main(arguments: list[str]):
    if {"-h", "--help"} & {*arguments}:
        print(f"{__doc__}\nThe arguments of train_deit.py:\n")
    epochs, arguments = take_epochs(arguments)
    keep_libraries_quiet()
    plan = Plan.from_arguments(arguments)
    if plan.args.teacher_store is None or not plan.distils or plan.data_args.streaming:
        raise InputError("give --teacher_store FOLDER, --distillation_type hard or soft, and data that is not a stream")
    if plan.args.teacher_batch_size is not None and plan.args.teacher_batch_size % 2 and plan.views.settings.mixes:
        raise InputError(
            f"teacher_batch_size is {plan.args.teacher_batch_size}, which is odd; views that are mixed are labelled in "
            "pairs: give an even one"
        )
    if epochs is None:
        epochs = range(len(planned_views(plan.args, plan.views)))
    store = plan.store
    if store and store.holds({epoch: len(whole_sampler(store, plan.views)) for epoch in epochs}):
        where = f"epochs {epochs.start} to {epochs.stop - 1}"
        print(f"{plan.args.teacher_store}: all views known, {where}; nothing to ask")
        return
    teacher = plan.live_teacher()
    keep_validation(plan, teacher)
    label(plan, teacher, epochs)


def keep_validation(plan: Plan, teacher):
    """Keep what the teacher says about the held-out images, so that students are compared with it."""
    args, view, held_out = plan.args, evaluation_view(plan.processor), plan.held_out
    if args.process_index == 0 and plan.store.read_validation(view) is None:
        accuracy = ask_about_validation(plan.store, teacher, held_out, view, args.per_device_eval_batch_size)
        who = "teachers together are" if len(teacher.members) > 1 else "teacher is"
        print(f"the {who} right on {accuracy:.1%} of {len(held_out):,} held-out images", flush=True)


def label(plan: Plan, teacher, epochs: range):
    """Fill the store and say how it goes; each process reports on its own share."""
    args, store = plan.args, plan.store
    asked, start = 0, time.monotonic()
    last = start
    share = {"rank": args.process_index, "num_processes": args.world_size, "num_workers": args.dataloader_num_workers}
    sampler = whole_sampler(store, plan.views)
    batch_size = args.teacher_batch_size or args.train_batch_size
    batches = fill(store, teacher, plan.views, sampler, epochs, batch_size=batch_size, **share)
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
    run_script(main)
