"""The live teacher: loaded, frozen, and asked in its own input view and in the dataset's classes."""

import dataclasses
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
    logging,
)

from ..arguments import ModelArguments
from ..arguments.types import MOST_LAYERS
from ..data.evaluation import check_normalisation
from ..errors import InputError, one_line
from ..files import sha256
from ..hub import unread
from ..weights import first_not_finite, unwrapped_names
from .classes import read_label_map, teacher_classes

logger = logging.get_logger(__name__)

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class InputView:
    """What a model expects of its pixels: side in pixels, mean and deviation of each channel.

    Raises:
        InputError: a mean that is not finite, or a deviation that is not above 0.
    """

    image_size: int
    mean: tuple[float, ...] = tuple(IMAGENET_DEFAULT_MEAN)
    std: tuple[float, ...] = tuple(IMAGENET_DEFAULT_STD)

    def __post_init__(self):
        check_normalisation(self.mean, self.std, "the teacher's image processor")


class Teacher(nn.Module):
    """A frozen image classifier that looks at pixels, which come in the student's view, in a view of its own.

    Args:
        classes: its class for each class of the dataset; None where they are the dataset's, in their order.
        precision: `"fp32"`, or autocast to `"bf16"` or `"fp16"`, whatever the student's precision is.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        view: InputView,
        student_view: InputView,
        classes: list[int] | None = None,
        precision: str = "fp32",
        compile: bool = False,
    ):
        super().__init__()
        # Convolutions are fastest on channels-last memory; a transformer has but one, that makes the patches.
        is_convnet = sum(isinstance(module, nn.Conv2d) for module in model.modules()) > 1
        self.memory_format = torch.channels_last if is_convnet else torch.contiguous_format
        self.model = model.to(memory_format=self.memory_format)
        if compile:
            self.model.compile()
        self.view = view
        self.student_view = student_view
        self.precision = precision
        self.register_buffer("classes", None if classes is None else torch.tensor(classes))
        own_std, std = torch.tensor(view.std), torch.tensor(student_view.std)
        own_mean, mean = torch.tensor(view.mean), torch.tensor(student_view.mean)
        self.register_buffer("scale", (std / own_std).view(-1, 1, 1))
        self.register_buffer("shift", ((mean - own_mean) / own_std).view(-1, 1, 1))
        self.requires_grad_(False).eval()

    @property
    def members(self) -> list["Teacher"]:
        """Itself alone; an ensemble has several."""
        return [self]

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.scale.device

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes) for `pixel_values` (batch, 3, height, width) normalised for the student."""
        if (self.view.mean, self.view.std) != (self.student_view.mean, self.student_view.std):
            pixel_values = pixel_values * self.scale + self.shift
        size = (self.view.image_size, self.view.image_size)
        if tuple(pixel_values.shape[-2:]) != size:
            pixel_values = F.interpolate(pixel_values, size, mode="bicubic", align_corners=False, antialias=True)
        dtype = PRECISIONS[self.precision]
        with torch.autocast(pixel_values.device.type, dtype, enabled=dtype is not None):
            pixel_values = pixel_values.contiguous(memory_format=self.memory_format)
            logits = self.model(pixel_values=pixel_values).logits.float()
        return logits if self.classes is None else logits[:, self.classes]


def load_teacher(model_args: ModelArguments, class_names: list[str], student_image_size: int) -> Teacher:
    """The trained teacher that is named, frozen, to be shown `student_image_size` pixels a side; in fp32 unless said.

    Raises:
        InputError: a teacher that cannot be read, or classes that it has not.
    """
    name_or_path = model_args.teacher_name_or_path
    label_map = read_label_map(model_args.teacher_label_map)
    classes = teacher_classes(find_config(model_args), class_names, label_map)
    model = load_classifier(name_or_path, trust_remote_code=model_args.trust_remote_code)
    student_view = InputView(student_image_size)
    view = own_view(name_or_path, student_view, model_args.trust_remote_code)
    if model_args.teacher_image_size is not None:
        view = dataclasses.replace(view, image_size=model_args.teacher_image_size)
    precision = model_args.teacher_precision or "fp32"
    return Teacher(model, view, student_view, classes, precision, model_args.teacher_compile)


def find_config(model_args: ModelArguments) -> PreTrainedConfig:
    """The configuration of the teacher that is named, or of the architecture that is to be trained.

    Raises:
        InputError: it cannot be read.
    """
    argument = "teacher_name_or_path" if model_args.teacher_name_or_path else "teacher_config_name"
    name = getattr(model_args, argument)
    # AutoConfig.from_pretrained("resnet") would ask the Hub for a model of that name.
    if argument == "teacher_config_name" and name in CONFIG_MAPPING and not Path(name).exists():
        return AutoConfig.for_model(name)
    if name.startswith(("/", "./", "../", "~")) and not Path(name).exists():  # as a name on the Hub it makes no sense
        raise InputError(f"{argument} {name!r} cannot be read (no such file or folder)")
    try:
        check_depth(PreTrainedConfig.get_config_dict(name)[0], f"{argument} {name!r}")
        return _read_config(name, model_args.trust_remote_code)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{argument} {unread(name, error)}") from error


def _read_config(name_or_path: str, trust_remote_code: bool) -> PreTrainedConfig:
    config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
    # timm's own folders repeat there what transformers passes to timm beside them, which is then given twice.
    if given := getattr(config, "model_args", None):
        config.model_args = {name: value for name, value in given.items() if name not in ("num_classes", "pretrained")}
    return config


def check_depth(fields: Mapping[str, object], what: str):
    """Refuse a configuration of more layers than any trained model has: transformers would build what it says.

    Args:
        fields: of the configuration, as they are written.
        what: it is, in words.

    Raises:
        InputError: the field and its value.
    """
    for name, value in fields.items():
        numbers = [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int)]
        if ("layer" in name or "depth" in name) and sum(numbers) > MOST_LAYERS:
            raise InputError(f"{what} has {name} {value}; models of more than {MOST_LAYERS:,} layers are not built")


def weights_checksum(name_or_path: str) -> str:
    """SHA-256 of a checkpoint's weight files, before they are loaded.

    Raises:
        InputError: no weights there.
    """
    return sha256(*_weight_files(name_or_path))


def load_classifier(name_or_path: str, **kwargs) -> PreTrainedModel:
    """A classifier by transformers, which would draw weights that it does not find and only warn of it.

    Names that torch.compile, DDP or FSDP wrapped are found. With `ignore_mismatched_sizes`, for what is trained here,
    the head and whatever else is less than half of the tensors may be new.

    Raises:
        InputError: nothing there that can be loaded, or weights are missing.
    """
    model, report = _load_classifier(name_or_path, **kwargs)
    missing = _missing(report)
    if missing and any(old != new for old, new in unwrapped_names(report["unexpected_keys"]).items()):
        weights = _read_weights(name_or_path)
        names = unwrapped_names(weights)
        old, new = next(pair for pair in names.items() if pair[0] != pair[1])
        logger.warning(f"{name_or_path}: its weights are read again without the names of wrappers ({old} as {new})")
        weights = {names[old]: value for old, value in weights.items()}
        settings = {"config": model.config, "dtype": torch.float32, "output_loading_info": True}
        settings["ignore_mismatched_sizes"] = kwargs.get("ignore_mismatched_sizes", False)
        model, report = type(model).from_pretrained(None, state_dict=weights, **settings)
        model.name_or_path = name_or_path
        missing = _missing(report)
    may_be_new = len(model.state_dict()) / 2 if kwargs.get("ignore_mismatched_sizes") else 0
    if len(missing) > may_be_new:
        raise InputError(
            f"teacher_name_or_path {name_or_path!r} lacks {len(missing)} of its weights ({missing[0]}, ...), which "
            f"would be random; its files have {len(report['unexpected_keys'])} that the model does not know"
        )
    if (bad := first_not_finite(model.state_dict().items())) is not None:
        raise InputError(
            f"teacher_name_or_path {name_or_path!r} has weights that are not finite, first {bad}, so it cannot answer; "
            "take another checkpoint"
        )
    return model


def _missing(report: dict) -> list[str]:
    # A count that only a momentum of None reads; old checkpoints lack it.
    return sorted(name for name in report["missing_keys"] if not name.endswith(".num_batches_tracked"))


def _load_classifier(name_or_path: str, **kwargs) -> tuple[PreTrainedModel, dict]:
    try:
        check_depth(PreTrainedConfig.get_config_dict(name_or_path)[0], f"teacher_name_or_path {name_or_path!r}")
        if "config" not in kwargs:
            kwargs["config"] = _read_config(name_or_path, kwargs.get("trust_remote_code", False))
        return AutoModelForImageClassification.from_pretrained(
            name_or_path, dtype=torch.float32, output_loading_info=True, **kwargs
        )
    except pickle.UnpicklingError as error:
        raise InputError(
            f"teacher_name_or_path {name_or_path!r} is a pickle with code in it, which is not run; use safetensors"
        ) from error
    except InputError:
        raise
    # What a configuration says is passed on to whatever builds the model: each has errors of its own.
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{name_or_path!r} cannot be loaded ({one_line(error)})"
        reason = unread(name_or_path, error) if Path(name_or_path).is_file() else reason
        raise InputError(f"teacher_name_or_path {reason}") from error


def own_view(name_or_path: str, default: InputView, trust_remote_code: bool) -> InputView:
    """Size and normalisation of the checkpoint's image processor; `default` where it has none."""
    try:
        processor = AutoImageProcessor.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError):
        logger.warning(f"{name_or_path} has no image processor; the teacher is shown the student's pixels as they are")
        return default
    if hasattr(processor, "data_config"):  # timm's models
        settings = processor.data_config
        return InputView(settings["input_size"][-1], tuple(settings["mean"]), tuple(settings["std"]))
    for unsupported in ("do_flip_channel_order", "include_top", "rescale_offset"):
        if getattr(processor, unsupported, False):
            raise InputError(
                f"the teacher {name_or_path} prepares its pixels with {unsupported}, which is not supported"
            )
    cropped = getattr(processor, "do_center_crop", False) and getattr(processor, "crop_size", None)
    size = (processor.crop_size if cropped else processor.size) or {"height": default.image_size}
    side = size["height"] if size.get("height") else size["shortest_edge"]
    if not getattr(processor, "do_normalize", True):
        return InputView(side, (0.0,) * 3, (1.0,) * 3)
    return InputView(side, tuple(processor.image_mean), tuple(processor.image_std))


def _read_weights(name_or_path: str) -> dict[str, torch.Tensor]:
    weights = {}
    for path in _weight_files(name_or_path):
        is_safe = path.suffix == ".safetensors"
        weights |= load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
    return weights


def _weight_files(name_or_path: str) -> list[Path]:
    try:
        for name in (SAFE_WEIGHTS_NAME, WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME):
            path = cached_file(name_or_path, name, _raise_exceptions_for_missing_entries=False)
            if path is None:
                continue
            if name in (SAFE_WEIGHTS_NAME, WEIGHTS_NAME):
                return [Path(path)]
            shards = sorted(set(json.loads(Path(path).read_text())["weight_map"].values()))
            return [Path(cached_file(name_or_path, shard)) for shard in shards]
    except (OSError, ValueError) as error:
        raise InputError(f"teacher_name_or_path {unread(name_or_path, error)}") from error
    raise InputError(f"teacher_name_or_path {name_or_path!r} has no weights ({SAFE_WEIGHTS_NAME} or {WEIGHTS_NAME})")
