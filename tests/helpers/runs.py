"""The arguments of a short run of `train_deit.py` on pictures of three colours."""

import json

import train_deit

COLOURS = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 40, 40)}
STUDENT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
RECIPE = {
    **{key: str(value) for key, value in STUDENT.items()},
    "image_size": "16",
    "patch_size": "4",
    "train_teacher": "true",
    "teacher_config_name": "resnet",
    "teacher_config_overrides": json.dumps(
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    ),
    "teacher_num_train_epochs": "4",
    "teacher_learning_rate": "1e-2",
    "num_train_epochs": "4",
    "learning_rate": "1e-2",
    "repeated_augmentation": "1",
    "per_device_train_batch_size": "8",
    "rand_augment_magnitude": "0",
    "random_erasing_prob": "0",
    "mixup_alpha": "0.2",
    "cutmix_alpha": "0",
    "logging_steps": "2",
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "report_to": "none",
    "use_cpu": "true",
    "disable_tqdm": "true",
    "bf16": "false",
}


# A teacher that exists says the classes of blank pictures; steps of 8 views, a checkpoint within each epoch.
SHORT_RUN = {
    **STUDENT,
    "drop_path_rate": 0.3,
    "image_size": 16,
    "patch_size": 4,
    "allow_weak_teacher": "true",
    "distillation_type": "hard",
    "per_device_train_batch_size": 8,
    "learning_rate": "1e-2",
    "save_strategy": "steps",
    "save_steps": 3,
    "eval_strategy": "no",
    "validation_fraction": 0.25,
    "report_to": "none",
    "use_cpu": "true",
    "disable_tqdm": "true",
    "bf16": "false",
}


def words_of(settings):
    """The command line; what is None is left out."""
    return [word for key, value in settings.items() for word in (f"--{key}", str(value)) if value is not None]


def arguments(**changes):
    return words_of({**RECIPE, **changes})


def without_teacher():
    """What names no teacher in the command line."""
    return {key: value for key, value in RECIPE.items() if "teacher" not in key}


def files(folder):
    """The content of each file in a folder, by its path."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def one_run(photos, folder, teacher, **changes):
    """A short run with a teacher that exists already."""
    settings = {"train_dir": photos, "output_dir": folder, "max_steps": 3, "eval_strategy": "no", **changes}
    if teacher is not None:
        settings |= {"teacher_name_or_path": teacher, "train_teacher": "false"}
    chosen = {key: value for key, value in RECIPE.items() if teacher is None or not key.startswith("teacher_")}
    train_deit.main(words_of({**chosen, **settings}))
    return json.loads((folder / "all_results.json").read_text())
