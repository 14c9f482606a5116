"""Predict the classes of images with a trained model: `python -m modeling_deit_distill.predict MODEL FOLDER_OR_FILES`.

MODEL is the output folder of a run, a name on the Hub, any checkpoint that `python -m modeling_deit_distill.conversion`
reads, any other image classifier of transformers, or a folder with an ONNX export. Folders are searched at any depth.
The CSV file has one row for each image; one that cannot be read has the reason in its column `error`. If the folders
below a named one have the names of the model's classes, its answers are compared with them.
"""

import argparse
import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from .analysis import Measured, measure_decisions
from .classifiers import Classifier, TorchClassifier, load_any_classifier
from .data.evaluation import ImageDataset, collate_images, evaluation_transform
from .data.image_files import Skipped, shown
from .data.listing import are_listed, are_listed_unlabelled
from .data.unlabelled import NO_FOLDER, UNREADABLE, FoundImages, RowImages, find_images
from .errors import InputError, one_line, printable_lines, worker_failure
from .files import written_whole
from .hardware import MAX_WORKERS, num_cores
from .judging import judge, other_images
from .modeling_deit_distill import DeiTDistillForImageClassification
from .output_folder import ANSWERS, CHECKPOINT_PREFIX, IMAGES, TEACHER, read_run_file
from .report import aligned, counted, figures_of_classes, say, summary_table
from .screen import keep_libraries_quiet
from .script import run_script
from .teachers.classes import known_classes
from .teachers.teacher import PRECISIONS

NOTHING = -1  # in place of a class: no answer, or no truth
MAX_LISTED = 20


def main(arguments: list[str]):
    """Predict, write, and say what came of it.

    Raises:
        InputError: several processes, no model, no images, or a file that cannot be written.
    """
    keep_libraries_quiet()
    options = parse_options(arguments)
    if (number := int(os.environ.get("WORLD_SIZE", "1"))) > 1:  # each process would write the same file
        raise InputError(
            f"predict was launched in {number} processes, and is one command of one process, which keeps all cores "
            "busy; start it without a launcher: python -m modeling_deit_distill.predict"
        )
    images = find_images(options.files)
    classifier = load_any_classifier(options.model, options.device, options.precision)
    truth = None if options.no_measure else find_truth(classifier.class_names, images)
    num_known = (0, 0) if truth is None else number_known(options.model, images, truth)
    print(summary_table(what_will_run(classifier, images, truth, num_known)), flush=True)
    settings = {"batch_size": options.batch_size, "num_workers": options.num_workers, "show": True}
    outcome = write_predictions(classifier, images, options.output, truth, **settings)
    table = classes_table(outcome, classifier.class_names)
    print(printable_lines(f"\n{options.output}: {counted(len(images), 'row')}\n\n{table}"))
    if truth is not None and (results := measured(outcome, truth)) is not None:
        number = np.count_nonzero(truth.labels != NOTHING)
        print(printable_lines(f"\n{measured_in_words(results, classifier.class_names, number)}"))


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """The command line.

    Raises:
        InputError: a batch without images, or a file that could not be written in the end.
    """
    first, _, rest = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m modeling_deit_distill.predict",
        description=first.split(":")[0],
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="folder, file of weights, or name on the Hub")
    parser.add_argument("files", nargs="+", metavar="FOLDER_OR_FILES", help="folders of images, or images")
    parser.add_argument("--output", default="predictions.csv", help="CSV file to write (predictions.csv)")
    parser.add_argument("--batch_size", type=int, default=32, help="images at a time (32)")
    parser.add_argument("--num_workers", type=int, help="processes that decode images (one for each core)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (the first accelerator, else cpu)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the model's arithmetic (fp32)")
    parser.add_argument(
        "--no_measure", action="store_true", help="do not compare the answers with the names of folders"
    )
    options = parser.parse_args(arguments)
    if options.batch_size < 1:
        raise InputError(f"batch_size is {options.batch_size}; it must be at least 1")
    if options.num_workers is not None and options.num_workers < 0:
        raise InputError(f"num_workers is {options.num_workers}; it must be at least 0")
    if Path(options.output).is_dir():
        raise InputError(
            f"output {options.output!r} is a folder; give a file, such as {options.output}/predictions.csv"
        )
    return options


@dataclass
class Outcome:
    """What came of a prediction.

    Attributes:
        decisions: (images,) int32 class indices, `NOTHING` for an image that cannot be read.
        confidence: (classes,) the sum of the probabilities of the answers of each class.
        bad: images that cannot be read.
    """

    decisions: np.ndarray
    confidence: np.ndarray
    bad: Skipped = field(default_factory=Skipped)


@dataclass(frozen=True)
class Truth:
    """What the names of folders say about images.

    Attributes:
        labels: (images,) int32 class indices of the model, `NOTHING` where nothing is known.
        folders: class index by the name of a folder that has the name of a class.
        others: number of images by the name of any other folder.
    """

    labels: np.ndarray
    folders: dict[str, int]
    others: dict[str, int]


def find_truth(class_names: list[str], images: FoundImages | RowImages) -> Truth:
    """The classes that images have by the folders that they lie in, matched by name as a teacher's are."""
    names = images.folder_names
    known = known_classes(class_names, names)
    by_folder = np.array([*(known.get(name, NOTHING) for name in names), NOTHING], np.int32)  # `NO_FOLDER` is the last
    counts = np.bincount(images.folders[images.folders != NO_FOLDER], minlength=len(names)).tolist()
    others = {name: count for name, count in zip(names, counts, strict=True) if name not in known}
    return Truth(by_folder[images.folders], known, others)


def write_predictions(
    classifier: Classifier,
    images: FoundImages | RowImages,
    output: str | Path,
    truth: Truth | None = None,
    batch_size: int = 32,
    num_workers: int | None = None,
    show: bool = False,
) -> Outcome:
    """Write a row for each image, in their order: the CSV file appears when it is complete.

    Columns: `path`, `class` and its `probability`, `next_class` and `next_probability`, of two heads what each would
    answer alone (`cls`, `distillation`), with `truth` the `label`, and `error`.

    Args:
        classifier: from [`load_any_classifier`].
        images: as [`data.unlabelled.find_images`] finds them.
        output: the file.
        truth: from [`find_truth`].
        batch_size: images at a time.
        num_workers: processes that decode; by default one for each core.
        show: a bar, on a terminal.

    Raises:
        InputError: a file that cannot be written, or a model that does not fit the images or answers with NaN.
    """
    names = classifier.class_names
    outcome = Outcome(np.full(len(images), NOTHING, np.int32), np.zeros(len(names)))
    heads, labels = classifier.outputs[1:], ["label"] if truth and truth.folders else []
    columns = ["path", "class", "probability", "next_class", "next_probability", *heads, *labels, "error"]
    with _written(output) as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        for rows, logits, errors in predict(classifier, images, batch_size, num_workers, show):
            cells = {row: {"error": " ".join(reason.split())} for row, reason in errors.items()}
            cells |= zip(rows, _cells(logits, names, rows, outcome), strict=True)
            for row in sorted(cells):
                known = labels and truth.labels[row] != NOTHING
                label = {"label": names[truth.labels[row]]} if known else {}
                writer.writerow({"path": images.name(row), **cells[row], **label})
            for row, reason in sorted(errors.items()):
                outcome.bad.add(UNREADABLE, f"{images.name(row)} ({one_line(reason)})")
    return outcome


def predict(
    classifier: Classifier, images: Sequence, batch_size: int, num_workers: int | None = None, show: bool = False
) -> Iterator[tuple[list[int], dict[str, torch.Tensor], dict[int, str]]]:
    """The answers, batch by batch; arguments as of [`write_predictions`].

    Yields:
        The rows that could be read; what the classifier answers, (rows, classes) for each of its `outputs`, none
        without rows; and by row why the others could not.

    Raises:
        InputError: see [`write_predictions`].
    """
    if classifier.takes_photographs:  # of any size, which do not fit into one batch
        batch_size = 1
    if num_workers is None:
        num_workers = min(num_cores(), MAX_WORKERS, -(-len(images) // batch_size))
    loader = DataLoader(
        ImageDataset(images, evaluation_transform(classifier.processor)),
        batch_size,
        collate_fn=collate_images,
        num_workers=num_workers,
        pin_memory=classifier.device.type == "cuda",
    )
    with tqdm(total=len(images), unit=" images", disable=None if show else True) as bar:
        for batch in _loaded(loader):
            rows, pixel_values = batch["rows"], batch["pixel_values"]
            logits = {} if pixel_values is None else classifier(pixel_values)
            if rows and (wrong := ~logits["fused"].amax(dim=1).isfinite()).any():  # one class may be impossible, -inf
                raise InputError(
                    f"model {classifier.name!r} answers with NaN or infinity, first to "
                    f"{images.name(rows[int(wrong.nonzero()[0])])}; its weights are broken or its precision overflows"
                )
            yield rows, logits, batch["errors"]
            bar.update(len(rows) + len(batch["errors"]))


def _loaded(loader: DataLoader) -> Iterator[dict]:
    try:
        yield from loader
    except RuntimeError as error:
        if (words := worker_failure(error, "--num_workers")) is not None:
            raise InputError(words) from error
        if "DataLoader worker" not in str(error):
            raise
        raise InputError(
            f"a process that decodes images was ended, perhaps for want of memory ({one_line(error)}); give fewer "
            "--num_workers, 0 for none, or a smaller --batch_size"
        ) from error


def _cells(logits: dict[str, torch.Tensor], names: list[str], rows: list[int], outcome: Outcome) -> Iterator[dict]:
    """The cells of each of `rows` by column, noted in the outcome."""
    if not rows:
        return
    probabilities, classes = logits["fused"].double().softmax(dim=1).topk(min(2, len(names)))
    heads = {name: each.argmax(dim=1).tolist() for name, each in logits.items() if name != "fused"}
    outcome.decisions[rows] = classes[:, 0].numpy()
    np.add.at(outcome.confidence, classes[:, 0].numpy(), probabilities[:, 0].numpy())
    for place, (best, shares) in enumerate(zip(classes.tolist(), probabilities.tolist(), strict=True)):
        cells = {"class": names[best[0]], "probability": f"{shares[0]:.6f}"}
        if len(best) > 1:
            cells |= {"next_class": names[best[1]], "next_probability": f"{shares[1]:.6f}"}
        yield cells | {name: names[each[place]] for name, each in heads.items()}


@contextmanager
def _written(output: str | Path) -> Iterator[TextIO]:
    """A text file that appears when it is complete.

    Raises:
        InputError: what the disk refuses.
    """
    try:
        with written_whole(output) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
            yield file
    except OSError as error:
        raise InputError(f"output {str(output)!r} cannot be written ({one_line(error)}); choose another") from error


def judge_finished(plan) -> dict[str, float]:
    """Evaluate a finished model on a [`Plan`]'s held-out images, and write its answers if so asked; see [`judge`]."""
    model = plan.student()
    results = judge(plan, model)
    if not plan.args.dry_run:
        predict_held_out(plan, model)
    return results


def predict_held_out(plan, model: DeiTDistillForImageClassification | None = None):
    """With `do_predict`, write the answers on a plan's held-out images, bad ones too, to its output folder.

    The main process does it, and the others do not wait.

    Args:
        plan: the [`Plan`].
        model: the plan's student; by default the model in the output folder.
    """
    args = plan.args
    if not args.do_predict:
        return
    images, output = RowImages(plan.data.validation), Path(args.output_dir, ANSWERS)  # the processes read it together
    if args.process_index != 0:
        return
    if model is None:
        if warning := other_images(args.output_dir, plan.data):
            say(args, f"warning: {warning}")
        classifier = load_any_classifier(args.output_dir, args.device, args.precision)
    else:
        name = plan.model_args.model_name_or_path
        classifier = TorchClassifier(name, model, plan.processor, args.device, args.precision)
    truth, workers = find_truth(classifier.class_names, images), args.dataloader_num_workers
    write_predictions(classifier, images, output, truth, args.per_device_eval_batch_size, workers)
    say(args, f"{output} has the answers on {_images(len(images))}")


def number_known(model: str, images: FoundImages, truth: Truth) -> tuple[int, int]:
    """How many of the images to measure on the model was made from, with and without their labels.

    As far as `images.json` of its run tells. A teacher is trained on images with labels alone.
    """
    folder = Path(model)
    is_of_run = folder.name == TEACHER or folder.name.startswith(CHECKPOINT_PREFIX)
    listing = read_run_file(Path(folder.parent if is_of_run else folder, IMAGES))
    paths = [images.name(row) for row in np.flatnonzero(truth.labels != NOTHING).tolist()]
    without = 0 if folder.name == TEACHER else sum(are_listed_unlabelled(paths, listing))
    return sum(are_listed(paths, listing)), without


def what_will_run(
    classifier: Classifier, images: FoundImages, truth: Truth | None, num_known: tuple[int, int] = (0, 0)
) -> dict[str, str]:
    """Model, images and what will be measured, in words; `num_known` is [`number_known`]."""
    about = f"{len(classifier.class_names):,} classes, {classifier.precision}, on {classifier.device}"
    words = {"model": f"{classifier.name}: {about}", "images": f"{len(images):,}"}
    if images.skipped.counts:
        words["skipped"] = str(images.skipped)
    if truth is None or not images.folder_names:
        return words
    number, parts = np.count_nonzero(truth.labels != NOTHING), []
    if truth.folders:
        known, (_, without) = "", num_known
        if sum(num_known) > number / 2:
            known = f", {sum(num_known):,} of which the model was made from"
            known += f" ({without:,} of them without labels)" if without else ""
            known += ", so the figures say nothing of new images"
        parts.append(
            f"{_images(number)}{known}, in {len(truth.folders):,} folder(s) named like classes of the model "
            "(--no_measure leaves this out)"
        )
    if truth.others:
        listed = [f"{shown(name)} ({count:,})" for name, count in truth.others.items()]
        more = f" and {len(listed) - MAX_LISTED:,} more" if len(listed) > MAX_LISTED else ""
        which = f"named like no class of the model: {', '.join(listed[:MAX_LISTED])}{more}"
        others = _images(sum(truth.others.values()))
        parts.append(f"but not {others} in folders {which}" if parts else f"nothing: all folders are {which}")
    if number and (loose := np.count_nonzero(images.folders == NO_FOLDER)):
        parts.append(f"but not {_images(loose)} in no class folder")
    return {**words, "measured": "; ".join(parts)}


def classes_table(outcome: Outcome, class_names: list[str]) -> str:
    """How many images were given each class, the most frequent first, and which images could not be read."""
    answered = outcome.decisions[outcome.decisions != NOTHING]
    counts = np.bincount(answered, minlength=len(class_names))
    order = np.argsort(-counts, kind="stable").tolist()
    given, never = [index for index in order if counts[index]], [index for index in order if not counts[index]]
    rows = [["class", "images", "share", "mean probability"]]
    for index in given[:MAX_LISTED]:
        share, mean = counts[index] / len(answered), outcome.confidence[index] / counts[index]
        rows.append([shown(class_names[index]), f"{counts[index]:,}", f"{100 * share:.1f} %", f"{mean:.2f}"])
    lines = [aligned(rows)] if given else []
    if len(given) > MAX_LISTED:
        lines.append(f"and {len(given) - MAX_LISTED:,} more classes")
    if given and never:
        names = map(shown, (class_names[index] for index in never))
        lines.append(f"never answered: {', '.join(names) if len(never) <= MAX_LISTED else f'{len(never):,} classes'}")
    return "\n".join([*lines, *([str(outcome.bad)] if outcome.bad.counts else [])])


def measured(outcome: Outcome, truth: Truth) -> Measured | None:
    """What the answers are worth, where the truth is known; None where no such image could be read."""
    rows = (truth.labels != NOTHING) & (outcome.decisions != NOTHING)
    if not rows.any():
        return None
    return measure_decisions(truth.labels[rows], outcome.decisions[rows], len(outcome.confidence))


def measured_in_words(results: Measured, class_names: list[str], num_images: int) -> str:
    """The figures as tables for a terminal; `num_images` counts those that cannot be read too."""
    names = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro-F1"}
    totals = aligned([[name, f"{100 * getattr(results, key):.2f} %"] for key, name in names.items()])
    number = sum(each.num_images for each in results.classes)
    title = f"Measured on {_images(number)} by the names of the folders"
    if number < num_images:
        title += f"; {num_images - number:,} of the {num_images:,} cannot be read"
    return "\n\n".join([title, totals, figures_of_classes(results, class_names)])


def _images(number: int) -> str:
    return f"{number:,} image" + ("" if number == 1 else "s")


if __name__ == "__main__":
    run_script(main)
