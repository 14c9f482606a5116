"""Arguments of student and teacher."""

import json
import os
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from transformers.hf_argparser import HfArg

from ..errors import InputError
from ..fields import Choice, check_fields, check_finite
from ..report import counted
from .types import REMOTE_CODE, STUDENT, TEACHER, Count, Depth, Epochs, NotNegative, Rate, Width

# What is given to each of several teachers; of one value alone the field is that value, and not a list.
OF_EACH_TEACHER = ("teacher_name_or_path", "teacher_label_map", "teacher_image_size")
NO_MAP = "none"


@dataclass
class ModelArguments:
    """Student and teacher. Every field of `DeiTDistillConfig` is an argument of the same name; None keeps its default.

    Of several teachers, `teachers` has the arguments of each. One name, map or size is no list, however it was given.

    Raises:
        InputError: arguments that exclude or need each other, values outside their range, or overrides that are not a
            JSON object.
    """

    model_name_or_path: Annotated[str | None, Choice(STUDENT), Choice(REMOTE_CODE)] = HfArg(
        default=None,
        help="Start from a DeiT checkpoint: ours, transformers' or timm's (a folder or name), "
        "facebook's (a .pth file).",
    )
    model_size: Annotated[Literal["tiny", "small", "base"] | None, Choice(STUDENT)] = HfArg(
        default=None, help="Named size of a new student (DeiT-Ti, -S, -B): its width, depth and heads. Default: tiny."
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
        default=None, help="Two tokens and heads, or one. Default: two if there is a teacher."
    )
    fusion: Literal["logit_mean", "softmax_mean", "cls", "distillation"] | None = HfArg(
        default=None, help="How the two heads make one answer."
    )
    attn_implementation: str | None = HfArg(
        default=None, help="Attention kernel of the student: sdpa, eager, flash_attention_2, ..."
    )
    teacher_name_or_path: Annotated[list[str] | None, Choice(TEACHER)] = HfArg(
        default=None,
        help="The teacher: any image classifier that transformers can load. Of several, the mean probability teaches.",
    )
    teacher_config_name: Annotated[str | None, Choice(TEACHER)] = HfArg(
        default=None, help="Architecture of a teacher to train: a folder, a JSON file, a Hub name or a model_type."
    )
    teacher_config_overrides: Annotated[str | None, TEACHER] = HfArg(
        default=None, help="JSON object of fields that replace those of the teacher's configuration."
    )
    train_teacher: Annotated[bool, TEACHER] = HfArg(
        default=False, help="Train the teacher on the same data first. It is kept in <output_dir>/teacher."
    )
    teacher_num_train_epochs: Annotated[Epochs, TEACHER] = HfArg(default=10.0, help="Epochs of the teacher's training.")
    teacher_learning_rate: Annotated[NotNegative, TEACHER] = HfArg(
        default=1e-3, help="Peak learning rate of the teacher."
    )
    teacher_image_size: Annotated[list[Width] | None, TEACHER] = HfArg(
        default=None,
        help="Side at which the teacher looks at views, and a new one is trained. Default: that of its image "
        "processor, or the student's for a new one. Of several teachers one for all, or one each.",
    )
    teacher_precision: Literal["fp32", "bf16", "fp16"] | None = HfArg(
        default=None, help="The arithmetic of all teachers. Default: the store's, else the run's."
    )
    teacher_compile: bool = HfArg(default=False, help="Compile the teacher with torch.compile.")
    teacher_label_map: Annotated[list[str] | None, TEACHER] = HfArg(
        default=None,
        help="JSON or YAML file: dataset class to the teacher's class, where names are not enough. Of several teachers "
        "one each, `none` for a teacher that needs none.",
    )
    allow_weak_teacher: Annotated[bool, TEACHER] = HfArg(
        default=False, help="Continue with a teacher that is no better than chance on the validation images."
    )
    trust_remote_code: Annotated[bool, TEACHER, REMOTE_CODE] = HfArg(
        default=False, help="Run code that comes with the teacher's or the student's checkpoint."
    )

    def __post_init__(self):
        check_fields(self)
        for name in OF_EACH_TEACHER:
            given = getattr(self, name)
            if isinstance(given, (list, tuple)) and len(given) <= 1:
                setattr(self, name, given[0] if given else None)
        if self.teacher_label_map == NO_MAP:
            self.teacher_label_map = None
        self._check_several_teachers()
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

    @property
    def teachers(self) -> list["ModelArguments"]:
        """The arguments of each teacher as if it were the only one, in the order of their names."""
        number = len(self.teacher_names)
        if number < 2:
            return [self]
        given = {name: getattr(self, name) for name in OF_EACH_TEACHER}
        given = {
            name: list(each) if isinstance(each, (list, tuple)) else [each] * number for name, each in given.items()
        }
        return [replace(self, **dict(zip(given, values, strict=True))) for values in zip(*given.values(), strict=True)]

    @property
    def teacher_names(self) -> list[str]:
        """What `teacher_name_or_path` names, one or several; nothing where a new teacher is trained."""
        named = self.teacher_name_or_path
        return list(named) if isinstance(named, (list, tuple)) else [named] if named else []

    def _check_several_teachers(self):
        """Refuse what is not given to each of several teachers, and what several cannot do."""
        number = max(len(self.teacher_names), 1)
        if number > 1 and self.train_teacher:
            raise InputError(
                f"train_teacher trains one teacher, and teacher_name_or_path names {number}; train each in a run of "
                "its own, and name the folders `<output_dir>/teacher` of these without train_teacher"
            )
        for name in OF_EACH_TEACHER[1:]:
            given = getattr(self, name)
            many = len(given) if isinstance(given, (list, tuple)) else 1
            is_of_all = name == "teacher_image_size" or given is None
            if many != number and (many > 1 or number > 1 and not is_of_all):
                values = f"{name} has {counted(many, 'value')} for {counted(number, 'teacher')}"
                either = "one for all, or one each" if name == "teacher_image_size" else "one each, `none` for no map"
                raise InputError(f"{values}; give {either if number > 1 else 'one'}")
        seen = []
        for one in self.teachers if number > 1 else ():
            name = one.teacher_name_or_path
            path = os.path.realpath(name) if os.path.exists(name) else name  # a folder may be written in several ways
            if (asked := (path, one.teacher_label_map, one.teacher_image_size)) in seen:
                raise InputError(f"teacher_name_or_path names {name!r} twice; name each teacher once")
            seen.append(asked)


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
