"""A run that was finished before: said to the user, and pushed if asked for."""

from ..arguments import DistillationTrainingArguments
from ..output_folder import results_of
from ..report import results_table, say
from .card import write_model_card
from .record import changed_arguments, note_repository
from .repository import clear_stages, open_repository_of, push_all, stage_run


def is_finished(args: DistillationTrainingArguments, command_line: list[str]) -> bool:
    """Whether `output_dir` holds a finished run that the user did not ask to replace; says so, and what differs."""
    results = results_of(args.output_dir)
    if results is None or args.overwrite_output_dir or args.dry_run:
        return False
    text = [results_table(results)]
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
    note_repository(args.output_dir, destination.repo_id, args.push_native, args.hub_revision)
    write_model_card(args.output_dir)
    push_all(stage_run(args.output_dir, "End of training", args.push_native), destination)
    say(args, f"pushed to {destination.repo_id}")
