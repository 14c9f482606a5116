"""Distil an image classifier into a DeiT: `accelerate launch train_deit.py RECIPE.yaml --key value`.

The recipe comes first, the command line over it; `examples/recipes` has some, `--help` lists every argument.
"""

import json
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from datasets import Dataset
from transformers import set_seed

from modeling_deit_distill import (
    DeiTDistillConfig,
    DeiTDistillForImageClassification,
    DistillationTrainer,
    DistillationTrainingArguments,
    InputError,
)
from modeling_deit_distill.arguments import DataArguments, ModelArguments, parse_arguments
from modeling_deit_distill.data import (
    EvaluationDataset,
    ImageData,
    StreamingViewDataset,
    ViewDataset,
    evaluation_processor,
    evaluation_transform,
    load_image_data,
)
from modeling_deit_distill.errors import LocalInputError, one_line
from modeling_deit_distill.labelling import (
    find_store,
    is_full,
    planned_views,
    prepare_teacher,
    store_for,
    teacher_description,
)
from modeling_deit_distill.model_card import CURVES, plot_training_curves, write_model_card
from modeling_deit_distill.report import results_table, summary
from modeling_deit_distill.teacher import check_teacher
from modeling_deit_distill.views import AugmentationSettings

# What may differ from the checkpoint a student starts from.
FREE_FIELDS = ("image_size", "drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob", "fusion")


def main(arguments: list[str]):
    model_args, data_args, args = parse_arguments(arguments)
    if is_finished(args):
        return

    # Data
    check_streaming(model_args, data_args, args)
    with args.main_process_first(desc="loading data"):
        sources = asdict(data_args)
        crop_pct = sources.pop("crop_pct")
        data = load_image_data(**sources)

    checkpoint = check_earlier_run(args)

    # What will run
    config = student_config(model_args, args, data.class_names)
    processor = evaluation_processor(config.image_size, crop_pct)
    views = training_views(data_args, args, data, config.image_size)
    teacher_config = teacher_description(model_args, args, data)
    store = find_store(model_args, args, data, teacher_config, views)
    facts = run_facts(model_args, args, data, config, teacher_config, views, store)
    say(args, "What will run", summary(facts))
    if args.dry_run:
        return

    # Student: its weights depend on the seed alone. What may be wrong with it shows before the teacher's training.
    set_seed(args.seed)
    student = build_student(model_args, config)
    held_out = EvaluationDataset(data.validation, evaluation_transform(processor))

    # Teacher, or what it said before
    teacher = None
    if args.distillation_type != "none" and not is_full(args, views, store):
        teacher = prepare_teacher(model_args, data_args, args, data, teacher_config, views, store)
        try_teacher(model_args, args, teacher, held_out)
        store = store_for(data_args, args, data, views, teacher, store)

    # Distil
    trainer = DistillationTrainer(
        student,
        args,
        teacher,
        store,
        train_dataset=views,
        eval_dataset=held_out,
        processing_class=processor,
    )
    clear_earlier_run(args)
    results = distil(trainer, args, checkpoint)

    # Publish
    say(args, f"Results, kept in {args.output_dir}", results_table(results))
    if trainer.is_world_process_zero():
        plot_training_curves(trainer.state.log_history, Path(args.output_dir, CURVES))
        write_model_card(args.output_dir, facts)
    if args.push_to_hub:
        trainer.push_to_hub()


def check_streaming(model_args: ModelArguments, data_args: DataArguments, args: DistillationTrainingArguments):
    """Refuse what needs to know the stream's length or its images' positions."""
    if not data_args.streaming:
        return
    if args.max_steps <= 0:
        raise InputError("streaming: a stream has no length, so epochs mean nothing; give --max_steps")
    if args.warmup_epochs > 0:
        raise InputError("streaming: a stream has no epochs; give --warmup_steps instead of warmup_epochs")
    if args.teacher_store:
        raise InputError("streaming: a teacher_store keeps answers by position, which a stream has not; drop one")
    if model_args.train_teacher and args.distillation_type != "none":
        raise InputError("streaming: a teacher is trained on stored images; give --teacher_name_or_path")


def student_config(
    model_args: ModelArguments, args: DistillationTrainingArguments, class_names: list[str]
) -> DeiTDistillConfig:
    """The student's configuration: a named size or a checkpoint's own, the arguments over it, the data's classes."""
    fields = DeiTDistillConfig.__annotations__
    overrides = {name: getattr(model_args, name) for name in fields if getattr(model_args, name, None) is not None}
    classes = {
        "id2label": dict(enumerate(class_names)),
        "label2id": {name: index for index, name in enumerate(class_names)},
    }
    try:
        if model_args.model_name_or_path:
            check_fits_checkpoint(model_args.model_name_or_path, overrides)
            config = DeiTDistillConfig.from_pretrained(model_args.model_name_or_path, **overrides, **classes)
        else:
            overrides.setdefault("use_distillation_token", args.distillation_type != "none")
            config = DeiTDistillConfig.from_size(model_args.model_size or "tiny", **overrides, **classes)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"student: {one_line(error)}") from error
    if config.num_channels != 3:
        raise InputError(f"num_channels is {config.num_channels}; images are decoded as RGB, so it must be 3")
    if args.distillation_type == "none" and config.use_distillation_token:
        raise InputError(
            "use_distillation_token is true but distillation_type is none: nothing would train the distillation head, "
            "and it would still enter the mean; drop it or choose soft or hard"
        )
    return config


def check_fits_checkpoint(name_or_path: str, overrides: dict):
    """Refuse a checkpoint that is no student of ours, and arguments that its weights would not fit."""
    own, _ = DeiTDistillConfig.get_config_dict(name_or_path)
    if own.get("model_type") != DeiTDistillConfig.model_type:
        raise InputError(
            f"model_name_or_path {name_or_path!r} holds a {own.get('model_type')!r} model, not a "
            f"{DeiTDistillConfig.model_type!r} checkpoint as train_deit.py writes it"
        )
    own = DeiTDistillConfig.from_dict(own)
    for name, value in overrides.items():
        if name not in FREE_FIELDS and value != getattr(own, name):
            raise InputError(
                f"{name} is {value}, but the checkpoint {name_or_path!r} has {getattr(own, name)}; leave {name} out"
            )


def try_teacher(model_args: ModelArguments, args: DistillationTrainingArguments, teacher, held_out):
    """Say how good the teacher is, and refuse one that is no better than chance."""
    share = check_teacher(teacher, held_out, args.per_device_eval_batch_size, model_args.allow_weak_teacher)
    say(args, f"the teacher is right on {share:.1%} of a sample of the held-out images")


def build_student(model_args: ModelArguments, config: DeiTDistillConfig) -> DeiTDistillForImageClassification:
    """A new student, or a checkpoint's with new heads where its classes differ."""
    attention = {"attn_implementation": model_args.attn_implementation} if model_args.attn_implementation else {}
    try:
        if model_args.model_name_or_path is None:
            return DeiTDistillForImageClassification._from_config(config, **attention)
        return DeiTDistillForImageClassification.from_pretrained(
            model_args.model_name_or_path, config=config, ignore_mismatched_sizes=True, **attention
        )
    except (ImportError, OSError, ValueError) as error:
        raise InputError(f"student: {one_line(error)}") from error


def training_views(data_args, args: DistillationTrainingArguments, data: ImageData, image_size: int):
    """The training images as the run sees them."""
    settings = AugmentationSettings.from_arguments(args, image_size)
    seed = args.seed if args.data_seed is None else args.data_seed  # several student seeds may share their views
    if not data_args.streaming:
        return ViewDataset(data.train, settings, seed)
    share = {"rank": args.process_index, "num_processes": args.world_size}
    return StreamingViewDataset(data.train, settings, args.train_batch_size, args.repeated_augmentation, seed, **share)


def distil(
    trainer: DistillationTrainer, args: DistillationTrainingArguments, checkpoint: str | None
) -> dict[str, float]:
    """Ask the teacher for its accuracy, train, evaluate, save; the results as `all_results.json` holds them."""
    results = trainer.evaluate_teacher()
    trained = trainer.train(resume_from_checkpoint=checkpoint)
    results |= trained.metrics | trainer.evaluate()
    results["num_parameters"] = trainer.model.num_parameters()
    results["bad_images"] = trainer.count_bad_images()
    results["teacher_views_asked"] = trainer.count_teacher_views()
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        # Written last, beside and renamed: its presence says that the run is complete.
        path = Path(args.output_dir, "all_results.json")
        path.with_suffix(".partial").write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")
        path.with_suffix(".partial").rename(path)
    return results


def is_finished(args: DistillationTrainingArguments) -> bool:
    """Whether `output_dir` holds a finished run that the user did not ask to replace; says so."""
    results = Path(args.output_dir, "all_results.json")
    if not results.exists() or args.overwrite_output_dir or args.dry_run:
        return False
    title = f"{args.output_dir} holds a finished run; nothing was touched"
    remedy = "To train again, choose another --output_dir or add --overwrite_output_dir true."
    say(args, title, results_table(json.loads(results.read_text())) + "\n" + remedy)
    return True


def check_earlier_run(args: DistillationTrainingArguments) -> str | None:
    """The checkpoint to resume from, or None to start from the beginning; nothing of an earlier run goes unnoticed."""
    checkpoints = [path for path in Path(args.output_dir).glob("checkpoint-*") if path.name[11:].isdigit()]
    checkpoints.sort(key=lambda path: int(path.name[11:]))
    wanted = args.resume_from_checkpoint
    if wanted is None:
        if checkpoints and not args.overwrite_output_dir and not args.dry_run:
            raise InputError(
                f"output_dir {args.output_dir!r} holds {len(checkpoints)} checkpoint(s) of an unfinished run; add "
                "--resume_from_checkpoint true to go on, --overwrite_output_dir true to start again, or choose another"
            )
        return None
    if wanted.lower() not in ("true", "yes"):
        if not is_complete(Path(wanted)):
            raise InputError(
                f"resume_from_checkpoint {wanted!r} is no complete checkpoint; give one, or true for the last"
            )
        return wanted
    for checkpoint in reversed(checkpoints):
        if is_complete(checkpoint):
            say(args, f"resuming from {checkpoint}")
            return str(checkpoint)
        say(args, f"passing over {checkpoint}: it is not complete")
    say(args, f"no checkpoint in {args.output_dir} yet: starting from the beginning")
    return None


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was saved to its end."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
    return (checkpoint / "optimizer.pt").exists() and (checkpoint / "model.safetensors").exists()


def clear_earlier_run(args: DistillationTrainingArguments):
    """Remove what an earlier run left, if the user said so; the teacher stays, it is used again where it fits."""
    if not args.overwrite_output_dir or args.resume_from_checkpoint:
        return
    with args.main_process_first(desc="clearing the earlier run"):
        if args.process_index == 0:
            Path(args.output_dir, "all_results.json").unlink(missing_ok=True)
            for checkpoint in Path(args.output_dir).glob("checkpoint-*"):
                shutil.rmtree(checkpoint)


def run_facts(
    model_args, args, data: ImageData, config: DeiTDistillConfig, teacher_config, views, store
) -> dict[str, str]:
    """What will run, in words: for the summary and the card."""
    with torch.device("meta"):
        num_parameters = DeiTDistillForImageClassification(config).num_parameters()
    tokens = "class and distillation token" if config.use_distillation_token else "class token"
    rate = f"{args.learning_rate:g}"
    if args.base_learning_rate is not None:
        rate += f" ({args.base_learning_rate:g} × {args.effective_batch_size} / 512)"
    length = f"{args.max_steps:,} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
    num_images = f"{len(data.train):,}" if isinstance(data.train, Dataset) else "a stream of"
    names = ", ".join(data.class_names[:10]) + (", ..." if len(data.class_names) > 10 else "")
    return {
        "data": f"{data.source}: {num_images} images",
        "held out": f"{len(data.validation):,} images, {data.validation_source}",
        "classes": f"{len(data.class_names)}: {names}",
        "teacher": teacher_in_words(model_args, args, teacher_config, store),
        "student": f"DeiT, hidden {config.hidden_size}, {config.num_hidden_layers} layers, "
        f"{config.num_attention_heads} heads, {tokens}, patch {config.patch_size} of {config.image_size} pixels",
        "parameters": f"{num_parameters:,}",
        "distillation": distillation_in_words(args),
        **store_in_words(args, views, store),
        "effective batch": f"{args.effective_batch_size} ({args.per_device_train_batch_size} per device, "
        f"{args.gradient_accumulation_steps} accumulation step(s), {args.world_size} process(es))",
        "learning rate": f"{rate}, {str(args.lr_scheduler_type.value)}, {args.warmup_epochs:g} warm-up epochs",
        "length": length,
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        "device": str(args.device),
        "output": str(args.output_dir),
    }


def teacher_in_words(model_args: ModelArguments, args: DistillationTrainingArguments, teacher_config, store) -> str:
    """The teacher, how it comes to be, and where its answers are kept."""
    if args.distillation_type == "none":
        return "none"
    if teacher_config is None:
        name = str(store.about.get("teacher"))
    else:
        name = model_args.teacher_name_or_path or f"a new {teacher_config.model_type}"
        if model_args.train_teacher:
            epochs = f"{model_args.teacher_num_train_epochs:g} epochs"
            name += f", trained first for {epochs} (or found in the output folder)"
    return name


def store_in_words(args: DistillationTrainingArguments, views, store) -> dict[str, str]:
    """How much of this run the teacher's store knows already."""
    if args.teacher_store is None or args.distillation_type == "none":
        return {}
    if store is None:
        return {"teacher's store": f"{args.teacher_store}, new"}
    planned = planned_views(args, views)
    missing, total = sum(store.missing(planned).values()), sum(planned.values())
    known = f"all {total:,} views known, no teacher is loaded or trained"
    if missing:
        known = f"{total - missing:,} of {total:,} views known, the teacher is asked about the others"
    return {"teacher's store": f"{args.teacher_store}, {known}"}


def distillation_in_words(args: DistillationTrainingArguments) -> str:
    """The objective with its figures."""
    words = {
        "none": "none: labels alone",
        "soft": f"soft, weight {args.distillation_alpha:g}, temperature {args.distillation_temperature:g}",
        "hard": f"hard, weight {args.distillation_alpha:g}",
    }
    return words[args.distillation_type]


def say(args: DistillationTrainingArguments, title: str, text: str = ""):
    """Print on the main process alone."""
    if args.process_index == 0:
        print(f"\n{title}\n{text}" if text else title, flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # left to the interpreter's end, its threads abort now and then
    except InputError as error:
        if int(os.environ.get("RANK", "0")) == 0 or isinstance(error, LocalInputError):
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
