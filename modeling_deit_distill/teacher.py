"""The teacher: find its architecture, train it first where the user has none, load it frozen in its own input view."""

import dataclasses
import difflib
import hashlib
import json
import math
import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    set_seed,
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

from .augmentation import augment
from .checkpoints import disk_errors_explained
from .data import BadImages, ImageData, ViewDataset, collate, evaluation_processor
from .errors import InputError, one_line
from .finite import check_finite_weights
from .label_map import match_classes
from .views import AugmentationSettings, ViewSampler

logger = logging.get_logger(__name__)

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# A trial of the teacher before training: on so many validation images; with fewer than MIN_TRIAL nothing can be told.
TRIAL_IMAGES, MIN_TRIAL = 400, 50
TRAINING_RECORD = "teacher_training.json"
# The teacher's training shares the machine with the student's, not its schedule.
SHARED_ARGUMENTS = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "bf16",
    "fp16",
    "tf32",
    "use_cpu",
    "seed",
    "full_determinism",
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_multiprocessing_context",
    "dataloader_prefetch_factor",
    "dataloader_pin_memory",
    "disable_tqdm",
    "ddp_backend",
    "ddp_timeout",
)


@dataclass(frozen=True)
class InputView:
    """What a model expects of its pixels: side in pixels, mean and deviation of each channel."""

    image_size: int
    mean: tuple[float, ...] = tuple(IMAGENET_DEFAULT_MEAN)
    std: tuple[float, ...] = tuple(IMAGENET_DEFAULT_STD)


class Teacher(nn.Module):
    """A frozen classifier that looks at the student's pixels in its own view and answers in the dataset's classes.

    Args:
        model: an image classifier.
        view: what the classifier expects.
        student_view: how `pixel_values` come.
        classes: its class for each class of the dataset; None where they are the dataset's, in their order.
        precision: `"fp32"`, or autocast to `"bf16"` or `"fp16"`, whatever the student's precision is.
        compile: compile the classifier with `torch.compile`.
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


def describe_teacher(
    class_names: list[str],
    name_or_path: str | None = None,
    config_name: str | None = None,
    config_overrides: dict | None = None,
    train: bool = False,
    trust_remote_code: bool = False,
    label_map: dict[str, str | int] | None = None,
) -> PreTrainedConfig:
    """The teacher's configuration, before any weights are read.

    Args:
        class_names: the dataset's classes, in order.
        name_or_path: a trained teacher. With `train` it gets a new head, otherwise these must be among its classes.
        config_name: the architecture of a new teacher: a folder, a JSON file, a Hub name or a bare `model_type`.
        config_overrides: fields that replace those of the configuration.
        label_map: what settles classes that names do not, see `label_map.match_classes`.

    Raises:
        InputError: a teacher that cannot be found, an override it does not know, or classes that it has not.
    """
    if name_or_path is None and config_name is None:
        raise InputError(
            "there is no teacher; give --teacher_name_or_path, or --train_teacher true with --teacher_config_name "
            "(e.g. resnet), or --distillation_type none"
        )
    config = _find_config(name_or_path, config_name, trust_remote_code)
    if not train:
        teacher_classes(config, class_names, label_map)
    if config_overrides:
        config = _override(config, config_overrides)
    if train:
        config.id2label = dict(enumerate(class_names))
        config.label2id = {name: index for index, name in enumerate(class_names)}
    return config


def teacher_classes(
    config: PreTrainedConfig, class_names: list[str], label_map: dict[str, str | int] | None = None
) -> list[int] | None:
    """The teacher's class for each class of the dataset; None where they are the same in the same order.

    Raises:
        InputError: classes of the dataset that the teacher has not, or not for certain.
    """
    theirs = [config.id2label[index] for index in range(config.num_labels)]
    unnamed = all(name == f"LABEL_{index}" for index, name in enumerate(theirs))
    if unnamed and len(theirs) == len(class_names) and not label_map:
        logger.warning("the teacher names no classes; they are taken to be in the dataset's order")
        return None
    classes = match_classes(theirs, class_names, label_map)
    return None if classes == list(range(len(theirs))) else classes


def load_teacher(
    name_or_path: str,
    class_names: list[str],
    student_image_size: int,
    *,
    trust_remote_code: bool = False,
    label_map: dict[str, str | int] | None = None,
    image_size: int | None = None,
    precision: str = "fp32",
    compile: bool = False,
) -> Teacher:
    """A trained teacher, frozen, in its own view and in the dataset's classes.

    Args:
        name_or_path: a folder or a Hub name.
        class_names: the dataset's classes, in order.
        student_image_size: side of the pixels that it will be shown.
        label_map: what settles classes that names do not.
        image_size: side at which it looks at them; its image processor's unless given.
        precision, compile: see [`Teacher`].

    Raises:
        InputError: a teacher that cannot be read, or classes that it has not.
    """
    config = _find_config(name_or_path, None, trust_remote_code)
    classes = teacher_classes(config, class_names, label_map)
    model = _from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
    view = teacher_view(name_or_path, student_image_size, image_size, trust_remote_code)
    return Teacher(model, view, InputView(student_image_size), classes, precision, compile)


def teacher_view(
    name_or_path: str, student_image_size: int, image_size: int | None = None, trust_remote_code: bool = False
) -> InputView:
    """What a teacher expects of its pixels: its image processor's word, but for `image_size` where that is given."""
    view = _own_view(name_or_path, InputView(student_image_size), trust_remote_code)
    return view if image_size is None else dataclasses.replace(view, image_size=image_size)


def weights_checksum(name_or_path: str) -> str:
    """SHA-256 of a checkpoint's weight files, before they are loaded.

    Raises:
        InputError: no weights there.
    """
    digest = hashlib.sha256()
    for path in _weight_files(name_or_path):
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def check_teacher(teacher: Teacher, images: torch.utils.data.Dataset, batch_size: int, allow_weak: bool) -> float:
    """Try the teacher on some hundred images before training by it; its share of right answers.

    Args:
        teacher: on the device where it will be asked.
        images: validation images, `pixel_values` normalised for the student and `labels`.
        batch_size: images at a time.
        allow_weak: go on whatever comes of it.

    Raises:
        InputError: hardly better than chance, which is as many hits as shuffled answers would have: within three
            deviations of it, or within a tenth of the way from there to all.
    """
    chosen = np.unique(np.linspace(0, len(images) - 1, TRIAL_IMAGES).astype(int)).tolist()
    answers, labels = decisions_of(teacher, torch.utils.data.Subset(images, chosen), batch_size)
    hits, expected = int((answers == labels).sum()), _hits_by_chance(answers, labels)
    deviation = math.sqrt(expected * (1 - expected / len(chosen)))
    hardly_better = hits <= expected + max(3 * deviation, (len(chosen) - expected) / 10)
    if hardly_better and len(chosen) >= MIN_TRIAL and not allow_weak:
        raise InputError(
            f"the teacher is right on {hits} of {len(chosen)} validation images, and chance would be about "
            f"{expected:.0f}: its classes are in another order than their names say, its head is not trained, or it "
            "knows other images; mend it (--teacher_label_map), or go on by --allow_weak_teacher true"
        )
    return hits / len(chosen)


@torch.no_grad()
def decisions_of(teacher: Teacher, images: torch.utils.data.Dataset, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's decisions on images and the true labels, both (images,) class indices."""
    answers, labels = [], []
    for batch in torch.utils.data.DataLoader(images, batch_size, collate_fn=collate):
        answers.append(teacher(batch["pixel_values"].to(teacher.scale.device)).argmax(dim=-1).cpu())
        labels.append(batch["labels"])
    return torch.cat(answers).numpy(), torch.cat(labels).numpy()


def _hits_by_chance(answers: np.ndarray, labels: np.ndarray) -> float:
    """Right answers to expect if the same answers were dealt out at random."""
    num_classes = max(answers.max(), labels.max()) + 1
    told, true = np.bincount(answers, minlength=num_classes), np.bincount(labels, minlength=num_classes)
    return float(told @ true) / len(labels)


def find_or_train_teacher(
    config: PreTrainedConfig,
    data: ImageData,
    directory: str | os.PathLike,
    args: TrainingArguments,
    *,
    image_size: int,
    crop_pct: float,
    num_train_epochs: float,
    learning_rate: float,
    name_or_path: str | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Train the teacher on the same data unless `directory` holds it already; return that folder.

    Args:
        config: from [`describe_teacher`] with `train=True`.
        data: the data of the run.
        directory: where the teacher is kept, complete or not at all.
        args: the run's arguments: machine, batch and augmentation are shared, the schedule is the teacher's own.
        image_size, crop_pct: the student's; a new teacher is trained at that size, a pretrained one at its own.
        num_train_epochs, learning_rate: the teacher's own.
        name_or_path: fine-tune this checkpoint instead of starting from scratch.

    Raises:
        InputError: `directory` holds a teacher of other data or another configuration, or the training ended in NaN.
        LocalInputError: the disk is full.
    """
    directory = Path(directory)
    record = training_record(config, data, image_size, num_train_epochs, learning_rate, name_or_path)
    if (directory / TRAINING_RECORD).exists():
        _check_record(directory, json.loads((directory / TRAINING_RECORD).read_text()), record)
        return directory
    if directory.exists():
        raise InputError(
            f"{directory} exists but holds no teacher of ours; move it away or choose another --output_dir"
        )
    set_seed(args.seed)
    model, view = _untrained(config, image_size, name_or_path, trust_remote_code)
    with args.main_process_first(desc="clearing an incomplete teacher"):
        partial = directory.with_name(directory.name + ".partial")
        if args.process_index == 0:
            shutil.rmtree(partial, ignore_errors=True)
    processor = evaluation_processor(view.image_size, crop_pct, view.mean, view.std)
    trainer = _teacher_trainer(model, processor, data, partial, args, num_train_epochs, learning_rate)
    trainer.train()
    remedy = f"try a lower --teacher_learning_rate (now {learning_rate:g}), or bf16 instead of fp16"
    check_finite_weights(trainer.model.state_dict().items(), "the teacher's training", remedy)
    with disk_errors_explained(directory.parent, "the teacher"):
        trainer.save_model(str(partial))
        trainer.accelerator.wait_for_everyone()
        if args.process_index == 0:
            (partial / TRAINING_RECORD).write_text(json.dumps(record, indent=2))
            partial.rename(directory)  # complete or not there at all
    trainer.accelerator.wait_for_everyone()
    return directory


def training_record(
    config: PreTrainedConfig,
    data: ImageData,
    image_size: int,
    num_train_epochs: float,
    learning_rate: float,
    name_or_path: str | None = None,
) -> dict[str, object]:
    """What a teacher trained here comes from, as it is kept beside it; arguments as in [`find_or_train_teacher`]."""
    return {
        "dataset": data.fingerprint(),
        "teacher": name_or_path or config.model_type,
        "config": _architecture(config),
        "image_size": image_size,
        "num_train_epochs": num_train_epochs,
        "learning_rate": learning_rate,
    }


def _untrained(config: PreTrainedConfig, image_size: int, name_or_path: str | None, trust_remote_code: bool):
    """A new classifier, or a checkpoint's with a new head, and the view it is trained in."""
    view = InputView(getattr(config, "image_size", None) or image_size)
    if name_or_path is None:
        try:
            return AutoModelForImageClassification.from_config(config, trust_remote_code=trust_remote_code), view
        except ValueError as error:
            raise InputError(f"teacher_config_name: {config.model_type!r} is no image classifier") from error
    view = _own_view(name_or_path, view, trust_remote_code)
    settings = {"config": config, "ignore_mismatched_sizes": True, "trust_remote_code": trust_remote_code}
    return _from_pretrained(name_or_path, **settings), view


def _teacher_trainer(model, processor, data: ImageData, output_dir, args, num_train_epochs, learning_rate) -> Trainer:
    teacher_args = TrainingArguments(
        output_dir=str(output_dir),
        num_train_epochs=num_train_epochs,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,  # a share of all steps
        weight_decay=0.05,
        label_smoothing_factor=0.1,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="epoch",
        report_to="none",
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        **{name: getattr(args, name) for name in SHARED_ARGUMENTS},
    )
    # The teacher learns from labels as they are: nothing erased, nothing mixed.
    settings = dataclasses.replace(
        AugmentationSettings.from_arguments(args, processor.crop_size["height"]),
        erasing_prob=0.0,
        mixup_alpha=0.0,
        cutmix_alpha=0.0,
    )
    return _TeacherTrainer(
        model=model,
        args=teacher_args,
        data_collator=collate,
        train_dataset=ViewDataset(data.train, settings, args.seed, args.keep_decoded_images),
        processing_class=processor,
        bad_images=BadImages(data.train, args.on_bad_image, args.max_bad_image_fraction, args.world_size),
    )


class _TeacherTrainer(Trainer):
    """Trains a classifier on labels, on views augmented on the device as the student's are."""

    def __init__(self, *args, bad_images: BadImages, **kwargs):
        super().__init__(*args, **kwargs)
        self.bad_images = bad_images

    def _get_train_sampler(self, train_dataset=None) -> ViewSampler:
        args = self.args
        step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return ViewSampler(len(self.train_dataset), step, repeats=1, seed=args.seed)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Cross-entropy with smoothed labels on augmented views."""
        self.bad_images.note(inputs["bad_images"])
        processor = self.processing_class
        pixel_values = augment(inputs["pixel_values"], inputs["draws"], processor.image_mean, processor.image_std)
        logits = model(pixel_values=pixel_values).logits
        return F.cross_entropy(logits, inputs["labels"], label_smoothing=self.args.label_smoothing_factor)


def _find_config(name_or_path: str | None, config_name: str | None, trust_remote_code: bool) -> PreTrainedConfig:
    # AutoConfig.from_pretrained("resnet") would ask the Hub for a model of that name.
    if config_name in CONFIG_MAPPING and not Path(config_name).exists():
        return AutoConfig.for_model(config_name)
    argument = "teacher_name_or_path" if name_or_path else "teacher_config_name"
    name = name_or_path or config_name
    if name.startswith(("/", "./", "../", "~")) and not Path(name).exists():  # as a name on the Hub it makes no sense
        raise InputError(f"{argument} {name!r} cannot be read (no such file or folder)")
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise InputError(f"{argument} {name!r} cannot be read ({one_line(error)})") from error


def _override(config: PreTrainedConfig, overrides: dict) -> PreTrainedConfig:
    for key in overrides:
        if not hasattr(config, key):
            near = difflib.get_close_matches(key, config.to_dict(), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"teacher_config_overrides: {config.model_type} has no field {key!r}{hint}")
    # Built anew rather than changed in place, so that what the configuration derives from its fields follows them.
    derived = ("stage_names", "out_features", "out_indices", "_out_features", "_out_indices")
    fields = {key: value for key, value in config.to_diff_dict().items() if key not in derived}
    try:
        return type(config)(**{**fields, **overrides})
    except Exception as error:  # transformers' own checks of fields have several kinds
        raise InputError(f"teacher_config_overrides: {one_line(error)}") from error


def _from_pretrained(name_or_path: str, **kwargs) -> PreTrainedModel:
    try:
        return AutoModelForImageClassification.from_pretrained(name_or_path, dtype=torch.float32, **kwargs)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"teacher_name_or_path {name_or_path!r} is a pickle with code in it, which is not run; use safetensors"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"teacher_name_or_path {name_or_path!r} cannot be loaded ({one_line(error)})") from error


def _own_view(name_or_path: str, default: InputView, trust_remote_code: bool) -> InputView:
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


def _weight_files(name_or_path: str) -> list[str]:
    for name in (SAFE_WEIGHTS_NAME, WEIGHTS_NAME):
        path = _cached(name_or_path, name)
        if path is not None:
            return [path]
    for name in (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME):
        path = _cached(name_or_path, name)
        if path is not None:
            shards = sorted(set(json.loads(Path(path).read_text())["weight_map"].values()))
            return [_cached(name_or_path, shard) for shard in shards]
    raise InputError(f"teacher_name_or_path {name_or_path!r} has no weights ({SAFE_WEIGHTS_NAME} or {WEIGHTS_NAME})")


def _cached(name_or_path: str, filename: str) -> str | None:
    try:
        return cached_file(name_or_path, filename, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError) as error:
        raise InputError(f"teacher_name_or_path {name_or_path!r} cannot be read ({one_line(error)})") from error


def _check_record(directory: Path, found: dict, wanted: dict):
    for key, value in wanted.items():
        before = found.get(key)
        if before == value:
            continue
        if isinstance(value, dict) and isinstance(before, dict):
            fields = [field for field in value if before.get(field) != value[field]]
            before = {field: before.get(field) for field in fields}
            value = {field: value[field] for field in fields}
        raise InputError(
            f"{directory} holds a teacher trained with another {key} ({before}, now {value}); choose another "
            "--output_dir, or pass that folder as --teacher_name_or_path without --train_teacher"
        )


def _architecture(config: PreTrainedConfig) -> dict:
    """The configuration without what changes with the library's version or with saving."""
    passing = {"transformers_version", "architectures", "dtype", "_name_or_path", "label2id", "torch_dtype"}
    fields = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in sorted(fields.items()) if key not in passing}
