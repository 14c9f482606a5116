"""A finished model judged on held-out images, without training: `train_deit.py --do_train false`."""

from pathlib import Path

from transformers import Trainer

from .analysis import measure_decisions
from .arguments import DataArguments, DistillationTrainingArguments, ModelArguments
from .data.datasets import collate
from .data.listing import num_trained
from .data.sources import ImageData
from .errors import InputError
from .modeling_deit_distill import DeiTDistillForImageClassification
from .output_folder import IMAGES, RUN_RECORD, read_run_file
from .precision import precision_in_words
from .report import ACCURACY_NAMES, aligned, figures_of_classes, say, summary_table
from .student import what_is_kept
from .training.metrics import HeldOutMetrics, decide


def judged_model(model_args: ModelArguments, args: DistillationTrainingArguments) -> str:
    """The model to judge: that of `output_dir`, or the one that is named.

    Raises:
        InputError: there is none, or there are both.
    """
    given, output_dir = model_args.model_name_or_path, args.output_dir
    has_own = Path(output_dir, "config.json").is_file()
    if given is None and not has_own:
        raise InputError(
            f"do_train is false and output_dir {output_dir!r} holds no finished model to judge; give the output_dir of "
            "a run that has ended, or --model_name_or_path (one of its checkpoints, for example)"
        )
    if given is not None and has_own and Path(given).resolve() != Path(output_dir).resolve():
        raise InputError(
            f"do_train is false, but which model is to be judged? output_dir {output_dir!r} holds one, and "
            f"model_name_or_path names {given!r}; give --model_name_or_path {output_dir} or another --output_dir"
        )
    return output_dir if given is None else given


def judge(plan, model: DeiTDistillForImageClassification) -> dict[str, float]:
    """Say what is judged, evaluate, and say what came of it; nothing is written.

    Args:
        plan: the [`Plan`].
        model: its student.

    Returns:
        `eval_accuracy` and all others as in `all_results.json`; empty for a dry run.
    """
    args, data, name = plan.args, plan.data, plan.model_args.model_name_or_path
    warning = other_images(name, data) if args.process_index == 0 else None
    say(args, "What will be judged; nothing is trained", summary_table(_in_words(plan)))
    if warning:
        say(args, f"warning: {warning}")
    if args.dry_run:
        return {}
    args.report_to = []  # the reporters' files are those of the run
    metrics = HeldOutMetrics()
    trainer = Trainer(
        model,
        args,
        collate,
        eval_dataset=plan.held_out,
        processing_class=plan.processor,
        compute_metrics=metrics,
        preprocess_logits_for_metrics=decide,
    )
    results = trainer.evaluate() | {"bad_held_out_images": len(plan.bad_held_out)}
    names = {**ACCURACY_NAMES, "eval_balanced_accuracy": "balanced accuracy", "eval_macro_f1": "macro-F1"}
    totals = aligned([[words, f"{100 * results[key]:.2f} %"] for key, words in names.items() if key in results])
    judged = measure_decisions(metrics.decisions["labels"], metrics.decisions["fused"], model.num_labels)
    say(args, "Results", f"{totals}\n\n{figures_of_classes(judged, list(model.config.id2label.values()))}")
    return results


def other_images(name: str, data: ImageData) -> str | None:
    """A warning where the model's own run was, or may have been, trained on images that it is judged on.

    Args:
        name: of the model.
        data: whose held-out images it is judged on.

    Raises:
        InputError: a record that cannot be read.
    """
    facts = read_run_file(Path(name, RUN_RECORD)).get("facts")
    held_out = facts.get("held out") if isinstance(facts, dict) else None
    if not held_out:
        return None
    number, images = num_trained(data.validation, read_run_file(Path(name, IMAGES))), len(data.validation)
    if number == 0 or (number is None and str(held_out).split()[0] == f"{images:,}"):
        return None
    trained = "It may have been trained on some" if number is None else f"It was trained on {number:,}"
    return (
        f"the run in {name} held out {held_out}; these are {images:,} images, {data.validation_source}. {trained} of "
        "them: give the data's arguments as then, and the same images"
    )


def _in_words(plan) -> dict[str, str]:
    args, data, config = plan.args, plan.data, plan.config
    return {
        "model": f"{plan.model_args.model_name_or_path}: {what_is_kept(plan.start, config).removeprefix('kept: ')}",
        "held out": f"{len(data.validation):,} images, {_source(data, plan.data_args)}",
        "classes": f"{len(data.class_names):,} of the model's {config.num_labels:,}",
        **({"skipped": data.skipped} if data.skipped else {}),
        "precision": precision_in_words(args.precision, args.device.type, args.bf16_is_automatic),
        "device": str(args.device),
    }


def _source(data: ImageData, data_args: DataArguments) -> str:
    if data_args.is_held_out_alone:
        return data.source
    are_files = data_args.train_dir or data_args.train_csv  # and the words name them
    return data.validation_source if are_files else f"{data.validation_source} of {data.source}"
