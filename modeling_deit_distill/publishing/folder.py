"""The output folder of a run, before and after its training: cleared, described, finished, and pushed later."""

import shutil
import time
from pathlib import Path

from accelerate.utils import broadcast_object_list

from ..arguments import BROWSER_REVISION, NATIVE_REVISION, DistillationTrainingArguments
from ..errors import InputError
from ..export.page import EXAMPLES
from ..files import write_json
from ..output_folder import (
    ANSWERS,
    ASKED,
    BROWSER,
    PUBLISHED,
    RESULTS,
    TEACHER,
    disk_errors_explained,
    list_checkpoints,
    remove_checkpoint,
    results_of,
)
from ..report import how_to_use, say
from ..teachers.agreement import of_teacher
from ..teachers.teacher import Teacher
from .browser import export_for_browsers, name_of
from .card import write_model_card
from .comparison import Outcome, kept, results_table
from .cost import measure_costs
from .inside import look_inside
from .places import demo_of
from .pushes import Pushes
from .record import changed_arguments, note_part, note_repository, note_words, write_run_record
from .repository import clear_stages, open_repository_of, push_all, stage_run
from .run import read_run

# Copies that go to a branch of the model's repository.
BRANCHES = {"native": NATIVE_REVISION, "browser": BROWSER_REVISION}


def is_finished(args: DistillationTrainingArguments, command_line: list[str]) -> bool:
    """Whether `output_dir` holds a finished run that the user did not ask to replace; says so, and what differs."""
    if args.overwrite_output_dir or args.dry_run:
        return False
    # The main process looks: without a shared disk the others have no results, and all must go one way.
    results = broadcast_object_list([results_of(args.output_dir) if args.process_index == 0 else None])[0]
    if results is None:
        return False
    text = [_table_of(args.output_dir, results)]
    if changed := changed_arguments(args.output_dir, command_line):
        text.append(f"That run was another than this command's; it differs in {', '.join(changed)}.")
    text.append("To train again, choose another --output_dir or add --overwrite_output_dir true.")
    say(args, f"{args.output_dir} holds a finished run; nothing is trained", "\n".join(text))
    return True


def push_finished(args: DistillationTrainingArguments):
    """Push a finished run, as the push that failed, or was not asked for then, would have."""
    destination = open_repository_of(args)
    if destination is None:
        return
    clear_stages(args.output_dir)
    note_repository(args.output_dir, destination.repo_id, args.copies, args.hub_revision)
    note_words(args.output_dir, {"license": args.license})
    write_model_card(args.output_dir)
    commits, pushes = stage_run(args.output_dir, "End of training", args.copies), Pushes(args.hub_max_wait)
    push = pushes.submit(push_all, commits, destination, time.monotonic() + args.hub_max_wait)
    pushes.result(push, f"push to {destination.repo_id!r}")
    say_pushed(args)


def say_pushed(args: DistillationTrainingArguments):
    """Print where a run is by now, and that a page shows some of the images."""
    name = name_of(args.output_dir)  # as the push noted it: the Hub may have given no answer before
    pushed = [name, *(f"its branch {branch}" for copy, branch in BRANCHES.items() if copy in args.copies)]
    if "demo" in args.copies:
        number = len(list(Path(args.output_dir, BROWSER, EXAMPLES).glob("*")))
        shows = f", which shows {number} of the held-out images" if number else ""
        pushed.append(f"the Space {demo_of(name)}{shows}")
    say(args, f"pushed to {', '.join(pushed)}")


def begin_run(plan, name: str | None):
    """Before training: remove what an earlier run left, if the user said so, and note how this one is made.

    The earlier run's teacher stays, it is used again where it fits. `name` is the model's repository, if it has one.
    """
    args = plan.args
    with args.main_process_first(desc="clearing the earlier run"):
        if args.process_index != 0:
            return
        if args.overwrite_output_dir and not args.resume_from_checkpoint:
            Path(args.output_dir, RESULTS).unlink(missing_ok=True)  # first: it says that a run is whole
            for pattern in (*PUBLISHED, ANSWERS, ASKED):
                for path in Path(args.output_dir).glob(pattern):
                    path.unlink()
            shutil.rmtree(Path(args.output_dir, BROWSER), ignore_errors=True)
            for checkpoint in list_checkpoints(args.output_dir):
                remove_checkpoint(checkpoint)
        with disk_errors_explained(args.output_dir, "the run's record"):
            if args.resume_from_checkpoint and (results := results_of(args.output_dir)) is not None:
                note_part(args.output_dir, results)  # a finished run is extended
                Path(args.output_dir, RESULTS).unlink()
            write_run_record(plan, name)
            plan.keep_listing()


def finish_run(plan, trainer, results: dict[str, float]) -> dict[str, float]:
    """After training: the record again, with the day; a look inside; the card; and last `all_results.json`.

    The presence of the last says that the run is complete. The trainer has saved the model. Returns the results as they
    are written; those of the main process know a little more.
    """
    output_dir = plan.args.output_dir
    results = {**results, "bad_held_out_images": len(plan.bad_held_out)}
    if plan.data.unlabelled is not None:
        results["unlabelled_images"] = len(plan.data.unlabelled)
    with disk_errors_explained(output_dir, "the card"):
        if plan.args.process_index == 0:
            write_run_record(plan, trainer.publisher.repo_id)
            results |= measure_costs(output_dir, trainer.answers.teacher or _stored_teacher(plan), plan.args.device)
            look_inside(output_dir, plan.held_out, trainer.metrics.decisions, plan.args.device)
            if {"browser", "demo"} & set(plan.args.copies):
                export_for_browsers(output_dir, plan.held_out)
            trainer.create_model_card(results=results)
            write_json(Path(output_dir, RESULTS), dict(sorted(results.items())))
            say(plan.args, f"Results, kept in {output_dir}", _table_of(output_dir, results))
    return results


def _stored_teacher(plan) -> Teacher | None:
    """The teacher that this run trained, to be measured though its stored answers were enough; None for any other."""
    if not plan.distils or plan.store is None:
        return None
    folder = Path(plan.args.output_dir, TEACHER)
    reason = "all its answers are stored, so it is not loaded"
    try:
        if plan.model_args.train_teacher and folder.is_dir():
            teacher = plan.teacher_in(folder)
            plan.store.check(of_teacher(teacher))
            return teacher.to(plan.args.device)
    except InputError as error:
        reason = error
    say(plan.args, f"the teacher's size and time are not measured: {reason}")
    return None


def _table_of(output_dir: str, results: dict[str, float]) -> str:
    """The results of a run for the screen, and how to use it; where its other files cannot be read, also why."""
    teacher = None
    try:
        run = read_run(Path(output_dir), results)
        text = results_table(run.outcome)
        if kept(run.outcome) == "teacher" and not run.outcome.teachers:  # several are no model of one folder
            trained = Path(output_dir, TEACHER)
            teacher = str(trained) if trained.is_dir() else run.record.get("teacher")
    except InputError as error:
        text = f"{results_table(Outcome(results))}\n{error}"
    return f"{text}\n\n{how_to_use(output_dir, teacher)}"
