"""The configurations of the teachers, found and checked before any weights are read."""

from pathlib import Path

from transformers import PreTrainedConfig

from ..arguments import DistillationTrainingArguments, ModelArguments
from ..errors import InputError, one_line
from .classes import did_you_mean, read_label_map, teacher_classes
from .ensemble import naming_teacher
from .store import TeacherStore, is_store
from .teacher import check_depth, find_config


def describe_teachers(
    model_args: ModelArguments, args: DistillationTrainingArguments, class_names: list[str]
) -> list[PreTrainedConfig]:
    """The configuration of each teacher that a run names; none without one.

    None also where a store is to answer in the place of teachers that nobody named, or that are gone. One that is yet
    to be trained gets a head for `class_names`; otherwise these must be among its classes.

    Raises:
        InputError: no teacher and no store in its place, a teacher that cannot be found, an override it does not
            know, or classes that it has not.
    """
    for each in model_args.teachers:
        read_label_map(each.teacher_label_map)  # a bad one is said even where it is not used
    named, directory = model_args.teacher_name_or_path or model_args.teacher_config_name, args.teacher_store
    if args.distillation_type == "none" or (not named and is_store(directory)):
        return []
    if not named and directory:
        raise InputError(
            f"teacher_store {directory!r} is no store yet, and no teacher is named to fill it; correct the path, or "
            "give --teacher_name_or_path"
        )
    if not named:
        raise InputError(
            "there is no teacher; give --teacher_name_or_path, or --train_teacher true with --teacher_config_name "
            "(e.g. resnet), or --distillation_type none"
        )
    configs = []
    try:
        for place, each in enumerate(model_args.teachers):
            with naming_teacher(model_args, place):
                configs.append(_describe(each, class_names))
    except InputError as error:
        # Only a folder can be gone; a name on the Hub has one slash at most.
        if all(Path(path).exists() or path.count("/") == 1 for path in model_args.teacher_names):
            raise
        if is_store(directory) and TeacherStore(directory).about.get("teacher") == named:
            return []
        raise InputError(f"{error}; bring it back, or name a copy of it (a full --teacher_store asks none)") from error
    return configs


def _describe(model_args: ModelArguments, class_names: list[str]) -> PreTrainedConfig:
    config = find_config(model_args)
    if not model_args.train_teacher:
        teacher_classes(config, class_names, read_label_map(model_args.teacher_label_map))
        return config
    if model_args.teacher_config_overrides:
        config = _override(config, model_args.teacher_config_overrides)
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
