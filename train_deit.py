"""Distil an image classifier into a DeiT: `accelerate launch --quiet train_deit.py RECIPE.yaml --key value`.

The recipe comes first, the command line over it; `examples/recipes` has some, `--help` lists every argument.
"""

import signal
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the libraries are imported is no traceback

from modeling_deit_distill import DistillationTrainer
from modeling_deit_distill.dry_run import dry_run
from modeling_deit_distill.files import write_json
from modeling_deit_distill.hardware import keep_freed_memory
from modeling_deit_distill.output_folder import DECISIONS, disk_errors_explained, results_of
from modeling_deit_distill.output_lock import only_run_in
from modeling_deit_distill.plan import Plan
from modeling_deit_distill.predict import judge_finished, predict_held_out
from modeling_deit_distill.publishing.folder import begin_run, finish_run, is_finished, push_finished, say_pushed
from modeling_deit_distill.publishing.repository import try_repository_of
from modeling_deit_distill.screen import columns_of, keep_libraries_quiet, show
from modeling_deit_distill.script import run_script
from modeling_deit_distill.training.extension import is_extended
from modeling_deit_distill.training.interruption import ending_in_order


def main(command_line: list[str]) -> dict[str, float]:
    keep_libraries_quiet()
    plan = Plan.from_arguments(command_line)
    if not plan.args.do_train:
        return judge_finished(plan)
    with only_run_in(plan.args), ending_in_order(plan.args, command_line):
        if not is_extended(plan.args) and is_finished(plan.args, command_line):
            predict_held_out(plan)
            push_finished(plan.args)
            return results_of(plan.args.output_dir) or {}
        return run(plan)


def run(plan: Plan) -> dict[str, float]:
    """What the paper describes, step by step; the results as `all_results.json` holds them, none of a dry run."""
    # What will run, and on what
    plan.check()
    keep_freed_memory(plan.args.device.type)

    # Student: what may be wrong with it shows before the teacher's training
    student = plan.student()
    if plan.args.dry_run:
        dry_run(plan, student)
        return {}
    try_repository_of(plan.args)

    # Teacher, or what it said before
    teacher = plan.teacher()

    # Distil
    trainer = DistillationTrainer(
        student,
        plan.args,
        teacher,
        plan.store,
        processing_class=plan.processor,
        train_dataset=plan.views,
        eval_dataset=plan.held_out,
    )
    show(trainer, plan.students_title, columns_of(plan.args), plan.args.output_dir, trainer.progress.loss_so_far)
    begin_run(plan, trainer.hub_model_id)
    with trainer.interruption.until_results():
        results = distil(trainer, plan.checkpoint)
        results = finish_run(plan, trainer, results)

    # Publish: what stays here first, since the Hub may not answer
    predict_held_out(plan)
    if plan.args.push_to_hub:
        trainer.push_to_hub()
        say_pushed(plan.args)
    return results


def distil(trainer: DistillationTrainer, checkpoint: str | None) -> dict[str, float]:
    """Ask the teacher for its accuracy, train, evaluate, save; the results as `all_results.json` holds them."""
    results = trainer.evaluate_teacher()
    trained = trainer.train(resume_from_checkpoint=checkpoint)
    results |= trained.metrics | trainer.evaluate()
    results |= trainer.average.choose(trainer.model, trainer.metrics, results)
    results |= {"num_parameters": trainer.model.num_parameters(), **trainer.progress.counts()}
    output_dir = trainer.args.output_dir
    with disk_errors_explained(output_dir, "the model"):
        trainer.save_model(output_dir, _internal_call=True)  # a call from outside would push it, without its card
        trainer.save_state()
    if trainer.is_world_process_zero():
        write_json(Path(output_dir, DECISIONS), trainer.metrics.kept_decisions())
    return results


if __name__ == "__main__":
    run_script(main)
