"""Arguments of training: those of transformers' Trainer and ours."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import InitVar, dataclass, fields
from typing import Annotated, Literal

import torch
from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments
from transformers.hf_argparser import HfArg
from transformers.integrations import is_tensorboard_available
from transformers.trainer_utils import HubStrategy, SchedulerType

from ..errors import InputError, one_line
from ..fields import Choice, Range, check_fields, check_finite
from ..hardware import workers_by_default
from ..hub import check_license
from ..precision import bf16_by_default
from ..supported import check_devices, check_launched, check_precision, check_supported
from .types import AVERAGE, LEARNING_RATE, WARM_UP, Count, Every, Fraction, Natural, NotNegative, Positive, Rate

# Paper, section 6: the learning rate is given per 512 images and grows linearly with the batch.
REFERENCE_BATCH_SIZE = 512
DEFAULT_BASE_LEARNING_RATE = 5e-4
# Paper, section 4, "Soft distillation" and "Hard-label distillation": weight of the teacher's term.
DEFAULT_ALPHA = {"none": 0.0, "soft": 0.1, "hard": 0.5}
# Where the public code's schedule starts and ends.
CODE_WARMUP_LEARNING_RATE = 1e-6
CODE_MIN_LEARNING_RATE = 1e-5

# Branches of a run's repository that hold copies of its model.
NATIVE_REVISION, BROWSER_REVISION = "native", "browser"
COPIES = ("native", "browser", "demo")  # what can be pushed besides the model; the demo is a Space


@dataclass
class DistillationTrainingArguments(TrainingArguments):
    """Arguments of [`DistillationTrainer`]: transformers' `TrainingArguments` with the paper's recipe as defaults.

    Where a default differs from transformers': cosine schedule, weight decay 0.05, label smoothing 0.1, no gradient
    clipping, TensorBoard if installed (paper, Table 9). By default `learning_rate` is resolved from
    `base_learning_rate` (per 512 images, paper section 6).

    Raises:
        InputError: arguments that contradict each other or lie outside their range.
    """

    output_dir: str | None = HfArg(default="outputs/deit", help="Where everything is written.")
    overwrite_output_dir: bool = HfArg(default=False, help="Train again into an output_dir that holds an earlier run.")
    dry_run: bool = HfArg(
        default=False,
        help="Only check, try a few steps of each phase, and say how long each will take. Nothing is written to "
        "output_dir.",
    )

    distillation_type: Literal["none", "soft", "hard"] = HfArg(
        default="hard",
        help="What the student learns from: labels alone, the teacher's logits too, or its decisions too.",
    )
    distillation_alpha: Fraction | None = HfArg(
        default=None, help="Weight of the teacher's term. Default: 0.5 for hard, 0.1 for soft."
    )
    distillation_temperature: Annotated[float, Range(at_least=0.01, at_most=1000)] = HfArg(
        default=3.0, help="Temperature of soft distillation."
    )
    teacher_batch_size: Count | None = HfArg(
        default=None,
        help="Views that the teacher is asked about at once: of several accumulation steps together, or fewer than the "
        "student trains on. Default: those of a batch.",
    )
    teacher_store: str | None = HfArg(
        default=None, help="Folder of the teacher's answers. Known answers are read, new ones are written."
    )
    teacher_store_top_k: Count | None = HfArg(
        default=None, help="Classes that a new store keeps for each view in soft distillation. Default: 10."
    )

    push_native: bool = HfArg(
        default=False,
        help="Also push a copy for transformers' own class, which needs no remote code, as revision 'native'.",
    )
    push_onnx: bool = HfArg(
        default=False, help="Also push ONNX files for transformers.js and other runtimes, as revision 'browser'."
    )
    push_demo: bool = HfArg(
        default=False,
        help="Make or update a static Space NAME-demo: a page that classifies photos. It shows up to 8 held-out ones.",
    )
    license: str | None = HfArg(
        default=None, help="Licence on the model's card, as the Hub names it (mit, cc-by-4.0, ...). Default: none."
    )

    hub_max_wait: Positive = HfArg(
        default=600.0,
        help="Seconds that the end of a run waits for the Hub. The model, its results and its card are saved before.",
    )

    learning_rate: Annotated[NotNegative | None, Choice(LEARNING_RATE)] = HfArg(
        default=None, help="Peak learning rate, taken as it is."
    )
    base_learning_rate: Annotated[NotNegative | None, Choice(LEARNING_RATE)] = HfArg(
        default=None, help="Peak learning rate per 512 images of the effective batch. Default: 5e-4."
    )
    warmup_epochs: Annotated[NotNegative, Choice(WARM_UP)] = HfArg(
        default=0.0, help="Epochs of linear warm-up; replaces warmup_steps."
    )
    lr_scheduler_type: SchedulerType = HfArg(default="cosine", help="Learning-rate schedule.")
    warmup_learning_rate: NotNegative | None = HfArg(
        default=None, help="Learning rate at which the warm-up starts. Default: 0, or 1e-6 with code_compatible."
    )
    min_learning_rate: NotNegative | None = HfArg(
        default=None, help="Learning rate at which the cosine ends. Default: 0, or 1e-5 with code_compatible."
    )
    code_compatible: bool = HfArg(
        default=False,
        help="Follow the public code where it differs from the paper: KL also divided by the classes, "
        "warm-up from 1e-6, cosine to 1e-5, rate changed between epochs, distillation token "
        "decayed.",
    )
    weight_decay: NotNegative = HfArg(default=0.05, help="Not on biases, norms, tokens and positions.")
    label_smoothing_factor: Rate = HfArg(default=0.1, help="Smoothing of the true label alone.")
    freeze_blocks: str | None = HfArg(
        default=None,
        help="Freeze patches, tokens, positions and the first so many blocks of a student that starts "
        "from a checkpoint; 'all' trains the heads alone.",
    )
    layer_decay: Annotated[float | None, Range(above=0, at_most=1)] = HfArg(
        default=None,
        help="Multiply the learning rate by this for each layer below the heads, e.g. 0.75 (BEiT, timm).",
    )
    early_stopping_patience: Count | None = HfArg(
        default=None,
        help="Stop after so many evaluations without a better metric_for_best_model; the teacher's "
        "training too, by epochs. Needs load_best_model_at_end.",
    )
    class_weights: str | None = HfArg(
        default=None,
        help="Weights of the classes in the label's term, also of the teacher's training: 'balanced', images / "
        "(classes × images of the class), or a JSON or CSV file of class and weight.",
    )
    max_grad_norm: NotNegative = HfArg(default=0.0, help="Gradient clipping; 0 is none, as in the recipe.")

    ema_decay: Annotated[float | None, Range(above=0, below=1), Choice(AVERAGE)] = HfArg(
        default=None, help="Keep a moving average of the weights with this decay for each step (public code: 0.99996)."
    )
    ema_half_life: Annotated[float | None, Range(at_least=0.001, at_most=1e16), Choice(AVERAGE)] = HfArg(
        default=None, help="The same decay, given as the number of steps after which a step's share has halved."
    )

    repeated_augmentation: Count = HfArg(
        default=3,
        help="Views of each drawn image in an epoch. With N views per image, an epoch uses 1/N of the images.",
    )
    view_epochs: Natural = HfArg(
        default=0,
        help="Repeat the views of the first so many epochs, in another order each time, so that a "
        "teacher is asked about these alone. Without a teacher_store its answers are kept in "
        "output_dir/answers. 0: new views in each epoch.",
    )
    balanced_views: bool = HfArg(
        default=False, help="Draw each class equally often, whatever the number of its images; also for the teacher."
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
    scaled_decoding: bool | None = HfArg(
        default=None,
        help="Decode large training JPEGs at 1/2, 1/4 or 1/8 size. No crop becomes smaller than image_size. Default: "
        "on if half of the images are JPEGs of 4 megapixels or more.",
        metadata={"nargs": "?", "const": True},
    )
    keep_decoded_images: bool = HfArg(
        default=False,
        help="Decode each training image once and keep it in memory, for small datasets: as many as fit into a quarter "
        "of the free memory. Each worker keeps its own, for as long as it lives (dataloader_persistent_workers).",
    )
    on_bad_image: Literal["warn", "error"] = HfArg(
        default="warn", help="What to do about an image that cannot be read."
    )
    max_bad_image_fraction: Fraction = HfArg(
        default=0.01,
        help="Stop if more than this share of the training or held-out images, and more than 5, cannot be read.",
    )

    max_nonfinite_steps: Count = HfArg(
        default=10, help="Stop after so many skipped steps in a row, with a loss or gradient that is NaN or infinite."
    )
    bf16: bool | None = HfArg(
        default=None,
        help="Train in bfloat16. Default: true if the device supports it natively.",
        metadata={"nargs": "?", "const": True},
    )
    dataloader_num_workers: int | None = HfArg(
        default=None,
        help="Processes that decode images beside each training process. Default: 0 where the CPU trains and with "
        "keep_decoded_images, else one for each core, at most 16, shared among the training processes.",
    )
    logging_nan_inf_filter: bool = HfArg(default=False, help="Hide NaN losses from the log.")
    remove_unused_columns: bool = HfArg(default=False, help="Our datasets yield what is needed.")
    dataloader_drop_last: bool = HfArg(
        default=False, help="Ignored. Training always uses whole batches; evaluation uses every image."
    )
    do_train: bool = HfArg(
        default=True,
        help="Train. If false, evaluate the model of output_dir, or model_name_or_path, on the held-out images.",
    )
    do_eval: bool = HfArg(default=True, help="Must stay true: a run always evaluates.")
    do_predict: bool = HfArg(
        default=False, help="At the end write the answers on the held-out images to <output_dir>/predictions.csv."
    )
    ddp_find_unused_parameters: bool | None = HfArg(default=False, help="Every parameter is used.")
    report_to: list[str] | None = HfArg(default=None, help="Where to log. Default: TensorBoard if it is installed.")

    # Types of fields that `TrainingArguments` declares.
    inherited_types = {
        "seed": Annotated[int, Range(at_least=0, below=2**32)],
        "data_seed": Natural,
        "num_train_epochs": Annotated[float, Range(at_least=-1, at_most=1_000_000)],
        "max_steps": Annotated[int, Range(at_least=-1)],
        "adam_beta1": Rate,
        "adam_beta2": Rate,
        # Below it, float32 adds nothing to a gradient of 0, which Adam divides by itself.
        "adam_epsilon": Annotated[float, Range(at_least=1e-30)],
        "logging_steps": Every,
        "eval_steps": Every,
        "save_steps": Every,
        "eval_delay": NotNegative,
        "save_total_limit": Count,
        "torch_empty_cache_steps": Count,
        "ddp_bucket_cap_mb": Count,
        "ddp_timeout": Count,
        "local_rank": Annotated[int, Range(at_least=-1)],
        "dataloader_num_workers": Annotated[int | None, Range(at_least=0, at_most=1024)],
        "dataloader_prefetch_factor": Count,
        "per_device_train_batch_size": Count,
        "per_device_eval_batch_size": Count,
        "gradient_accumulation_steps": Count,
        "eval_accumulation_steps": Count,
        "warmup_steps": Annotated[NotNegative, Choice(WARM_UP)],
    }

    # Of each field that `__post_init__` fills in: what was given, and what it became. `dataclasses.replace` passes this
    # on to the new arguments, which fill the field in anew: another batch, another learning rate.
    as_given: InitVar[dict[str, tuple] | None] = None

    def __post_init__(self, as_given: dict[str, tuple] | None = None):
        for name, (given, filled_in) in (as_given or {}).items():
            if getattr(self, name) == filled_in:
                setattr(self, name, given)
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        self._check_and_fill_in()
        self.as_given = {}
        self.note_filled_in(**given)

    def note_filled_in(self, **given):
        """Take note of what fields held before they were filled in from others, see `as_given`."""
        now = {name: getattr(self, name) for name in given}
        self.as_given |= {name: (given[name], now[name]) for name in given if now[name] != given[name]}

    def _check_and_fill_in(self):
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
            self.bf16 = bf16_by_default(self._device_type)
        self.workers_are_automatic = self.dataloader_num_workers is None
        if self.workers_are_automatic:  # each worker would keep images of its own
            self.dataloader_num_workers = 0 if self.keep_decoded_images else workers_by_default(self._device_type)
        is_copying_as_usual = self.accelerator_config is None
        check_supported(self)
        check_launched(self._device_type)
        try:
            super().__post_init__()
        # What transformers checks has no error type of its own: a value it does not know is a ValueError, JSON of the
        # wrong form a TypeError, a file that is missing an OSError, a library that is missing an ImportError.
        except (ImportError, OSError, TypeError, ValueError) as error:
            raise InputError(one_line(error)) from error
        for name, value in vars(self).items():  # JSON has been read by now
            check_finite(name, value)
        # A launcher's configuration may ask for a precision too; what will run is recorded, and the teacher follows.
        self.bf16, self.fp16 = self.mixed_precision == "bf16", self.mixed_precision == "fp16"
        check_devices(self)
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
    def _device_type(self) -> str:
        is_cpu = self.use_cpu or parse_flag_from_env("ACCELERATE_USE_CPU")
        return "cpu" if is_cpu else torch.accelerator.current_accelerator().type

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
        if self.max_steps <= 0 and not self.num_train_epochs > 0:
            raise InputError(f"num_train_epochs is {self.num_train_epochs}; it must be above 0, or give max_steps")
        scale = self.random_crop_scale
        if len(scale) != 2 or not 0.0 < scale[0] <= scale[1] <= 1.0:
            raise InputError(f"random_crop_scale is {scale}; give two numbers with 0 < smallest <= largest <= 1")
        if self.freeze_blocks is not None:
            self.freeze_blocks = _blocks(self.freeze_blocks)
        if self.early_stopping_patience is not None and not self.load_best_model_at_end:
            raise InputError(
                f"early_stopping_patience is {self.early_stopping_patience} but load_best_model_at_end is not true, so "
                "the run would end with weights that are not its best; add --load_best_model_at_end true "
                "--eval_strategy epoch --save_strategy epoch, and --metric_for_best_model macro_f1 or another"
            )
        if self.class_weights == "balanced" and self.balanced_views:
            raise InputError(
                "class_weights 'balanced' and balanced_views both make up for rare classes, which would then count "
                "twice over; keep one"
            )
        check_license(self.license)
        if not self.do_train and (self.push_to_hub or self.resume_from_checkpoint or self.overwrite_output_dir):
            names = ("push_to_hub", "resume_from_checkpoint", "overwrite_output_dir")
            given = next(name for name in names if getattr(self, name))
            raise InputError(f"do_train is false, so nothing is trained; {given} is about training: leave one out")
        self._check_copies()

    def _check_copies(self):
        """Refuse copies for the Hub without a push, and a branch that two of them share."""
        for name, revision in (
            ("push_native", NATIVE_REVISION),
            ("push_onnx", BROWSER_REVISION),
            ("push_demo", None),
        ):
            if getattr(self, name) and not self.push_to_hub:
                raise InputError(f"{name} is true but push_to_hub is not; add --push_to_hub true, or leave it out")
            if getattr(self, name) and revision is not None and self.hub_revision == revision:
                raise InputError(f"hub_revision is {revision!r}, where {name} puts its copy; choose another")

    @property
    def copies(self) -> tuple[str, ...]:
        """What is pushed besides the model, of `COPIES`."""
        asked = zip(COPIES, (self.push_native, self.push_onnx, self.push_demo), strict=True)
        return tuple(name for name, is_asked in asked if is_asked)

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


def _blocks(value: str | int) -> str:
    """`freeze_blocks` as it is kept: a number from 1 on in digits, or "all"."""
    text = str(value)
    if text != "all" and not (text.isascii() and text.isdigit() and int(text) > 0):
        raise InputError(f"freeze_blocks is {value!r}; give a number of blocks from 1 on, or all")
    return text if text == "all" else str(int(text))


def decay_of_half_life(half_life: float) -> float:
    """The decay by which what a step contributed has lost half its weight after `half_life` update steps."""
    return 0.5 ** (1.0 / half_life)
