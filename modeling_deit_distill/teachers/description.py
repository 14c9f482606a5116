"""The teacher's configuration, found and checked before any weights are read."""

import difflib
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from ..errors import InputError, one_line
from .classes import match_classes

logger = logging.get_logger(__name__)


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
    config = find_config(name_or_path, config_name, trust_remote_code)
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


def find_config(name_or_path: str | None, config_name: str | None, trust_remote_code: bool) -> PreTrainedConfig:
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
