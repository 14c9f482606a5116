"""Arguments of student and teacher."""

import json
from dataclasses import dataclass
from typing import Annotated, Literal

from transformers.hf_argparser import HfArg

from ..errors import InputError
from ..fields import Choice, check_fields, check_finite
from .types import REMOTE_CODE, STUDENT, TEACHER, Count, Depth, Epochs, NotNegative, Rate, Width


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
    hidden_size: Annotated[Width | None, STUDENT] = HfArg(default=None, help="Width of a token.")
    num_hidden_layers: Annotated[Depth | None, STUDENT] = HfArg(default=None, help="Number of transformer blocks.")
    num_attention_heads: Annotated[Width | None, STUDENT] = HfArg(default=None, help="Attention heads per block.")
    intermediate_size: Annotated[Width | None, STUDENT] = HfArg(default=None, help="Width of the MLP's hidden layer.")
    hidden_act: str | None = HfArg(default=None, help="Activation of the MLP.")
    hidden_dropout_prob: Rate | None = HfArg(default=None, help="Dropout of embeddings and branches.")
    attention_probs_dropout_prob: Rate | None = HfArg(default=None, help="Dropout of attention.")
    drop_path_rate: Rate | None = HfArg(default=None, help="Stochastic depth of the last block.")
    image_size: Width | None = HfArg(default=None, help="Side of the student's input in pixels.")
    patch_size: Width | None = HfArg(default=None, help="Side of a patch in pixels.")
    num_channels: Count | None = HfArg(default=None, help="Input channels; images are decoded as RGB.")
    qkv_bias: bool | None = HfArg(default=None, help="Bias on the query-key-value projection.")
    layer_norm_eps: Rate | None = HfArg(default=None, help="Epsilon of every LayerNorm.")
    initializer_range: Rate | None = HfArg(default=None, help="Deviation of the initialisation.")
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
    teacher_num_train_epochs: Annotated[Epochs, TEACHER] = HfArg(default=10.0, help="Epochs of the teacher's training.")
    teacher_learning_rate: Annotated[NotNegative, TEACHER] = HfArg(
        default=1e-3, help="Peak learning rate of the teacher."
    )
    teacher_image_size: Annotated[Width | None, TEACHER] = HfArg(
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


def _parse_json_object(name: str, text: str) -> dict:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{name} is not valid JSON ({error}): {text!r}; write e.g. '{{\"depths\": [1, 1]}}'"
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{name} must be a JSON object, not {text!r}")
    check_finite(name, value)
    return value
