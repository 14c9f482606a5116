"""Distil an image classifier into a DeiT: `accelerate launch train_deit.py RECIPE.yaml --key value`.

The recipe comes first, the command line over it; `examples/recipes` has some, `--help` lists every argument.
"""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from transformers import set_seed

from modeling_deit_distill import (
    DeiTDistillForImageClassification,
    DistillationTrainer,
    DistillationTrainingArguments,
    InputError,
)
from modeling_deit_distill.analysis import describe_tokens
from modeling_deit_distill.arguments import DataArguments, ModelArguments, parse_arguments
from modeling_deit_distill.data.datasets import StreamingViewDataset, ViewDataset
from modeling_deit_distill.data.evaluation import EvaluationDataset, evaluation_transform
from modeling_deit_distill.data.sources import ImageData, load_image_data
from modeling_deit_distill.data.views import AugmentationSettings
from modeling_deit_distill.errors import run_command
from modeling_deit_distill.files import write_json
from modeling_deit_distill.process_end import end_process
from modeling_deit_distill.publishing.card import write_model_card
from modeling_deit_distill.publishing.pictures import PREDICTIONS, choose_examples, draw_predictions
from modeling_deit_distill.publishing.record import (
    RECORD,
    changed_arguments,
    note_repository,
    run_facts,
    write_run_record,
)
from modeling_deit_distill.publishing.repository import (
    Destination,
    clear_earlier_run,
    clear_stages,
    open_repository,
    push_all,
    stage_run,
)
from modeling_deit_distill.publishing.run import TOKENS
from modeling_deit_distill.report import results_table, say, summary
from modeling_deit_distill.student import build_student, load_start, student_config, student_processor
from modeling_deit_distill.teachers.labelling import (
    check_teacher_remains,
    find_store,
    is_full,
    prepare_teacher,
    store_for,
    teacher_description,
)
from modeling_deit_distill.teachers.teacher import check_teacher
from modeling_deit_distill.training.checkpoints import check_fits, disk_errors_explained, facts_of, find_checkpoint
from modeling_deit_distill.training.interruption import Interrupted, ending_in_order
from modeling_deit_distill.training.metrics import check_metric
from modeling_deit_distill.training.schedule import check_optimisation

# What is kept of the decisions on the held-out images.
DECISIONS = ("labels", "fused", "cls", "distillation", "teacher")
# Evenly spaced held-out images on which the tokens are measured.
IMAGES_TO_LOOK_AT = 64


def main(arguments: list[str]):
    model_args, data_args, args = parse_arguments(arguments)
    with ending_in_order(args):
        if is_finished(args, arguments):
            push_finished(args)
        else:
            run(arguments, model_args, data_args, args)


def run(
    arguments: list[str], model_args: ModelArguments, data_args: DataArguments, args: DistillationTrainingArguments
):
    """What the paper describes, step by step."""
    # Data
    data = load_data(model_args, data_args, args)

    checkpoint = find_checkpoint(args)

    # What will run
    start = load_start(model_args)
    config = student_config(model_args, args, data.class_names, start)
    processor = student_processor(config, data_args.crop_pct, start)
    views = training_views(data_args, args, data, config.image_size)
    check_fits(checkpoint, facts_of(args, views), config)
    teacher_config = teacher_description(model_args, args, data)
    store = find_store(model_args, args, data, teacher_config, views)
    facts = run_facts(model_args, args, data, config, start, teacher_config, views, store)
    say(args, "What will run", summary(facts))

    # Student: its weights depend on the seed alone. What may be wrong with it shows before the teacher's training.
    set_seed(args.seed)
    student = build_student(config, start, model_args.attn_implementation)
    check_optimisation(args, student)
    check_metric(args, config)
    if args.dry_run:
        return
    if args.push_to_hub:
        find_repository(args)
    held_out = EvaluationDataset(data.validation, evaluation_transform(processor))

    # Teacher, or what it said before
    teacher = None
    if args.distillation_type != "none" and not is_full(args, views, store):
        check_teacher_remains(model_args, args, checkpoint)
        teacher = prepare_teacher(model_args, data_args, args, data, teacher_config, views, store)
        try_teacher(model_args, args, teacher, held_out)
        store = store_for(data_args, args, data, views, teacher, store)

    # Distil
    images = {"train_dataset": views, "eval_dataset": held_out}
    trainer = DistillationTrainer(student, args, teacher, store, processing_class=processor, **images)
    clear_earlier_run(args)
    parsed = (model_args, data_args, args)
    record(trainer, facts, arguments, parsed)
    results = distil(trainer, args, checkpoint)

    # Publish
    with disk_errors_explained(args.output_dir, "the card"):
        record(trainer, facts, arguments, parsed)  # again, with the day it was finished
        look_inside(trainer, held_out)
        finish(trainer, results)
    say(args, f"Results, kept in {args.output_dir}", results_table(results))
    if args.push_to_hub:
        trainer.push_to_hub()
        say(args, f"pushed to {trainer.hub_model_id}")


def load_data(model_args: ModelArguments, data_args: DataArguments, args: DistillationTrainingArguments) -> ImageData:
    """The images to train on and those held out, on all processes."""
    check_streaming(model_args, data_args, args)
    sources = asdict(data_args)
    del sources["crop_pct"]
    with args.main_process_first(desc="loading data"):
        return load_image_data(**sources)


def check_streaming(model_args: ModelArguments, data_args: DataArguments, args: DistillationTrainingArguments):
    """Refuse what needs to know the stream's length or its images' positions."""
    if not data_args.streaming:
        return
    if args.max_steps <= 0:
        raise InputError("streaming: a stream has no length, so epochs mean nothing; give --max_steps")
    if args.code_compatible:
        raise InputError("streaming: code_compatible changes the learning rate by epochs, a stream has none; drop one")
    if args.warmup_epochs > 0:
        raise InputError("streaming: a stream has no epochs; give --warmup_steps instead of warmup_epochs")
    if args.teacher_store:
        raise InputError("streaming: a teacher_store keeps answers by position, which a stream has not; drop one")
    if model_args.train_teacher and args.distillation_type != "none":
        raise InputError("streaming: a teacher is trained on stored images; give --teacher_name_or_path")


def try_teacher(model_args: ModelArguments, args: DistillationTrainingArguments, teacher, held_out):
    """Say how good the teacher is, and refuse one that is no better than chance."""
    share = check_teacher(teacher, held_out, args.per_device_eval_batch_size, model_args.allow_weak_teacher)
    say(args, f"the teacher is right on {share:.1%} of a sample of the held-out images")


def training_views(data_args, args: DistillationTrainingArguments, data: ImageData, image_size: int):
    """The training images as the run sees them."""
    settings = AugmentationSettings.from_arguments(args, image_size)
    seed = args.views_seed
    if not data_args.streaming:
        return ViewDataset(data.train, settings, seed, args.keep_decoded_images)
    share = {"rank": args.process_index, "num_processes": args.world_size}
    return StreamingViewDataset(data.train, settings, args.train_batch_size, args.repeated_augmentation, seed, **share)


def distil(
    trainer: DistillationTrainer, args: DistillationTrainingArguments, checkpoint: str | None
) -> dict[str, float]:
    """Ask the teacher for its accuracy, train, evaluate, save; the results as `all_results.json` holds them."""
    results = trainer.evaluate_teacher()
    trained = trainer.train(resume_from_checkpoint=checkpoint)
    results |= trained.metrics | trainer.evaluate()
    results |= trainer.choose_final_weights(results)
    results["num_parameters"] = trainer.model.num_parameters()
    results["bad_images"] = trainer.count_bad_images()
    results["teacher_views_asked"] = trainer.count_teacher_views()
    with disk_errors_explained(args.output_dir, "the model"):
        trainer.save_model(args.output_dir, _internal_call=True)  # a call from outside would push it, without its card
        trainer.save_state()
    if trainer.is_world_process_zero():
        decided = {name: trainer.decisions[name].tolist() for name in DECISIONS if name in trainer.decisions}
        write_json(Path(args.output_dir, "predictions.json"), decided)
    return results


def record(trainer: DistillationTrainer, facts: dict[str, str], arguments: list[str], parsed: tuple):
    """Keep what the card tells of how the model was made."""
    if trainer.is_world_process_zero():
        output_dir = Path(trainer.args.output_dir)
        name = trainer.hub_model_id or output_dir.resolve().name
        stores = [] if trainer.teacher_store is None else [trainer.teacher_store.about.get("teacher")]
        with disk_errors_explained(output_dir, RECORD):
            write_run_record(output_dir, facts, arguments, parsed, name, stores)


def look_inside(trainer: DistillationTrainer, held_out: EvaluationDataset):
    """What the model, as it was saved, makes of some held-out images: a picture, and figures of its tokens."""
    if not trainer.is_world_process_zero():
        return
    args, decisions = trainer.args, trainer.decisions
    model = DeiTDistillForImageClassification.from_pretrained(args.output_dir).to(args.device)
    chosen = choose_examples(decisions["labels"], decisions["fused"])
    pixel_values = torch.stack([held_out[index]["pixel_values"] for index in chosen])
    teacher = decisions["teacher"][chosen] if "teacher" in decisions else None
    path = Path(args.output_dir, PREDICTIONS)
    draw_predictions(model, pixel_values, decisions["labels"][chosen], teacher, trainer.processing_class, path)
    spread = np.unique(np.linspace(0, len(held_out) - 1, IMAGES_TO_LOOK_AT).astype(int)).tolist()
    pixel_values = torch.stack([held_out[index]["pixel_values"] for index in spread])
    write_json(Path(args.output_dir, TOKENS), describe_tokens(model, pixel_values))


def finish(trainer: DistillationTrainer, results: dict[str, float]):
    """Write the card, and then the results: their presence says that the run is complete."""
    trainer.create_model_card(results)
    if trainer.is_world_process_zero():
        write_json(Path(trainer.args.output_dir, "all_results.json"), dict(sorted(results.items())))


def find_repository(args: DistillationTrainingArguments) -> Destination | None:
    """Make or find the repository, on the main process: a wrong name or token shows before any training."""
    if args.process_index != 0:
        return None
    name = args.hub_model_id or Path(args.output_dir).resolve().name
    return open_repository(name, args.hub_token, args.hub_private_repo, args.hub_revision)


def push_finished(args: DistillationTrainingArguments):
    """Push a run that was finished before, as the push that failed, or was not asked for then, would have."""
    if not args.push_to_hub or args.process_index != 0:
        return
    clear_stages(args.output_dir)
    destination = find_repository(args)
    note_repository(args.output_dir, destination.repo_id, args.push_native, args.hub_revision)
    write_model_card(args.output_dir)
    push_all(stage_run(args.output_dir, "End of training", args.push_native), destination)
    say(args, f"pushed to {destination.repo_id}")


def is_finished(args: DistillationTrainingArguments, arguments: list[str]) -> bool:
    """Whether `output_dir` holds a finished run that the user did not ask to replace; says so, and what differs."""
    results = Path(args.output_dir, "all_results.json")
    if not results.exists() or args.overwrite_output_dir or args.dry_run:
        return False
    text = [results_table(json.loads(results.read_text()))]
    if changed := changed_arguments(args.output_dir, arguments):
        text.append(f"That run was another than this command's; it differs in {', '.join(changed)}.")
    text.append("To train again, choose another --output_dir or add --overwrite_output_dir true.")
    say(args, f"{args.output_dir} holds a finished run; nothing is trained", "\n".join(text))
    return True


if __name__ == "__main__":
    try:
        exit_code = run_command(main)
    except Interrupted as interrupted:
        exit_code = interrupted.code
    end_process(exit_code)
