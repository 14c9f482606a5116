"""The arguments of `train_deit.py`: three dataclasses, and recipes read as command lines written down."""

import difflib
import json
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations import is_tensorboard_available
from transformers.trainer_utils import SchedulerType

from .configuration_deit_distill import SIZES
from .errors import InputError, one_line
from .precision import bf16_by_default
from .supported import check_precision, check_supported
from .teachers.classes import read_label_map
from .training.average import decay_of_half_life
from .training.schedule import resolve_schedule

# Paper, section 6: the learning rate is given per 512 images and grows linearly with the batch.
REFERENCE_BATCH_SIZE = 512
DEFAULT_BASE_LEARNING_RATE = 5e-4
# Paper, section 5.2, "Soft distillation" and "Hard-label distillation": weight of the teacher's term.
DEFAULT_ALPHA = {"none": 0.0, "soft": 0.1, "hard": 0.5}

# The branch of transformers' own class.
NATIVE_REVISION = "native"

# Naming one of these on the command line replaces all that the recipe says on the same matter.
REPLACES = {
    ("dataset_name", "train_dir"): (
        "dataset_name",
        "dataset_config_name",
        "train_dir",
        "validation_dir",
        "train_split",
        "validation_split",
        "validation_fraction",
        "image_column",
        "label_column",
        "streaming",
    ),
    ("teacher_name_or_path", "teacher_config_name"): (
        "teacher_name_or_path",
        "teacher_config_name",
        "teacher_config_overrides",
        "train_teacher",
        "teacher_num_train_epochs",
        "teacher_learning_rate",
        "teacher_image_size",
        "teacher_label_map",
        "allow_weak_teacher",
        "trust_remote_code",
    ),
    ("learning_rate", "base_learning_rate"): ("learning_rate", "base_learning_rate"),
    ("warmup_epochs", "warmup_steps"): ("warmup_epochs", "warmup_steps"),
    ("ema_decay", "ema_half_life"): ("ema_decay", "ema_half_life"),
    ("model_name_or_path", "model_size"): (
        "model_name_or_path",
        "model_size",
        *SIZES["tiny"],
        "num_hidden_layers",
    ),
    ("model_name_or_path",): ("trust_remote_code",),
}


@dataclass
class ModelArguments:
    """Student and teacher. Every field of `DeiTDistillConfig` is an argument of the same name; None keeps its default.

    Raises:
        InputError: arguments that exclude each other, or overrides that are not a JSON object.
    """

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Start from a DeiT: ours, transformers' or timm's (a folder or name), facebook's (a .pth)."},
    )
    model_size: Literal["tiny", "small", "base"] | None = field(
        default=None, metadata={"help": "Named size of a new student (DeiT-Ti, -S, -B); tiny unless given."}
    )
    hidden_size: int | None = field(default=None, metadata={"help": "Width of a token."})
    num_hidden_layers: int | None = field(default=None, metadata={"help": "Number of transformer blocks."})
    num_attention_heads: int | None = field(default=None, metadata={"help": "Attention heads per block."})
    intermediate_size: int | None = field(default=None, metadata={"help": "Width of the MLP's hidden layer."})
    hidden_act: str | None = field(default=None, metadata={"help": "Activation of the MLP."})
    hidden_dropout_prob: float | None = field(default=None, metadata={"help": "Dropout of embeddings and branches."})
    attention_probs_dropout_prob: float | None = field(default=None, metadata={"help": "Dropout of attention."})
    drop_path_rate: float | None = field(default=None, metadata={"help": "Stochastic depth of the last block."})
    image_size: int | None = field(default=None, metadata={"help": "Side of the student's input in pixels."})
    patch_size: int | None = field(default=None, metadata={"help": "Side of a patch in pixels."})
    num_channels: int | None = field(default=None, metadata={"help": "Input channels; images are decoded as RGB."})
    qkv_bias: bool | None = field(default=None, metadata={"help": "Bias on the query-key-value projection."})
    layer_norm_eps: float | None = field(default=None, metadata={"help": "Epsilon of every LayerNorm."})
    initializer_range: float | None = field(default=None, metadata={"help": "Deviation of the initialisation."})
    use_distillation_token: bool | None = field(
        default=None, metadata={"help": "Two tokens and heads, or one; by default two wherever a teacher is used."}
    )
    fusion: Literal["logit_mean", "softmax_mean", "cls", "distillation"] | None = field(
        default=None, metadata={"help": "How the two heads make one answer."}
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "Attention kernel of the student: sdpa, eager, flash_attention_2, ..."}
    )
    teacher_name_or_path: str | None = field(
        default=None, metadata={"help": "The teacher: any image classifier that transformers can load."}
    )
    teacher_config_name: str | None = field(
        default=None,
        metadata={"help": "Architecture of a teacher to train: a folder, a JSON file, a Hub name or a model_type."},
    )
    teacher_config_overrides: str | None = field(
        default=None, metadata={"help": "JSON object of fields that replace those of the teacher's configuration."}
    )
    train_teacher: bool = field(
        default=False, metadata={"help": "Train the teacher on the same data first; kept in <output_dir>/teacher."}
    )
    teacher_num_train_epochs: float = field(default=10.0, metadata={"help": "Epochs of the teacher's training."})
    teacher_learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of the teacher."})
    teacher_image_size: int | None = field(
        default=None,
        metadata={
            "help": "Side at which the teacher looks at views, and a new one is trained; its image processor's, or the "
            "student's for a new one, unless given."
        },
    )
    teacher_precision: Literal["fp32", "bf16", "fp16"] | None = field(
        default=None, metadata={"help": "The teacher's arithmetic; the store's, else the run's, unless given."}
    )
    teacher_compile: bool = field(default=False, metadata={"help": "Compile the teacher with torch.compile."})
    teacher_label_map: str | None = field(
        default=None,
        metadata={"help": "JSON or YAML file: dataset class to the teacher's class, where names do not tell."},
    )
    allow_weak_teacher: bool = field(
        default=False, metadata={"help": "Go on with a teacher that is no better than chance on the validation images."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code that comes with the teacher's or the student's checkpoint."}
    )

    def __post_init__(self):
        if self.model_name_or_path and self.model_size:
            raise InputError("model_name_or_path and model_size are both given; a checkpoint has its size already")
        if self.teacher_name_or_path and self.teacher_config_name:
            raise InputError(
                "teacher_name_or_path and teacher_config_name are both given; keep the first for a trained teacher, "
                "the second for one trained from scratch"
            )
        if self.teacher_config_name and not self.train_teacher:
            raise InputError("teacher_config_name describes a teacher without weights; add --train_teacher true")
        if self.train_teacher and not (self.teacher_name_or_path or self.teacher_config_name):
            raise InputError("train_teacher needs --teacher_name_or_path to fine-tune or --teacher_config_name")
        if isinstance(self.teacher_label_map, str):
            self.teacher_label_map = read_label_map(self.teacher_label_map)
        if isinstance(self.teacher_config_overrides, str):
            self.teacher_config_overrides = _parse_json_object(
                "teacher_config_overrides", self.teacher_config_overrides
            )
        if self.teacher_config_overrides and not self.train_teacher:
            raise InputError(
                "teacher_config_overrides changes a teacher that is yet to be trained; add --train_teacher true, or "
                "leave it out"
            )


@dataclass
class DataArguments:
    """Where images and labels come from.

    Raises:
        InputError: no source, two sources, or values outside their range.
    """

    dataset_name: str | None = field(
        default=None, metadata={"help": "'digits' (embedded), a Hub dataset, a local folder or a parquet file."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the Hub dataset."})
    train_dir: str | None = field(default=None, metadata={"help": "Training images, one folder per class."})
    validation_dir: str | None = field(default=None, metadata={"help": "Validation images, one folder per class."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    validation_split: str | None = field(
        default=None, metadata={"help": "Split to evaluate on; else validation, test, or a cut of the training split."}
    )
    validation_fraction: float = field(
        default=0.1, metadata={"help": "Share of the training split held out where no other split exists."}
    )
    image_column: str | None = field(default=None, metadata={"help": "Column of images, where several exist."})
    label_column: str | None = field(default=None, metadata={"help": "Column of labels, where several exist."})
    streaming: bool = field(
        default=False, metadata={"help": "Read training images as a stream, without storing them; needs max_steps."}
    )
    crop_pct: float | None = field(
        default=None,
        metadata={
            "help": "Evaluation resizes the shorter side to image_size / crop_pct, then crops; 0.875, or that of the "
            "checkpoint to start from, unless given."
        },
    )

    def __post_init__(self):
        if self.dataset_name and self.train_dir:
            raise InputError(
                f"dataset_name {self.dataset_name!r} and train_dir {self.train_dir!r} are both given; keep one"
            )
        if not self.dataset_name and not self.train_dir:
            raise InputError("no data: give --dataset_name (e.g. digits) or --train_dir with one folder per class")
        if self.validation_dir and not self.train_dir:
            raise InputError("validation_dir goes with train_dir; for a dataset_name use --validation_split")
        if not 0.0 < self.validation_fraction < 1.0:
            raise InputError(f"validation_fraction is {self.validation_fraction}; it must lie between 0 and 1")
        if self.crop_pct is not None and not 0.0 < self.crop_pct <= 1.0:
            raise InputError(f"crop_pct is {self.crop_pct}; it must be above 0 and at most 1")

    @property
    def sources(self) -> dict[str, object]:
        """Where images and labels come from: the arguments of `data.sources.load_image_data`."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "crop_pct"}


@dataclass
class DistillationTrainingArguments(TrainingArguments):
    """Arguments of [`DistillationTrainer`]: transformers' `TrainingArguments` with the paper's recipe as defaults.

    Where a default differs from transformers': cosine schedule, weight decay 0.05, label smoothing 0.1, no gradient
    clipping, TensorBoard if installed (paper, Table 9). `learning_rate` is resolved from `base_learning_rate` (per 512
    images, paper section 6) unless given itself.

    Raises:
        InputError: arguments that contradict each other or lie outside their range.
    """

    output_dir: str | None = field(default="outputs/deit", metadata={"help": "Where everything is written."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Train again into an output_dir that holds an earlier run."}
    )
    dry_run: bool = field(default=False, metadata={"help": "Stop after the summary of what would run."})

    distillation_type: Literal["none", "soft", "hard"] = field(
        default="hard",
        metadata={"help": "What the student learns from the teacher: nothing, its scores, its decision."},
    )
    distillation_alpha: float | None = field(
        default=None, metadata={"help": "Weight of the teacher's term; 0.5 for hard, 0.1 for soft unless given."}
    )
    distillation_temperature: float = field(default=3.0, metadata={"help": "Temperature of soft distillation."})
    teacher_store: str | None = field(
        default=None,
        metadata={"help": "Folder of the teacher's answers: read where it has them, written where it has not."},
    )
    teacher_store_top_k: int | None = field(
        default=None,
        metadata={"help": "Classes that a new store keeps per view for soft distillation; 10 unless given."},
    )

    push_native: bool = field(
        default=False,
        metadata={"help": "Push also, as revision 'native', a copy for transformers' own class: no remote code."},
    )

    learning_rate: float | None = field(default=None, metadata={"help": "Peak learning rate, taken as it is."})
    base_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate per 512 images of the effective batch; 5e-4 by default."}
    )
    warmup_epochs: float = field(default=0.0, metadata={"help": "Epochs of linear warm-up; replaces warmup_steps."})
    lr_scheduler_type: SchedulerType = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    warmup_learning_rate: float | None = field(
        default=None, metadata={"help": "Where the warm-up starts; 0, or 1e-6 as the public code, unless given."}
    )
    min_learning_rate: float | None = field(
        default=None, metadata={"help": "Where the cosine ends; 0, or 1e-5 as the public code, unless given."}
    )
    code_compatible: bool = field(
        default=False,
        metadata={
            "help": "Where the public code differs from the paper, do as the code: KL also divided by the classes, "
            "warm-up from 1e-6, cosine to 1e-5, rate changed between epochs, distillation token decayed."
        },
    )
    weight_decay: float = field(default=0.05, metadata={"help": "Not on biases, norms, tokens and positions."})
    label_smoothing_factor: float = field(default=0.1, metadata={"help": "Smoothing of the true label alone."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Gradient clipping; 0 is none, as in the recipe."})

    ema_decay: float | None = field(
        default=None,
        metadata={"help": "Keep a moving average of the weights by this decay a step (public code: 0.99996)."},
    )
    ema_half_life: float | None = field(
        default=None, metadata={"help": "The same, said by the update steps after which a step's share has halved."}
    )

    repeated_augmentation: int = field(
        default=3, metadata={"help": "Views of each drawn image in an epoch, which sees that many fewer images."}
    )
    random_crop_scale: list[float] = field(
        default_factory=lambda: [0.08, 1.0], metadata={"help": "Range of a crop's share of the image's area."}
    )
    horizontal_flip_prob: float = field(default=0.5, metadata={"help": "Chance of a mirrored image."})
    rand_augment_magnitude: float = field(
        default=9.0, metadata={"help": "Strength of RandAugment's two operations, 0 (off) to 10."}
    )
    random_erasing_prob: float = field(default=0.25, metadata={"help": "Chance of an erased box."})
    mixup_alpha: float = field(default=0.8, metadata={"help": "Beta parameter of mixup; 0 is off."})
    cutmix_alpha: float = field(default=1.0, metadata={"help": "Beta parameter of cutmix; 0 is off."})
    keep_decoded_images: bool = field(
        default=False,
        metadata={
            "help": "Decode each training image once and keep it in memory, for small datasets; in each worker, as "
            "long as it lives (dataloader_persistent_workers)."
        },
    )
    on_bad_image: Literal["warn", "error"] = field(
        default="warn", metadata={"help": "What to do about an image that cannot be read."}
    )
    max_bad_image_fraction: float = field(
        default=0.01, metadata={"help": "Stop where more than this share of the training images cannot be read."}
    )

    max_nonfinite_steps: int = field(
        default=10,
        metadata={"help": "Stop after so many skipped steps in a row, their loss or gradient NaN or infinite."},
    )
    bf16: bool | None = field(
        default=None,
        metadata={"help": "Compute in bfloat16; where the device has it, unless given.", "nargs": "?", "const": True},
    )
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide NaN losses from the log."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Our datasets yield what is needed."})
    dataloader_drop_last: bool = field(
        default=False,
        metadata={"help": "Ignored. Training always uses whole batches; evaluation uses every image."},
    )
    do_train: bool = field(default=True, metadata={"help": "Must stay true: a run always trains and evaluates."})
    do_eval: bool = field(default=True, metadata={"help": "Must stay true: a run always trains and evaluates."})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "Every parameter is used."})
    report_to: list[str] | None = field(
        default=None, metadata={"help": "Where to log; TensorBoard if it is installed, unless given."}
    )

    def __post_init__(self):
        if self.learning_rate is not None and self.base_learning_rate is not None:
            raise InputError(
                f"learning_rate {self.learning_rate} and base_learning_rate {self.base_learning_rate} are both given; "
                "keep one: the first is taken as it is, the second scales with the effective batch / 512"
            )
        if self.report_to is None:
            self.report_to = "tensorboard" if is_tensorboard_available() else "none"
        if not torch.accelerator.is_available():
            # Said outright: else several processes would form no group and each train a whole model alone, and bf16,
            # which a CPU has, would be refused.
            self.use_cpu = True
        self.bf16_is_automatic = self.bf16 is None and not self.fp16 and _launchers_precision() == "no"
        if self.bf16_is_automatic:
            self.bf16 = bf16_by_default("cpu" if self.use_cpu else torch.accelerator.current_accelerator().type)
        if str(self.resume_from_checkpoint).lower() in ("false", "no", "none"):
            self.resume_from_checkpoint = None
        if self.distillation_type not in DEFAULT_ALPHA:
            choices = ", ".join(DEFAULT_ALPHA)
            raise InputError(f"distillation_type is {self.distillation_type!r}; choose one of {choices}")
        if self.distillation_alpha is None:
            self.distillation_alpha = DEFAULT_ALPHA[self.distillation_type]
        self._check_ranges()
        if self.push_native and not self.push_to_hub:
            raise InputError("push_native is true but push_to_hub is not; add --push_to_hub true, or leave it out")
        if self.push_native and self.hub_revision == NATIVE_REVISION:
            raise InputError(f"hub_revision is {NATIVE_REVISION!r}, where push_native puts its copy; choose another")
        is_copying_as_usual = self.accelerator_config is None
        check_supported(self)
        try:
            super().__post_init__()
        except (ImportError, OSError, TypeError, ValueError) as error:  # transformers' own checks
            raise InputError(one_line(error)) from error
        # A launcher's configuration may ask for a precision too; what will run is told, and the teacher follows.
        self.bf16, self.fp16 = self.mixed_precision == "bf16", self.mixed_precision == "fp16"
        check_precision(self)
        if self.train_batch_size % 2 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0):
            raise InputError(
                f"per_device_train_batch_size is {self.train_batch_size}, which is odd; mixup and cutmix mix views in "
                "pairs, which must lie in one batch: choose an even one, or set both alphas to 0"
            )
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # there is no device to copy to; torch would warn of it
        elif is_copying_as_usual and self.dataloader_pin_memory:
            self.accelerator_config.non_blocking = True  # the next batch travels while this one is computed
        if self.learning_rate is None:
            if self.base_learning_rate is None:
                self.base_learning_rate = DEFAULT_BASE_LEARNING_RATE
            self.learning_rate = self.base_learning_rate * self.effective_batch_size / REFERENCE_BATCH_SIZE
        resolve_schedule(self)

    def __getstate__(self) -> dict:
        """What is pickled, into `training_args.bin` among others: all but the token."""
        return {**self.__dict__, "hub_token": None}

    @property
    def precision(self) -> str:
        """`"fp32"`, `"bf16"` or `"fp16"`."""
        return "bf16" if self.bf16 else "fp16" if self.fp16 else "fp32"

    @property
    def views_seed(self) -> int:
        """Seed of all draws that belong to views; several student seeds may share one `data_seed`."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def effective_batch_size(self) -> int:
        """Images per optimiser step: devices × accumulation × batch per device."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size

    @property
    def weight_average_decay(self) -> float | None:
        """Decay a step of the weights' moving average, however it was said; None for no average."""
        return self.ema_decay if self.ema_half_life is None else decay_of_half_life(self.ema_half_life)

    def _check_average(self):
        if self.ema_decay is not None and self.ema_half_life is not None:
            raise InputError(
                f"ema_decay {self.ema_decay} and ema_half_life {self.ema_half_life} are both given; keep one"
            )
        if self.ema_half_life is not None and not self.ema_half_life > 0:
            raise InputError(f"ema_half_life is {self.ema_half_life}; it must be a positive number of update steps")
        decay = self.weight_average_decay
        if decay is not None and not 0.0 < decay < 1.0:
            raise InputError(f"ema_decay is {decay}; it must lie between 0 and 1, both excluded")

    def _check_ranges(self):
        self._check_average()
        for name in ("distillation_alpha", "horizontal_flip_prob", "random_erasing_prob", "max_bad_image_fraction"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1")
        if self.max_steps <= 0 and not self.num_train_epochs > 0:
            raise InputError(f"num_train_epochs is {self.num_train_epochs}; it must be positive, or give max_steps")
        if not 0.0 <= self.label_smoothing_factor < 1.0:
            raise InputError(f"label_smoothing_factor is {self.label_smoothing_factor}; it must be in [0, 1)")
        for name in (
            "repeated_augmentation",
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "max_nonfinite_steps",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.teacher_store_top_k is not None and self.teacher_store_top_k < 1:
            raise InputError(f"teacher_store_top_k is {self.teacher_store_top_k}; it must be at least 1")
        for name in ("seed", "dataloader_num_workers"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must not be negative")
        if not self.output_dir or os.path.isfile(self.output_dir):
            raise InputError(f"output_dir {self.output_dir!r} is no folder; give one to write to")
        if self.distillation_temperature <= 0:
            raise InputError(f"distillation_temperature is {self.distillation_temperature}; it must be positive")
        if not 0.0 <= self.rand_augment_magnitude <= 10.0:
            raise InputError(f"rand_augment_magnitude is {self.rand_augment_magnitude}; it must lie between 0 and 10")
        for name in ("mixup_alpha", "cutmix_alpha", "warmup_epochs", "max_grad_norm"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must not be negative")
        for name in ("learning_rate", "base_learning_rate", "warmup_learning_rate", "min_learning_rate"):
            if getattr(self, name) is not None and getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must not be negative")
        scale = self.random_crop_scale
        if len(scale) != 2 or not 0.0 < scale[0] <= scale[1] <= 1.0:
            raise InputError(f"random_crop_scale is {scale}; give two numbers with 0 < smallest <= largest <= 1")


def _launchers_precision() -> str:
    """What Accelerate's launcher asks for; it says "no" where nobody asked."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no")


class _ArgumentParser(HfArgumentParser):
    """Reports a bad value as an `InputError` instead of a page of usage."""

    def error(self, message: str):
        """Raise instead of printing usage and leaving."""
        raise InputError(f"{message} (python train_deit.py --help lists all arguments)")


def parse_arguments(
    arguments: list[str],
) -> tuple[ModelArguments, DataArguments, DistillationTrainingArguments]:
    """Read `RECIPE.yaml --key value ...`: the recipe first, the command line over it.

    A recipe is a command line written down, one `key: value` a line, so both go through the same parser: `5e-4` in a
    recipe is a number because the argument is. Lists become several values, mappings JSON; a null is left out. A data
    source, a teacher or a learning rate on the command line replaces the recipe's, with all that it says of it.

    Raises:
        InputError: an unknown key (with the nearest known one), a bad value, a recipe that cannot be read.
    """
    parser = _ArgumentParser(
        (ModelArguments, DataArguments, DistillationTrainingArguments),
        prog="train_deit.py",
        usage="accelerate launch train_deit.py [RECIPE.yaml] [--key value ...]",
        allow_abbrev=False,
    )
    known = {option.lstrip("-").replace("-", "_") for option in parser._option_string_actions}
    recipe, command_line = _split_recipe(arguments)
    if command_line and not command_line[0].startswith("-"):
        raise InputError(f"unexpected {command_line[0]!r}; arguments are written --key value, after the recipe")
    given = _names(command_line)
    _check_keys(recipe, known, "the recipe")
    _check_keys(given, known, "the command line")
    for key, value in recipe.items():
        if isinstance(value, list) and len(value) != 1 and parser._option_string_actions[f"--{key}"].nargs != "+":
            raise InputError(f"{key} takes one value, not the list {value} of the recipe")
    recipe = _not_replaced(recipe, given)
    try:
        *parsed, rest = parser.parse_args_into_dataclasses(
            _as_command_line(recipe) + command_line, return_remaining_strings=True, look_for_args_file=False
        )
    except InputError:
        raise
    except ValueError as error:  # transformers' own checks
        raise InputError(" ".join(str(error).split())) from error
    if rest:
        raise InputError(f"unexpected {' '.join(rest)!r}; arguments are written --key value, after the recipe")
    return tuple(parsed)


def said_arguments(arguments: list[str]) -> dict[str, object]:
    """What the user said, by name: the recipe's lines and the command line over them, tokens left out.

    Args:
        arguments: as for [`parse_arguments`], which has accepted them.
    """
    recipe, command_line = _split_recipe(arguments)
    said, words, key = _not_replaced(recipe, _names(command_line)), {}, None
    for word in command_line:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            key = name.replace("-", "_")
            said[key] = _as_in_a_recipe(value) if equals else True
        else:
            words[key] = [*words.get(key, []), _as_in_a_recipe(word)]
            said[key] = words[key] if len(words[key]) > 1 else words[key][0]
    said.pop("hub_token", None)
    return said


def _as_in_a_recipe(word: str) -> object:
    try:
        value = yaml.safe_load(word)
    except yaml.YAMLError:
        return word
    return value if isinstance(value, (bool, int, float)) else word


def without_tokens(arguments: list[str]) -> list[str]:
    """A command line as it may be shown: what follows `--hub_token` left out."""
    shown, is_secret = [], False
    for word in arguments:
        is_token = word.split("=")[0].replace("-", "_") == "__hub_token"
        if not is_token and not (is_secret and not word.startswith("--")):
            shown.append(word)
        is_secret = is_token and "=" not in word or is_secret and not word.startswith("--")
    return shown


def _names(command_line: list[str]) -> set[str]:
    return {word[2:].split("=")[0].replace("-", "_") for word in command_line if word.startswith("--")}


def _not_replaced(recipe: dict, given: set[str]) -> dict:
    for sources, replaced in REPLACES.items():
        if given & set(sources):
            recipe = {key: value for key, value in recipe.items() if key not in replaced}
    return dict(recipe)


def _split_recipe(arguments: list[str]) -> tuple[dict, list[str]]:
    if not arguments or arguments[0].startswith("-"):
        return {}, arguments
    path = Path(arguments[0])
    if path.suffix not in (".yaml", ".yml"):
        raise InputError(f"recipe {str(path)!r} is not a .yaml file; options start with --")
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"recipe {str(path)!r} is not UTF-8 text: {error}") from error
    except OSError as error:
        raise InputError(f"recipe {str(path)!r} cannot be read: {error.strerror}; see examples/recipes") from error
    except yaml.YAMLError as error:
        raise InputError(f"recipe {str(path)!r} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise InputError(f"recipe {str(path)!r} must be a list of 'key: value' lines")
    return {str(key): value for key, value in recipe.items() if value is not None}, arguments[1:]


def _check_keys(keys, known: set[str], where: str):
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "python train_deit.py --help lists all arguments"
            raise InputError(f"unknown argument {key!r} in {where}; {hint}")


def _as_command_line(recipe: dict) -> list[str]:
    words = []
    for key, value in recipe.items():
        words.append(f"--{key}")
        if isinstance(value, bool):
            words.append(str(value).lower())
        elif isinstance(value, dict):
            words.append(json.dumps(value))
        elif isinstance(value, list):
            words.extend(str(item) for item in value)
        else:
            words.append(os.path.expanduser(str(value)))
    return words


def _parse_json_object(name: str, text: str) -> dict:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{name} is not valid JSON ({error}): {text!r}; write e.g. '{{\"depths\": [1, 1]}}'"
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{name} must be a JSON object, not {text!r}")
    return value
