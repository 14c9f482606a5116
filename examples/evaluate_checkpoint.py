"""Measure image classifiers of any kind on the same held-out images, and compare them.

    python examples/evaluate_checkpoint.py MODEL [MODEL ...] --dataset_name digits --validation_fraction 0.2
    python examples/evaluate_checkpoint.py MODEL [MODEL ...] --validation_dir IMAGES --output report.json

A MODEL is a folder or a name on the Hub: a student of this package, a native checkpoint of transformers, one of timm;
or an ONNX export. Each runs as its users run it, through transformers'
image-classification pipeline and its own image processor (ONNX: through onnxruntime and the processor beside it). Its
classes are matched with the data's by name, whatever their order; of a model with more classes only the data's are
read. The data are held out as in training: the same arguments give the same images, and the trainer's `eval_accuracy`.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import evaluate
import numpy as np
from datasets import Dataset
from safetensors import SafetensorError
from scipy.special import softmax
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoConfig, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from modeling_deit_distill import InputError
from modeling_deit_distill.arguments import DataArguments, DistillationTrainingArguments
from modeling_deit_distill.classifiers import OnnxClassifier, classes_of, onnx_file
from modeling_deit_distill.data.datasets import collate
from modeling_deit_distill.data.evaluation import EvaluationDataset, evaluation_transform
from modeling_deit_distill.data.inspection import readable, try_held_out
from modeling_deit_distill.data.sources import ImageData, load_image_data
from modeling_deit_distill.errors import one_line, printable
from modeling_deit_distill.hub import tell_retries_once, unread
from modeling_deit_distill.judging import other_images
from modeling_deit_distill.report import aligned
from modeling_deit_distill.script import run_script

METRICS = Path(__file__).parent / "metrics"
# What of the data is asked for: all that training is, but how it is read and how a student would see it.
DATA_ARGUMENTS = [field for field in fields(DataArguments) if field.name not in ("streaming", "crop_pct")]
TOP_K = 5
# The table's columns, and which results they show.
COLUMNS = {
    "top-1": "top1_accuracy",
    f"top-{TOP_K}": f"top{TOP_K}_accuracy",
    "calibration error": "expected_calibration_error",
    "agrees with first": "teacher_agreement",
}


def main(arguments: list[str]):
    tell_retries_once()
    options = parse_options(arguments)
    data = load_held_out(options)
    bad = try_held_out(data.validation, max_fraction=options.max_bad_image_fraction)
    held_out = readable(data.validation, bad)
    # All of them are looked at before the first is run, which may take an hour.
    models = [OnnxModel(name) if onnx_file(name) is not None else PipelineModel(name) for name in options.models]
    for name in options.models:
        if warning := other_images(name, data):
            print(f"warning: {printable(warning)}", file=sys.stderr)
    classes = [classes_of(model.name, model.class_names, data.class_names) for model in models]
    results, first = [], None
    for model, indices in zip(models, classes, strict=True):
        logits = logits_of(model, held_out, options.batch_size, indices)
        decisions = logits.argmax(axis=1)
        result = measure(logits, np.asarray(held_out["label"][:]))
        if first is not None:
            result |= load_metric("teacher_agreement").compute(predictions=decisions, references=first)
        first = decisions if first is None else first
        results.append({"model": model.name, "run_by": model.run_by, **result})
    report = {"data": facts(data, len(bad)), "models": results}
    print(table(report))
    if options.output:
        Path(options.output).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """The command line.

    Raises:
        InputError: a batch without images, or a report that could not be written in the end.
    """
    first, _, rest = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="folder or name on the Hub; the others are compared with the first"
    )
    for field in DATA_ARGUMENTS:
        kind = float if isinstance(field.default, float) else str
        parser.add_argument(f"--{field.name}", type=kind, default=field.default, help=field.metadata["help"])
    parser.add_argument(
        "--max_bad_image_fraction",
        type=float,
        default=DistillationTrainingArguments.max_bad_image_fraction,
        help="stop where more than this share of the images cannot be read; fewer are named and left out",
    )
    parser.add_argument("--batch_size", type=int, default=32, help="images at a time")
    parser.add_argument("--output", metavar="FILE", help="write the report there, as JSON")
    options = parser.parse_args(arguments)
    if options.batch_size < 1:
        raise InputError(f"batch_size is {options.batch_size}; it must be at least 1")
    if options.output and (Path(options.output).is_dir() or not Path(options.output).absolute().parent.is_dir()):
        raise InputError(f"output {options.output!r} cannot be written; give a file in a folder that exists")
    return options


def load_held_out(options: argparse.Namespace) -> ImageData:
    """The data as `train_deit.py` loads them for the same arguments; lone validation images are all held out."""
    checked = DataArguments(**{field.name: getattr(options, field.name) for field in DATA_ARGUMENTS})
    return load_image_data(**checked.sources)


class PipelineModel:
    """What transformers' image-classification pipeline can load: ours, native checkpoints, timm's by their wrapper.

    Attributes:
        name: folder or name on the Hub.
        class_names: in the order of the logits.

    Raises:
        InputError: a checkpoint that cannot be found, read or run.
    """

    run_by = "transformers"

    def __init__(self, name: str):
        self.name = name
        if Path(name).is_file():
            raise InputError(f"model {name!r} is a file; convert it first (python -m modeling_deit_distill.conversion)")
        try:
            id2label = AutoConfig.from_pretrained(name, trust_remote_code=False).id2label
        except (ImportError, OSError, ValueError) as error:
            raise InputError(f"model {unread(name, error)}") from error
        self.class_names = [id2label[index] for index in sorted(id2label)]

    def __call__(self, rows: Dataset, batch_size: int) -> Iterator[np.ndarray]:
        """Logits (classes,) of each row's image. The weights are read now, and let go at the end."""
        try:
            classify = pipeline("image-classification", model=self.name, trust_remote_code=False)
        except (ImportError, OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise InputError(f"model {self.name!r} cannot be loaded ({one_line(error)})") from error
        # Answers come sorted by score under their labels. Two classes may have one (ImageNet's cranes), so here each
        # is labelled with its index. Logits rather than probabilities: rounding these makes ties.
        classify.model.config.id2label = {index: str(index) for index in range(len(self.class_names))}
        images = KeyDataset(EvaluationDataset(rows, lambda image: image), "pixel_values")  # it has its own transform
        everything = {"top_k": len(self.class_names), "function_to_apply": "none"}
        for answers in classify(images, batch_size=batch_size, **everything):
            logits = np.empty(len(self.class_names), dtype=np.float32)
            logits[[int(answer["label"]) for answer in answers]] = [answer["score"] for answer in answers]
            yield logits


class OnnxModel:
    """An ONNX export, see [`OnnxClassifier`]; attributes as of [`PipelineModel`]."""

    run_by = "onnxruntime"

    def __init__(self, name: str):
        self._classifier = OnnxClassifier(name)
        self.name, self.class_names = name, self._classifier.class_names

    def __call__(self, rows: Dataset, batch_size: int) -> Iterator[np.ndarray]:
        """Logits (classes,) of each row's image."""
        images = EvaluationDataset(rows, evaluation_transform(self._classifier.processor))
        batch_size = 1 if self._classifier.takes_photographs else batch_size
        for batch in DataLoader(images, batch_size, collate_fn=collate):
            yield from self._classifier(batch["pixel_values"])["fused"].numpy()


def logits_of(model: PipelineModel | OnnxModel, rows: Dataset, batch_size: int, classes: list[int]) -> np.ndarray:
    """(images, classes) float32: the model's logits for the data's classes, in the order of the rows.

    Raises:
        InputError: what the model raises, or logits that are no numbers.
    """
    logits = np.empty((len(rows), len(classes)), dtype=np.float32)
    for row, answer in enumerate(tqdm(model(rows, batch_size), model.name, len(rows), unit=" images")):
        logits[row] = answer[classes]
    wrong = ~np.isfinite(logits.max(axis=1))  # a single class may well be impossible, -inf
    if wrong.any():
        raise InputError(
            f"model {model.name!r} answers with NaN or infinity to {wrong.sum()} of {len(rows)} images, the first row "
            f"{wrong.argmax()}; its weights are broken or its precision overflows"
        )
    return logits


def measure(logits: np.ndarray, labels: np.ndarray) -> dict[str, object]:
    """Accuracy and calibration from logits (images, classes) and labels (images,)."""
    k = [1, TOP_K] if logits.shape[1] > TOP_K else [1]
    accuracies = load_metric("topk_accuracy").compute(predictions=logits, references=labels, k=k)
    probabilities = softmax(logits, axis=1)
    return accuracies | load_metric("expected_calibration_error").compute(predictions=probabilities, references=labels)


def load_metric(name: str) -> evaluate.Metric:
    """One of the metrics beside this script."""
    return evaluate.load(str(METRICS / name), keep_in_memory=True)


def facts(data: ImageData, num_bad: int) -> dict[str, object]:
    """What was measured on."""
    return {
        "source": data.source,
        "held_out": data.validation_source,
        "num_images": len(data.validation) - num_bad,
        "bad_held_out_images": num_bad,
        "num_classes": len(data.class_names),
    }


def table(report: dict) -> str:
    """The report for a terminal: a line per model, shares in per cent."""
    about = report["data"]
    shown = [title for title, key in COLUMNS.items() if any(key in result for result in report["models"])]
    rows = [["", *shown]]
    for result in report["models"]:
        shares = [result.get(COLUMNS[title]) for title in shown]
        rows.append([result["model"], *("" if share is None else f"{100 * share:.2f} %" for share in shares)])
    title = f"{about['source']}: {about['num_images']:,} images"
    title += f", {about['held_out']}" if about["held_out"] != about["source"] else ""
    return f"{title}\n{aligned(rows)}"


if __name__ == "__main__":
    run_script(main)
