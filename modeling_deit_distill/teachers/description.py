"""The teacher's configuration, found and checked before any weights are read."""

from pathlib import Path

from transformers import PreTrainedConfig

from ..arguments import DistillationTrainingArguments, ModelArguments
from ..errors import InputError, one_line
from .classes import did_you_mean, read_label_map, teacher_classes
from .store import TeacherStore, is_store
from .teacher import check_depth, find_config


def describe_teacher(
    model_args: ModelArguments, args: DistillationTrainingArguments, class_names: list[str]
) -> PreTrainedConfig | None:
    """The configuration of the teacher that a run names; None without one.

    None also where a store is to answer in the place of a teacher that nobody named, or that is gone. One that is yet
    to be trained gets a head for `class_names`; otherwise these must be among its classes.

    Raises:
        InputError: no teacher and no store in its place, a teacher that cannot be found, an override it does not
            know, or classes that it has not.
    """
    label_map = read_label_map(model_args.teacher_label_map)  # a bad one is said even where it is not used
    named, directory = model_args.teacher_name_or_path or model_args.teacher_config_name, args.teacher_store
    if args.distillation_type == "none" or (not named and is_store(directory)):
        return None
    if not named and directory:
        raise InputError(
            f"teacher_store {directory!r} is no store yet, and no teacher is named to fill it; mend the path, or give "
            "--teacher_name_or_path"
        )
    if not named:
        raise InputError(
            "there is no teacher; give --teacher_name_or_path, or --train_teacher true with --teacher_config_name "
            "(e.g. resnet), or --distillation_type none"
        )
    try:
        config = find_config(model_args)
        if not model_args.train_teacher:
            teacher_classes(config, class_names, label_map)
            return config
        if model_args.teacher_config_overrides:
            config = _override(config, model_args.teacher_config_overrides)
    except InputError as error:
        path = model_args.teacher_name_or_path
        # Only a folder can be gone; a name on the Hub has one slash at most.
        if path is None or Path(path).exists() or path.count("/") == 1:
            raise
        if is_store(directory) and TeacherStore(directory).about.get("teacher") == named:
            return None
        raise InputError(f"{error}; bring it back, or name a copy of it (a full --teacher_store asks none)") from error
    config.id2label = dict(enumerate(class_names))
    config.label2id = {name: index for index, name in enumerate(class_names)}
    return config


def _override(config: PreTrainedConfig, overrides: dict) -> PreTrainedConfig:
    check_depth(overrides, "teacher_config_overrides")
    for key in overrides:
        if not hasattr(config, key):
            hint = did_you_mean(key, config.to_dict())
            raise InputError(f"teacher_config_overrides: {config.model_type} has no field {key!r}{hint}")
    # Built anew rather than changed in place, so that what the configuration derives from its fields follows them.
    derived = ("stage_names", "out_features", "out_indices", "_out_features", "_out_indices")
    fields = {key: value for key, value in config.to_diff_dict().items() if key not in derived}
    try:
        return type(config)(**{**fields, **overrides})
    except Exception as error:  # transformers' own checks of fields have several kinds
        raise InputError(f"teacher_config_overrides: {one_line(error)}") from error
