"""What the types of the arguments declare: ranges, choices that exclude each other, and what replaces a recipe's."""

import math
import re
from collections import defaultdict
from dataclasses import dataclass, fields
from typing import Annotated

import numpy as np
import pytest
import yaml
from transformers import HfArgumentParser

from modeling_deit_distill import InputError
from modeling_deit_distill.arguments import DataArguments, DistillationTrainingArguments, ModelArguments
from modeling_deit_distill.fields import Choice, OneOf, Range, declarations
from modeling_deit_distill.recipes import parse_arguments, said_arguments
from modeling_deit_distill.supported import REFUSED

KINDS = (ModelArguments, DataArguments, DistillationTrainingArguments)
NEEDED = {
    ModelArguments: {},
    DataArguments: {"dataset_name": "digits"},
    DistillationTrainingArguments: {
        **{"use_cpu": True, "mixup_alpha": 0, "cutmix_alpha": 0},
        **{"dataloader_num_workers": 1, "max_steps": 1},
    },
}

# Written down a second time, so that none is lost or changed unseen.
RANGES = {
    "at least 0": {
        *("learning_rate", "base_learning_rate", "warmup_learning_rate", "min_learning_rate", "teacher_learning_rate"),
        *("mixup_alpha", "cutmix_alpha", "warmup_epochs", "warmup_steps", "max_grad_norm", "weight_decay"),
        *("data_seed", "eval_delay", "view_epochs"),
    },
    "at least -1 and at most 1000000": {"num_train_epochs"},
    "at least 0 and at most 1024": {"dataloader_num_workers"},
    "at least 0 and below 4294967296": {"seed"},
    "at least -1": {"max_steps", "local_rank"},
    "at least 1": {
        *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
        *("eval_accumulation_steps", "dataloader_prefetch_factor", "max_nonfinite_steps", "repeated_augmentation"),
        *("teacher_store_top_k", "teacher_batch_size", "num_channels", "save_total_limit", "torch_empty_cache_steps"),
        *("ddp_bucket_cap_mb", "ddp_timeout", "early_stopping_patience"),
    },
    "at least 1 and at most 1000": {"num_hidden_layers"},
    "at least 1 and at most 65536": {
        *("hidden_size", "num_attention_heads", "intermediate_size", "image_size", "patch_size", "teacher_image_size"),
    },
    "above 0": {"hub_max_wait", "logging_steps", "eval_steps", "save_steps"},
    "above 0 and at most 1000000": {"teacher_num_train_epochs"},
    "at least 0.01 and at most 1000": {"distillation_temperature"},
    "at least 1e-30": {"adam_epsilon"},
    "at least 0.1 and at most 1": {"crop_pct"},
    "above 0 and at most 1": {"layer_decay"},
    "above 0 and below 1": {"validation_fraction", "ema_decay"},
    "at least 0 and below 1": {
        *("label_smoothing_factor", "adam_beta1", "adam_beta2", "layer_norm_eps", "initializer_range"),
        *("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"),
    },
    "at least 0 and at most 1": {
        *("distillation_alpha", "horizontal_flip_prob", "random_erasing_prob", "max_bad_image_fraction"),
    },
    "at least 0 and at most 10": {"rand_augment_magnitude"},
    "at least 0.001 and at most 1e+16": {"ema_half_life"},
}
# Choices: what else of a recipe goes where the command line makes one of them.
GROUPS = {
    ("dataset_name", "train_dir", "train_csv"): {
        *(
            "dataset_config_name",
            "validation_dir",
            "validation_csv",
            "train_split",
            "validation_split",
            "validation_fraction",
        ),
        *("image_column", "label_column", "streaming"),
    },
    ("teacher_name_or_path", "teacher_config_name"): {
        *("teacher_config_overrides", "train_teacher", "teacher_num_train_epochs", "teacher_learning_rate"),
        *("teacher_image_size", "teacher_label_map", "allow_weak_teacher", "trust_remote_code"),
    },
    ("model_name_or_path", "model_size"): {
        *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    },
    ("model_name_or_path",): {"trust_remote_code"},
    ("learning_rate", "base_learning_rate"): set(),
    ("warmup_epochs", "warmup_steps"): set(),
    ("ema_decay", "ema_half_life"): set(),
}
NEEDED_BY = {
    "early_stopping_patience": {
        "load_best_model_at_end": True,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
    }
}
MAY_BE_TOGETHER = {"warmup_epochs", "warmup_steps"}


def declared(kind_of_declaration: type) -> list[tuple]:
    """(dataclass, field, declaration) of one kind."""
    return [
        (kind, name, each)
        for kind in KINDS
        for name, all_of_it in declarations(kind).items()
        for each in all_of_it
        if isinstance(each, kind_of_declaration)
    ]


def around(limits: Range) -> tuple[list[float], list[float]]:
    """The numbers next to each limit that lie inside, and those that lie outside."""
    inside, outside = [], []
    for name, limit in limits.limits.items():
        inward = math.inf if name in ("at_least", "above") else -math.inf
        belongs = name in ("at_least", "at_most")
        inside.append(limit if belongs else math.nextafter(limit, inward))
        outside.append(math.nextafter(limit, -inward) if belongs else limit)
    return inside, outside


def test_the_ranges_are_these():
    found = defaultdict(set)
    for _, name, limits in declared(Range):
        found[str(limits)].add(name)
    assert found == RANGES


def test_every_number_has_a_range():
    for kind in KINDS:
        for field in fields(kind):
            is_number = {"int", "float"} & set(re.findall(r"\w+", str(field.type))) and "list" not in str(field.type)
            has_range = any(isinstance(each, Range) for each in declarations(kind)[field.name])
            assert has_range or not is_number or field.name in REFUSED, (
                f"{field.name} takes numbers and declares no range"
            )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr_scheduler_kwargs": '{"min_lr_rate": NaN}'}, "lr_scheduler_kwargs: min_lr_rate is nan; give a finite"),
        ({"lr_scheduler_kwargs": {"min_lr": [0.1, math.inf]}}, "lr_scheduler_kwargs: min_lr is inf; give a finite"),
        ({"random_crop_scale": [0.1, math.nan]}, "random_crop_scale is nan; give a finite number"),
        ({"max_steps": 10**30}, "max_steps is 1000000000000000000000000000000; give a number of at most 18 digits"),
        ({"weight_decay": np.float32("inf")}, "weight_decay is inf; give a finite number"),
    ],
)
def test_numbers_within_values_are_finite_too(given, message):
    with pytest.raises(InputError, match=re.escape(message)):
        DistillationTrainingArguments(**{**NEEDED[DistillationTrainingArguments], **given})


@pytest.mark.parametrize("text", ['{"drop_path_rate": NaN}', '{"depths": [1, 1e400]}', '{"a": {"b": -Infinity}}'])
def test_numbers_of_the_teacher_s_overrides_are_finite(text):
    given = {"train_teacher": True, "teacher_config_name": "resnet", "teacher_config_overrides": text}
    with pytest.raises(InputError, match="^teacher_config_overrides: .*give a finite number$"):
        ModelArguments(**given)


@pytest.mark.parametrize(
    "line",
    [
        "mixup_alpha: .nan",
        "mixup_alpha: nan",
        "learning_rate: .inf",
        "lr_scheduler_kwargs: {min_lr: .nan}",
        "lr_scheduler_kwargs: {min_lr: 1e400}",
    ],
)
def test_numbers_of_a_recipe_are_finite(line, tmp_path):
    (tmp_path / "recipe.yaml").write_text(f"dataset_name: digits\nuse_cpu: true\n{line}\n")
    with pytest.raises(InputError, match=line.split(":")[0]):
        parse_arguments([str(tmp_path / "recipe.yaml")])


def test_every_range_refuses_what_lies_outside():
    for kind, name, limits in declared(Range):
        for value in around(limits)[1]:
            with pytest.raises(InputError) as caught:
                kind(**{**NEEDED[kind], name: value})
            assert str(caught.value) == f"{name} is {value}; it must be {limits}"
        for value in (math.nan, math.inf, -math.inf):
            with pytest.raises(InputError, match=f"^{name} is {value}; give a finite number$"):
                kind(**{**NEEDED[kind], name: value})
        assert math.nan not in limits


def test_a_library_refuses_other_words_as_the_command_line_does():
    found = {name for _, name, _ in declared(OneOf)}
    assert found == {"model_size", "fusion", "teacher_precision", "distillation_type", "on_bad_image"}
    for kind, name, words in declared(OneOf):
        for value in ("nonsense", "", [words[0]], *(() if None in words else (None,))):
            with pytest.raises(InputError) as caught:
                kind(**{**NEEDED[kind], name: value})
            assert str(caught.value) == f"{name} is {value!r}; it must be one of {', '.join(filter(None, words))}"


def test_every_range_takes_its_ends():
    for kind, name, limits in declared(Range):
        for value in around(limits)[0]:
            assert getattr(kind(**{**NEEDED[kind], **NEEDED_BY.get(name, {}), name: value}), name) == value
            if name == "ema_half_life":
                assert 0 < DistillationTrainingArguments(ema_half_life=value).weight_average_decay < 1


def test_choices_that_exclude_each_other_are_refused():
    kinds = {name: kind for kind, name, _ in declared(Choice)}
    values = defaultdict(lambda: "x", model_size="tiny", **dict.fromkeys(["ema_decay", "learning_rate"], 0.5))
    values |= {"ema_half_life": 10, "base_learning_rate": 1e-3}
    for choices in GROUPS:
        if len(choices) == 2 and choices[0] not in MAY_BE_TOGETHER:
            with pytest.raises(InputError) as caught:
                kinds[choices[0]](**{name: values[name] for name in choices})
            for name in choices:
                assert f"{name} {values[name]!r}" in str(caught.value)
            assert " are both given; keep " in str(caught.value)


def test_a_choice_on_the_command_line_replaces_the_recipe_s_group(tmp_path):
    path = tmp_path / "recipe.yaml"
    recipe = dict.fromkeys(
        ("seed", "crop_pct", *(name for group in GROUPS.items() for part in group for name in part)), 1
    )
    path.write_text(yaml.safe_dump(recipe))
    for name in recipe:
        groups = [{*choices, *details} for choices, details in GROUPS.items() if name in choices]
        left = {key: value for key, value in recipe.items() if key not in set().union(*groups)}
        for words in ([f"--{name}", "other"], [f"--{name.replace('_', '-')}=other"]):
            assert said_arguments([str(path), *words]) == {**left, name: "other"}, words


def test_transformers_own_parser_reads_the_arguments():
    words = ["--dataset_name", "digits", "--mixup_alpha", "0.4", "--model_size", "small", "--use_cpu", "true"]
    model, _, args = HfArgumentParser(KINDS).parse_args_into_dataclasses(words, look_for_args_file=False)
    assert (model.model_size, args.mixup_alpha) == ("small", 0.4)


def test_a_class_of_the_user_s_keeps_the_ranges():
    @dataclass
    class Mine(DistillationTrainingArguments):
        cutmix_alpha: Annotated[float, Range(at_most=0)] = 0.0

    for values in ({"mixup_alpha": -1}, {"seed": -1}, {"cutmix_alpha": 1}):
        with pytest.raises(InputError, match=f"{next(iter(values))} is "):
            Mine(**values)


def test_the_help_says_the_ranges(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Beta parameter of mixup; 0 is off. (at least 0) (default: 0.8)" in text
    assert text.count("(at least 1)") == len(RANGES["at least 1"])
    assert text.startswith("usage: python train_deit.py [RECIPE.yaml]")
    assert "On several GPUs or machines: accelerate launch --quiet train_deit.py" in text
    assert "(default: None)" not in text and "its width, depth and heads. Default: tiny. --hidden_size" in text
