"""Image classifiers of any kind behind one call: ours, those that `conversion` reads, transformers', ONNX exports."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoImageProcessor
from transformers.utils import CONFIG_NAME

from .conversion.checkpoint import build_model, holds_deit, load_checkpoint
from .errors import InputError, one_line, printable
from .export.onnx import MODEL, open_session
from .export.photograph import as_photograph
from .teachers.classes import match_classes
from .teachers.teacher import PRECISIONS, load_classifier

# What a model of two heads answers, by the names that `predictions.json` has, and its own names for it.
OUTPUTS = {"fused": "logits", "cls": "cls_logits", "distillation": "distillation_logits"}


class TorchClassifier:
    """A model on its device, in eval mode.

    Args:
        name: for messages.
        model: from `pixel_values` to an output with `logits`, and with `cls_logits` and `distillation_logits` if it
            has two heads.
        processor: the image processor, which is its evaluation transform.
        device: where it runs.
        precision: `"fp32"`, or autocast to `"bf16"` or `"fp16"`.

    Attributes:
        class_names: in the order of the logits.
        outputs: the names of what it answers: `fused`, and of two heads `cls` and `distillation`.
    """

    takes_photographs = False

    def __init__(self, name: str, model: nn.Module, processor, device: torch.device | str, precision: str = "fp32"):
        self.name, self.processor, self.precision = name, processor, precision
        self.device = torch.device(device)
        try:
            self.model = model.eval().to(self.device)
        except (AssertionError, RuntimeError) as error:
            raise InputError(f"device {str(device)!r} cannot be used: {one_line(error)}") from error
        self.class_names = [model.config.id2label[index] for index in range(model.config.num_labels)]
        self.outputs = list(OUTPUTS) if getattr(model.config, "use_distillation_token", False) else list(OUTPUTS)[:1]

    @torch.inference_mode()
    def __call__(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits (batch, classes) in float32 on the CPU, by the names of `outputs`.

        Args:
            pixel_values: (batch, 3, height, width), from the processor.
        """
        dtype = PRECISIONS[self.precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            outputs = self.model(pixel_values=pixel_values.to(self.device, non_blocking=True))
        return {name: outputs[OUTPUTS[name]].float().cpu() for name in self.outputs}


class OnnxClassifier:
    """An ONNX export with its `config.json` (`id2label`) and `preprocessor_config.json`, run on the CPU.

    Each image is answered alone, on a core of its own: that is fastest, and a rounded model (int8) would share the
    scale of its rounding within a batch, so that answers would depend on the company.

    Args:
        name: the folder, which holds `model.onnx` or `onnx/model.onnx`, or a file in it. The model maps `pixel_values`
            (batch, 3, height, width) float32 to `logits` (batch, classes), and may have the outputs of two heads. One
            that takes images of any size, and whose processor resizes none, is given photographs as they are.

    Attributes:
        class_names, outputs: as of [`TorchClassifier`].
        takes_photographs: whether images are given to it as they are, and so one by one.

    Raises:
        InputError: a file that is missing or broken; when it is called, a model that does not run on what the
            processor makes, or does not fit its `config.json`.
    """

    precision = "as exported"
    device = torch.device("cpu")

    def __init__(self, name: str):
        self.name = name
        file = onnx_file(name)
        # In the layout for browsers the files lie one folder below; but an export may itself be a folder called onnx.
        is_below = file.parent.name == "onnx" and not (file.parent / CONFIG_NAME).is_file()
        folder = file.parent.parent if is_below else file.parent
        path = folder / CONFIG_NAME
        try:
            id2label = json.loads(path.read_text(encoding="utf-8"))["id2label"]
            self.class_names = [id2label[str(index)] for index in range(len(id2label))]
        except (KeyError, OSError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise InputError(f"model {name!r}: {path} has no id2label as transformers writes it ({reason})") from error
        try:
            self.processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
            self._session = open_session(file, threads=1)
        except ImportError as error:
            raise InputError(f"model {name!r} needs onnxruntime; pip install onnxruntime") from error
        except Exception as error:  # onnxruntime has a dozen kinds without a common one
            raise InputError(f"model {name!r} cannot be loaded ({one_line(error)})") from error
        [taken] = self._session.get_inputs()
        # Other exporters leave sizes open too, of models that take what an image processor makes.
        self.takes_photographs = isinstance(taken.shape[-1], str) and not getattr(self.processor, "do_resize", True)
        if self.takes_photographs:
            self.processor = AsItIs()
        has = {output.name for output in self._session.get_outputs()}
        self.outputs = list(OUTPUTS) if has.issuperset(OUTPUTS.values()) else list(OUTPUTS)[:1]
        self._cores = ThreadPoolExecutor(torch.get_num_threads())

    def __call__(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """As [`TorchClassifier`]'s."""
        answers = self._cores.map(self._answer, np.split(pixel_values.numpy(), len(pixel_values)))
        outputs = [np.concatenate(output) for output in zip(*answers, strict=True)]
        return {name: torch.from_numpy(output) for name, output in zip(self.outputs, outputs, strict=True)}

    def _answer(self, pixel_values: np.ndarray) -> list[np.ndarray]:
        try:
            outputs = self._session.run([OUTPUTS[name] for name in self.outputs], {"pixel_values": pixel_values})
        except Exception as error:
            raise InputError(
                f"model {self.name!r} does not run on pixel_values {pixel_values.shape} ({one_line(error)})"
            ) from error
        if outputs[0].shape != (1, len(self.class_names)):
            raise InputError(
                f"model {self.name!r}: logits are {outputs[0].shape} for one image, config.json names "
                f"{len(self.class_names)} classes; export it anew"
            )
        return outputs


Classifier = TorchClassifier | OnnxClassifier


class AsItIs:
    """In the place of an image processor, for a model that has its own inside."""

    def __call__(self, image, return_tensors: str = "pt") -> dict[str, torch.Tensor]:
        """`pixel_values` (1, 3, height, width), float32 levels from 0 to 255, of an RGB image."""
        return {"pixel_values": torch.from_numpy(as_photograph(image))}


def onnx_file(name: str) -> Path | None:
    """The ONNX export that a name means: the file, or the fp32 one in the folder; None if there is none.

    Raises:
        InputError: a folder with other ONNX files only.
    """
    files = [Path(name), Path(name, MODEL), Path(name, "onnx", MODEL)]
    found = next((file for file in files if file.suffix == ".onnx" and file.is_file()), None)
    if found is None and (others := sorted(map(str, [*Path(name).glob("*.onnx"), *Path(name).glob("onnx/*.onnx")]))):
        raise InputError(f"model {name!r} holds no {MODEL} but {', '.join(others)}; name the file")
    return found


def load_any_classifier(name: str, device: torch.device | str | None = None, precision: str = "fp32") -> Classifier:
    """A trained classifier by its folder, its file of weights, or its name on the Hub. No code beside it is run.

    A DeiT or ViT is read as `conversion` does, so it sees images as it does in this package's training and
    evaluation. Any other model of transformers sees them through its own image processor.

    Args:
        name: of the model.
        device: where it runs; by default the first accelerator, else the CPU.
        precision: see [`TorchClassifier`]; an export has its own.

    Raises:
        InputError: nothing there that can be loaded, or a device or precision that cannot be.
    """
    if onnx_file(name) is not None:
        if precision != "fp32" or torch.device(device or "cpu").type != "cpu":
            raise InputError(
                f"model {name!r} is an ONNX export, which runs on the CPU in its own precision; leave out --device and "
                "--precision"
            )
        return OnnxClassifier(name)
    device = _device(device)
    if precision == "fp16" and device.type == "cpu":
        raise InputError("precision fp16 is for accelerators, and the device is cpu; give --precision bf16 or fp32")
    if holds_deit(name):
        checkpoint = load_checkpoint(name)
        model, processor = build_model(checkpoint).float(), checkpoint.processor
    else:
        model, processor = _load_native(name)
    if model.config.problem_type not in (None, "single_label_classification"):
        raise InputError(
            f"model {name!r} has problem_type {model.config.problem_type!r}; this is for models of one class out of "
            "several"
        )
    return TorchClassifier(name, model, processor, device, precision)


def classes_of(name: str, own_names: list[str], class_names: list[str]) -> list[int]:
    """A model's class for each class of data, by name; those of a model that names none are in the data's order.

    Args:
        name: of the model.
        own_names: of its classes.
        class_names: of the data's.

    Raises:
        InputError: classes of the data that the model has not, or not for certain.
    """
    if own_names == [f"LABEL_{index}" for index in range(len(class_names))]:
        print(f"{printable(name)}: names no classes; they are taken to be in the data's order", file=sys.stderr)
        return list(range(len(class_names)))
    try:
        return match_classes(own_names, class_names)
    except InputError as error:  # speaks of teachers, and of a remedy that training has
        reason = str(error).split("; give ")[0].replace("teacher", "model")
        raise InputError(f"model {name!r}: {reason}; name them alike in id2label of its config.json") from error


def _device(name: torch.device | str | None) -> torch.device:
    if name is None:
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device {name!r} is unknown ({one_line(error)}); give cpu, cuda or cuda:1, ...") from error


def _load_native(name: str) -> tuple[nn.Module, object]:
    """A model of transformers' own, or of timm's through it, and its image processor."""
    try:
        model = load_classifier(name, trust_remote_code=False)
    except InputError as error:  # speaks of teachers
        raise InputError(str(error).replace("teacher_name_or_path", "model")) from error
    try:
        return model, AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"model {name!r} has no image processor ({one_line(error)}); put its preprocessor_config.json there"
        ) from error
