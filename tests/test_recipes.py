"""The defaults of the arguments, and the recipes that come with the project: the paper's numbers."""

import re
from pathlib import Path

import pytest
from helpers.arguments import IMAGENET_RECIPES, RECIPE_FOLDER, RECIPES, parse, training

from modeling_deit_distill import InputError, supported
from modeling_deit_distill.arguments import training as training_arguments
from modeling_deit_distill.data.evaluation import DEFAULT_CROP_PCT

# --- defaults ---------------------------------------------------------------------------------------------------------


def test_defaults_are_the_paper_s():
    args = training()
    assert args.distillation_type == "hard"
    assert args.distillation_temperature == 3.0
    assert (args.lr_scheduler_type, args.weight_decay, args.label_smoothing_factor) == ("cosine", 0.05, 0.1)
    assert args.max_grad_norm == 0.0
    assert args.base_learning_rate == 5e-4
    assert (args.mixup_alpha, args.cutmix_alpha, args.random_erasing_prob) == (0.8, 1.0, 0.25)
    assert (args.rand_augment_magnitude, args.horizontal_flip_prob) == (9.0, 0.5)
    assert args.random_crop_scale == [0.08, 1.0]
    assert args.repeated_augmentation == 3


def test_a_bad_image_is_a_warning_up_to_one_per_cent():
    args = training()
    assert (args.on_bad_image, args.max_bad_image_fraction) == ("warn", 0.01)
    assert training("--on_bad_image", "error").on_bad_image == "error"


def test_the_weight_of_the_teacher_s_term():
    for kind, alpha in [("hard", 0.5), ("soft", 0.1), ("none", 0.0)]:
        assert training("--distillation_type", kind).distillation_alpha == alpha
        assert training("--distillation_type", kind, "--distillation_alpha", "0.7").distillation_alpha == 0.7


def test_views_have_the_seed_of_the_data_if_there_is_one():
    assert training("--seed", "3").views_seed == 3
    assert training("--seed", "3", "--data_seed", "5").views_seed == 5
    assert training("--seed", "3", "--data_seed", "0").views_seed == 0


def test_learning_rate():
    for words, rate in [
        # base · batch per device · accumulation / 512, on one process
        ("--per_device_train_batch_size 512", 5e-4),
        ("--per_device_train_batch_size 128 --gradient_accumulation_steps 8", 1e-3),
        ("--base_learning_rate 1e-3 --per_device_train_batch_size 64 --gradient_accumulation_steps 4", 5e-4),
        ("--base_learning_rate 1e-3 --per_device_train_batch_size 32", 6.25e-5),
        ("--learning_rate 3e-4 --per_device_train_batch_size 32 --gradient_accumulation_steps 8", 3e-4),
        ("--base_learning_rate 0", 0.0),
    ]:
        assert training(*words.split()).learning_rate == pytest.approx(rate, rel=1e-12), words


def test_a_learning_rate_taken_as_it_is_has_no_base():
    assert training("--learning_rate", "3e-4").base_learning_rate is None


def test_effective_batch_size():
    args = training("--per_device_train_batch_size", "12", "--gradient_accumulation_steps", "5")
    assert args.effective_batch_size == 60


@pytest.mark.parametrize(("installed", "report_to"), [(True, ["tensorboard"]), (False, [])])
def test_tensorboard_if_installed(monkeypatch, installed, report_to):
    monkeypatch.setattr(training_arguments, "is_tensorboard_available", lambda: installed)
    monkeypatch.setattr(supported, "get_available_reporting_integrations", lambda: ["tensorboard"] * installed)
    assert training().report_to == report_to
    assert training("--report_to", "none").report_to == []


# --- the recipes that come with the project ---------------------------------------------------------------------------


def header_of(path: Path) -> str:
    return path.read_text(encoding="utf-8").split("\n\n")[0]


def test_there_are_recipes():
    names = {f"imagenet_deit_{size}{kind}" for size in ("tiny", "small", "base") for kind in ("", "_distilled_hard")}
    assert {path.stem for path in RECIPES} >= {"digits", *names}


def test_one_of_ours_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("digits.yaml", "examples/recipes/digits.yaml"):
        assert parse(name)[1].dataset_name == "digits"
    Path("digits.yaml").write_text("dataset_name: mine\n")
    assert parse("digits.yaml")[1].dataset_name == "mine"  # a file that is there comes first
    for name in ("other.yaml", "here/digits.yaml"):
        with pytest.raises(
            InputError, match=f"'{name}' cannot be read: No such file .*; ours are digits.yaml, finetune"
        ):
            parse(name)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_parses_and_opens_with_its_own_command(path):
    assert Path(parse(str(path))[2].output_dir).name == path.stem  # a folder of its own
    header = header_of(path)
    assert all(line.startswith("#") for line in header.splitlines())
    (command,) = re.findall(r"^# Command: +accelerate launch (.+)$", header, re.MULTILINE)
    launcher, _, rest = command.partition(" train_deit.py ")
    recipe, *words = rest.split()
    assert recipe == f"examples/recipes/{path.name}"
    assert launcher in ("--quiet", "--config_file examples/accelerate/eight_gpus.yaml")
    parse(str(path), *words)
    assert all(f"# {part}: " in header for part in ("Source", "Hardware", "Time", "Expected"))
    said = header.partition("# Expected: ")[2] + header.partition("# Time: ")[2]
    assert any(words in said for words in ("measured", "paper", "your images"))  # whose figures they are


@pytest.mark.parametrize("path", IMAGENET_RECIPES, ids=lambda path: path.stem)
def test_imagenet_recipes_are_table_9(path):
    model, data, args = parse(str(path), "--gradient_accumulation_steps", "8")
    assert "# Expected: " in header_of(path)
    assert data.dataset_name == "ILSVRC/imagenet-1k"
    assert (args.effective_batch_size, args.base_learning_rate) == (1024, 5e-4)
    assert args.learning_rate == pytest.approx(1e-3)
    assert (args.num_train_epochs, args.warmup_epochs, args.lr_scheduler_type) == (300, 5, "cosine")
    assert (args.weight_decay, args.max_grad_norm, args.label_smoothing_factor) == (0.05, 0.0, 0.1)
    assert (args.mixup_alpha, args.cutmix_alpha, args.random_erasing_prob) == (0.8, 1.0, 0.25)
    assert (args.rand_augment_magnitude, args.horizontal_flip_prob) == (9.0, 0.5)
    assert args.random_crop_scale == [0.08, 1.0]
    assert (args.repeated_augmentation, args.on_bad_image) == (3, "warn")
    assert (model.drop_path_rate, data.crop_pct or DEFAULT_CROP_PCT) == (0.1, 0.875)


@pytest.mark.parametrize("path", IMAGENET_RECIPES, ids=lambda path: path.stem)
def test_imagenet_recipes_are_what_their_names_say(path):
    model, _, args = parse(str(path))
    assert f"imagenet_deit_{model.model_size}" == path.stem.removesuffix("_distilled_hard")
    distilled = path.stem.endswith("_distilled_hard")
    assert args.distillation_type == ("hard" if distilled else "none")
    assert (model.teacher_name_or_path is not None) == distilled
    assert not model.train_teacher


def test_the_digits_recipe():
    model, data, args = parse(str(next(path for path in RECIPES if path.stem == "digits")))
    assert data.dataset_name == "digits"
    assert model.train_teacher and model.teacher_config_overrides["depths"] == [1, 1, 1]
    assert args.distillation_type == "hard"
    assert args.horizontal_flip_prob == 0.0 and args.cutmix_alpha == 0.0
    assert model.patch_size % 2 == 0 and not args.bf16


def test_fine_tuning_at_384_keeps_the_training_and_takes_the_teacher_along():
    model, _, args = parse(str(RECIPE_FOLDER / "finetune_384.yaml"), "--gradient_accumulation_steps", "32")
    assert (args.effective_batch_size, args.learning_rate) == (512, 5e-6)
    assert (args.lr_scheduler_type, args.weight_decay, args.num_train_epochs) == ("constant_with_warmup", 1e-8, 30)
    assert (model.image_size, model.teacher_image_size, model.drop_path_rate) == (384, 384, 0.1)
    assert (args.random_erasing_prob, args.rand_augment_magnitude, args.repeated_augmentation) == (0.25, 9.0, 3)
    assert args.distillation_type == "hard"


def test_transfer_is_sgd_without_erasing_and_stochastic_depth():
    model, _, args = parse(str(RECIPE_FOLDER / "transfer_cifar10.yaml"), "--gradient_accumulation_steps", "8")
    assert (args.effective_batch_size, args.learning_rate, args.weight_decay) == (768, 0.01, 1e-4)
    assert (args.optim, args.optim_args) == ("sgd", "momentum=0.9,nesterov=true")
    assert (args.num_train_epochs, args.random_erasing_prob, model.drop_path_rate) == (1000, 0.0, 0.0)
