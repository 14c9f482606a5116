"""The arguments of `train_deit.py`: three dataclasses and their checks."""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Annotated, Literal

import torch
from transformers import TrainingArguments
from transformers.hf_argparser import HfArg
from transformers.integrations import is_tensorboard_available
from transformers.trainer_utils import HubStrategy, SchedulerType

from .errors import InputError, one_line
from .fields import Choice, Group, Range, check_fields
from .precision import bf16_by_default
from .supported import check_precision, check_supported

# Paper, section 6: the learning rate is given per 512 images and grows linearly with the batch.
REFERENCE_BATCH_SIZE = 512
DEFAULT_BASE_LEARNING_RATE = 5e-4
# Paper, section 5.2, "Soft distillation" and "Hard-label distillation": weight of the teacher's term.
DEFAULT_ALPHA = {"none": 0.0, "soft": 0.1, "hard": 0.5}
# Where the public code's schedule starts and ends.
CODE_WARMUP_LEARNING_RATE = 1e-6
CODE_MIN_LEARNING_RATE = 1e-5

# The branch of transformers' own class.
NATIVE_REVISION = "native"

# Arguments that describe one thing. Each type below that names a group adds its field to it; see `fields.Choice`.
DATA = Group("data", "keep one")
STUDENT = Group("student", "keep one: a checkpoint has its size already")
TEACHER = Group("teacher", "keep the first for a trained teacher, the second for one trained from scratch")
REMOTE_CODE = Group("remote code")
LEARNING_RATE = Group(
    "learning rate", "keep one: the first is taken as it is, the second scales with the effective batch / 512"
)
WARM_UP = Group("warm-up")
AVERAGE = Group("average of weights", "keep one")

NotNegative = Annotated[float, Range(at_least=0)]
Positive = Annotated[float, Range(above=0)]
Fraction = Annotated[float, Range(at_least=0, at_most=1)]
Natural = Annotated[int, Range(at_least=0)]
Count = Annotated[int, Range(at_least=1)]


@dataclass
class ModelArguments:
    """Student and teacher. Every field of `DeiTDistillConfig` is an argument of the same name; None keeps its default.

    Raises:
        InputError: arguments that exclude or need each other, values outside their range, or overrides that are not a
            JSON object.
    """

    model_name_or_path: Annotated[str | None, Choice(STUDENT), Choice(REMOTE_CODE)] = HfArg(
        default=None, help="Start from a DeiT: ours, transformers' or timm's (a folder or name), facebook's (a .pth)."
    )
    model_size: Annotated[Literal["tiny", "small", "base"] | None, Choice(STUDENT)] = HfArg(
        default=None, help="Named size of a new student (DeiT-Ti, -S, -B); tiny unless given."
    )
    hidden_size: Annotated[int | None, STUDENT] = HfArg(default=None, help="Width of a token.")
    num_hidden_layers: Annotated[int | None, STUDENT] = HfArg(default=None, help="Number of transformer blocks.")
    num_attention_heads: Annotated[int | None, STUDENT] = HfArg(default=None, help="Attention heads per block.")
    intermediate_size: Annotated[int | None, STUDENT] = HfArg(default=None, help="Width of the MLP's hidden layer.")
    hidden_act: str | None = HfArg(default=None, help="Activation of the MLP.")
    hidden_dropout_prob: float | None = HfArg(default=None, help="Dropout of embeddings and branches.")
    attention_probs_dropout_prob: float | None = HfArg(default=None, help="Dropout of attention.")
    drop_path_rate: float | None = HfArg(default=None, help="Stochastic depth of the last block.")
    image_size: int | None = HfArg(default=None, help="Side of the student's input in pixels.")
    patch_size: int | None = HfArg(default=None, help="Side of a patch in pixels.")
    num_channels: int | None = HfArg(default=None, help="Input channels; images are decoded as RGB.")
    qkv_bias: bool | None = HfArg(default=None, help="Bias on the query-key-value projection.")
    layer_norm_eps: float | None = HfArg(default=None, help="Epsilon of every LayerNorm.")
    initializer_range: float | None = HfArg(default=None, help="Deviation of the initialisation.")
    use_distillation_token: bool | None = HfArg(
        default=None, help="Two tokens and heads, or one; by default two wherever a teacher is used."
    )
    fusion: Literal["logit_mean", "softmax_mean", "cls", "distillation"] | None = HfArg(
        default=None, help="How the two heads make one answer."
    )
    attn_implementation: str | None = HfArg(
        default=None, help="Attention kernel of the student: sdpa, eager, flash_attention_2, ..."
    )
    teacher_name_or_path: Annotated[str | None, Choice(TEACHER)] = HfArg(
        default=None, help="The teacher: any image classifier that transformers can load."
    )
    teacher_config_name: Annotated[str | None, Choice(TEACHER)] = HfArg(
        default=None, help="Architecture of a teacher to train: a folder, a JSON file, a Hub name or a model_type."
    )
    teacher_config_overrides: Annotated[str | None, TEACHER] = HfArg(
        default=None, help="JSON object of fields that replace those of the teacher's configuration."
    )
    train_teacher: Annotated[bool, TEACHER] = HfArg(
        default=False, help="Train the teacher on the same data first; kept in <output_dir>/teacher."
    )
    teacher_num_train_epochs: Annotated[Positive, TEACHER] = HfArg(
        default=10.0, help="Epochs of the teacher's training."
    )
    teacher_learning_rate: Annotated[NotNegative, TEACHER] = HfArg(
        default=1e-3, help="Peak learning rate of the teacher."
    )
    teacher_image_size: Annotated[Count | None, TEACHER] = HfArg(
        default=None,
        help="Side at which the teacher looks at views, and a new one is trained; its image processor's, or the "
        "student's for a new one, unless given.",
    )
    teacher_precision: Literal["fp32", "bf16", "fp16"] | None = HfArg(
        default=None, help="The teacher's arithmetic; the store's, else the run's, unless given."
    )
    teacher_compile: bool = HfArg(default=False, help="Compile the teacher with torch.compile.")
    teacher_label_map: Annotated[str | None, TEACHER] = HfArg(
        default=None, help="JSON or YAML file: dataset class to the teacher's class, where names do not tell."
    )
    allow_weak_teacher: Annotated[bool, TEACHER] = HfArg(
        default=False, help="Go on with a teacher that is no better than chance on the validation images."
    )
    trust_remote_code: Annotated[bool, TEACHER, REMOTE_CODE] = HfArg(
        default=False, help="Run code that comes with the teacher's or the student's checkpoint."
    )

    def __post_init__(self):
        check_fields(self)
        if self.teacher_config_name and not self.train_teacher:
            raise InputError("teacher_config_name describes a teacher without weights; add --train_teacher true")
        if self.train_teacher and not (self.teacher_name_or_path or self.teacher_config_name):
            raise InputError("train_teacher needs --teacher_name_or_path to fine-tune or --teacher_config_name")
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

    dataset_name: Annotated[str | None, Choice(DATA)] = HfArg(
        default=None, help="'digits' (embedded), a Hub dataset, a local folder, a parquet file or a webdataset's tar."
    )
    dataset_config_name: Annotated[str | None, DATA] = HfArg(default=None, help="Configuration of the Hub dataset.")
    train_dir: Annotated[str | None, Choice(DATA)] = HfArg(default=None, help="Training images, one folder per class.")
    validation_dir: Annotated[str | None, DATA] = HfArg(default=None, help="Validation images, one folder per class.")
    train_csv: Annotated[str | None, Choice(DATA)] = HfArg(
        default=None, help="CSV file of paths, relative to it, and labels."
    )
    validation_csv: Annotated[str | None, DATA] = HfArg(default=None, help="CSV file of validation images.")
    train_split: Annotated[str, DATA] = HfArg(default="train", help="Split to train on.")
    validation_split: Annotated[str | None, DATA] = HfArg(
        default=None, help="Split to evaluate on; else validation, test, or a cut of the training split."
    )
    validation_fraction: Annotated[float, Range(above=0, below=1), DATA] = HfArg(
        default=0.1, help="Share of the training split held out where no other split exists."
    )
    group_by: Annotated[str | None, DATA] = HfArg(
        default=None,
        help="Column, or regular expression in the image's path, whose value (its first group, or the match) images "
        "of one object share: the cut keeps them together.",
    )
    image_column: Annotated[str | None, DATA] = HfArg(default=None, help="Column of images, where several exist.")
    label_column: Annotated[str | None, DATA] = HfArg(default=None, help="Column of labels, where several exist.")
    streaming: Annotated[bool, DATA] = HfArg(
        default=False, help="Read training images as a stream, without storing them; needs max_steps."
    )
    crop_pct: Annotated[float | None, Range(above=0, at_most=1)] = HfArg(
        default=None,
        help="Evaluation resizes the shorter side to image_size / crop_pct, then crops; 0.875, or that of the "
        "checkpoint to start from, unless given.",
    )

    def __post_init__(self):
        check_fields(self)
        if not self.dataset_name and not self.train_dir and not self.train_csv:
            raise InputError(
                "no data: give --dataset_name (e.g. digits), --train_dir with one folder per class, or --train_csv"
            )
        if self.validation_dir and not self.train_dir:
            raise InputError("validation_dir goes with train_dir; for a dataset_name use --validation_split")
        if self.validation_csv and not self.train_csv:
            raise InputError("validation_csv goes with train_csv; for a dataset_name use --validation_split")
        uncut = [
            name
            for name in ("validation_dir", "validation_csv", "validation_split", "streaming")
            if getattr(self, name)
        ]
        if self.group_by is not None and uncut:
            raise InputError(f"group_by is about cutting the training split; with {uncut[0]} nothing is cut: drop one")

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

    output_dir: str | None = HfArg(default="outputs/deit", help="Where everything is written.")
    overwrite_output_dir: bool = HfArg(default=False, help="Train again into an output_dir that holds an earlier run.")
    dry_run: bool = HfArg(default=False, help="Stop after the summary of what would run.")

    distillation_type: Literal["none", "soft", "hard"] = HfArg(
        default="hard", help="What the student learns from the teacher: nothing, its scores, its decision."
    )
    distillation_alpha: Fraction | None = HfArg(
        default=None, help="Weight of the teacher's term; 0.5 for hard, 0.1 for soft unless given."
    )
    distillation_temperature: Positive = HfArg(default=3.0, help="Temperature of soft distillation.")
    teacher_store: str | None = HfArg(
        default=None, help="Folder of the teacher's answers: read where it has them, written where it has not."
    )
    teacher_store_top_k: Count | None = HfArg(
        default=None, help="Classes that a new store keeps per view for soft distillation; 10 unless given."
    )

    push_native: bool = HfArg(
        default=False, help="Push also, as revision 'native', a copy for transformers' own class: no remote code."
    )

    learning_rate: Annotated[NotNegative | None, Choice(LEARNING_RATE)] = HfArg(
        default=None, help="Peak learning rate, taken as it is."
    )
    base_learning_rate: Annotated[NotNegative | None, Choice(LEARNING_RATE)] = HfArg(
        default=None, help="Peak learning rate per 512 images of the effective batch; 5e-4 by default."
    )
    warmup_epochs: Annotated[NotNegative, Choice(WARM_UP)] = HfArg(
        default=0.0, help="Epochs of linear warm-up; replaces warmup_steps."
    )
    lr_scheduler_type: SchedulerType = HfArg(default="cosine", help="Learning-rate schedule.")
    warmup_learning_rate: NotNegative | None = HfArg(
        default=None, help="Where the warm-up starts; 0, or 1e-6 as the public code, unless given."
    )
    min_learning_rate: NotNegative | None = HfArg(
        default=None, help="Where the cosine ends; 0, or 1e-5 as the public code, unless given."
    )
    code_compatible: bool = HfArg(
        default=False,
        help="Where the public code differs from the paper, do as the code: KL also divided by the classes, "
        "warm-up from 1e-6, cosine to 1e-5, rate changed between epochs, distillation token decayed.",
    )
    weight_decay: float = HfArg(default=0.05, help="Not on biases, norms, tokens and positions.")
    label_smoothing_factor: Annotated[float, Range(at_least=0, below=1)] = HfArg(
        default=0.1, help="Smoothing of the true label alone."
    )
    max_grad_norm: NotNegative = HfArg(default=0.0, help="Gradient clipping; 0 is none, as in the recipe.")

    ema_decay: Annotated[float | None, Range(above=0, below=1), Choice(AVERAGE)] = HfArg(
        default=None, help="Keep a moving average of the weights by this decay a step (public code: 0.99996)."
    )
    ema_half_life: Annotated[float | None, Range(at_least=0.001, at_most=1e16), Choice(AVERAGE)] = HfArg(
        default=None, help="The same, said by the update steps after which a step's share has halved."
    )

    repeated_augmentation: Count = HfArg(
        default=3, help="Views of each drawn image in an epoch, which sees that many fewer images."
    )
    random_crop_scale: list[float] = HfArg(
        default_factory=lambda: [0.08, 1.0], help="Range of a crop's share of the image's area."
    )
    horizontal_flip_prob: Fraction = HfArg(default=0.5, help="Chance of a mirrored image.")
    rand_augment_magnitude: Annotated[float, Range(at_least=0, at_most=10)] = HfArg(
        default=9.0, help="Strength of RandAugment's two operations, 0 (off) to 10."
    )
    random_erasing_prob: Fraction = HfArg(default=0.25, help="Chance of an erased box.")
    mixup_alpha: NotNegative = HfArg(default=0.8, help="Beta parameter of mixup; 0 is off.")
    cutmix_alpha: NotNegative = HfArg(default=1.0, help="Beta parameter of cutmix; 0 is off.")
    keep_decoded_images: bool = HfArg(
        default=False,
        help="Decode each training image once and keep it in memory, for small datasets; in each worker, as "
        "long as it lives (dataloader_persistent_workers).",
    )
    on_bad_image: Literal["warn", "error"] = HfArg(
        default="warn", help="What to do about an image that cannot be read."
    )
    max_bad_image_fraction: Fraction = HfArg(
        default=0.01, help="Stop where more than this share of the training images cannot be read."
    )

    max_nonfinite_steps: Count = HfArg(
        default=10, help="Stop after so many skipped steps in a row, their loss or gradient NaN or infinite."
    )
    bf16: bool | None = HfArg(
        default=None,
        help="Compute in bfloat16; where the device has it, unless given.",
        metadata={"nargs": "?", "const": True},
    )
    logging_nan_inf_filter: bool = HfArg(default=False, help="Hide NaN losses from the log.")
    remove_unused_columns: bool = HfArg(default=False, help="Our datasets yield what is needed.")
    dataloader_drop_last: bool = HfArg(
        default=False, help="Ignored. Training always uses whole batches; evaluation uses every image."
    )
    do_train: bool = HfArg(default=True, help="Must stay true: a run always trains and evaluates.")
    do_eval: bool = HfArg(default=True, help="Must stay true: a run always trains and evaluates.")
    ddp_find_unused_parameters: bool | None = HfArg(default=False, help="Every parameter is used.")
    report_to: list[str] | None = HfArg(
        default=None, help="Where to log; TensorBoard if it is installed, unless given."
    )

    # Types of fields that `TrainingArguments` declares.
    inherited_types = {
        "seed": Annotated[int, Range(at_least=0, below=2**32)],
        "data_seed": Natural,
        "dataloader_num_workers": Natural,
        "dataloader_prefetch_factor": Count,
        "per_device_train_batch_size": Count,
        "per_device_eval_batch_size": Count,
        "gradient_accumulation_steps": Count,
        "eval_accumulation_steps": Count,
        "warmup_steps": Annotated[NotNegative, Choice(WARM_UP)],
    }

    def __post_init__(self):
        check_fields(self)
        self._check_values()
        if self.distillation_alpha is None:
            self.distillation_alpha = DEFAULT_ALPHA[self.distillation_type]
        if self.report_to is None:
            self.report_to = "tensorboard" if is_tensorboard_available() else "none"
        if str(self.resume_from_checkpoint).lower() in ("false", "no", "none"):
            self.resume_from_checkpoint = None
        if not torch.accelerator.is_available():
            # Said outright: else several processes would form no group and each train a whole model alone, and bf16,
            # which a CPU has, would be refused.
            self.use_cpu = True
        launchers_precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # "no": nobody asked
        self.bf16_is_automatic = self.bf16 is None and not self.fp16 and launchers_precision == "no"
        if self.bf16_is_automatic:
            self.bf16 = bf16_by_default("cpu" if self.use_cpu else torch.accelerator.current_accelerator().type)
        is_copying_as_usual = self.accelerator_config is None
        check_supported(self)
        try:
            super().__post_init__()
        # What transformers checks has no error type of its own: a value it does not know is a ValueError, JSON of the
        # wrong form a TypeError, a file that is missing an OSError, a library that is missing an ImportError.
        except (ImportError, OSError, TypeError, ValueError) as error:
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
        self._resolve_learning_rates()

    def __getstate__(self) -> dict:
        """What is pickled, into `training_args.bin` among others: all but the token."""
        return {**self.__dict__, "hub_token": None}

    @contextlib.contextmanager
    def done_by_callbacks(self) -> Iterator[None]:
        """While Trainer trains: it is not asked for what callbacks of [`DistillationTrainer`] do in its place."""
        kept = self.save_total_limit, self.hub_strategy
        self.save_total_limit, self.hub_strategy = None, HubStrategy.END
        try:
            yield
        finally:
            self.save_total_limit, self.hub_strategy = kept

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

    def _check_values(self):
        """What the types of the fields do not say."""
        if not self.output_dir or os.path.isfile(self.output_dir):
            raise InputError(f"output_dir {self.output_dir!r} is no folder; give one to write to")
        if self.distillation_type not in DEFAULT_ALPHA:
            choices = ", ".join(DEFAULT_ALPHA)
            raise InputError(f"distillation_type is {self.distillation_type!r}; choose one of {choices}")
        if self.max_steps <= 0 and not self.num_train_epochs > 0:
            raise InputError(f"num_train_epochs is {self.num_train_epochs}; it must be above 0, or give max_steps")
        scale = self.random_crop_scale
        if len(scale) != 2 or not 0.0 < scale[0] <= scale[1] <= 1.0:
            raise InputError(f"random_crop_scale is {scale}; give two numbers with 0 < smallest <= largest <= 1")
        if self.push_native and not self.push_to_hub:
            raise InputError("push_native is true but push_to_hub is not; add --push_to_hub true, or leave it out")
        if self.push_native and self.hub_revision == NATIVE_REVISION:
            raise InputError(f"hub_revision is {NATIVE_REVISION!r}, where push_native puts its copy; choose another")

    def _resolve_learning_rates(self):
        """Set the peak, where the warm-up starts and where the cosine ends, unless they are given."""
        if self.learning_rate is None:
            if self.base_learning_rate is None:
                self.base_learning_rate = DEFAULT_BASE_LEARNING_RATE
            self.learning_rate = self.base_learning_rate * self.effective_batch_size / REFERENCE_BATCH_SIZE
        kind, ends = self.lr_scheduler_type, ("warmup_learning_rate", "min_learning_rate")
        given = [name for name in ends if getattr(self, name) is not None]
        given += ["code_compatible"] if self.code_compatible else []
        ours = (SchedulerType.COSINE, SchedulerType.CONSTANT_WITH_WARMUP, SchedulerType.CONSTANT)
        if given and (kind not in ours or self.lr_scheduler_kwargs):
            raise InputError(
                f"{given[0]} is for lr_scheduler_type cosine or constant_with_warmup, without lr_scheduler_kwargs; "
                f"this is {kind.value!r}: choose one of them, or leave {given[0]} out"
            )
        if self.warmup_learning_rate is None:
            self.warmup_learning_rate = CODE_WARMUP_LEARNING_RATE if self.code_compatible else 0.0
        if self.min_learning_rate is None:
            self.min_learning_rate = CODE_MIN_LEARNING_RATE if self.code_compatible else 0.0
        has_warmup = kind != SchedulerType.CONSTANT and (self.warmup_epochs > 0 or self.warmup_steps > 0)
        for name, is_used in zip(ends, (has_warmup, kind == SchedulerType.COSINE), strict=True):
            if is_used and 0 < self.learning_rate < getattr(self, name):
                raise InputError(
                    f"{name} {getattr(self, name):g} is above the peak learning rate {self.learning_rate:g}; lower "
                    "it, raise the peak, or choose --lr_scheduler_type constant_with_warmup, which has no minimum"
                )


def decay_of_half_life(half_life: float) -> float:
    """The decay by which what a step contributed has lost half its weight after `half_life` update steps."""
    return 0.5 ** (1.0 / half_life)


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
