"""Recipes and command lines: what they say reaches the dataclasses, what they get wrong is one clear line."""

import dataclasses
import json
import pickle

import pytest
import yaml
from helpers.arguments import parse
from helpers.paths import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from docs import arguments_table
from modeling_deit_distill import DeiTDistillConfig, DistillationTrainingArguments, InputError
from modeling_deit_distill.arguments import DataArguments, ModelArguments
from modeling_deit_distill.recipes import said_arguments, without_tokens


@pytest.fixture
def recipe(tmp_path):
    """`recipe(text)`: the path of a recipe on the digits that holds `text` besides."""

    def write(text: str = "", data: str = "dataset_name: digits\n") -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(data + text, encoding="utf-8")
        return str(path)

    return write


def refusal(*words) -> str:
    with pytest.raises(InputError) as caught:
        parse(*words)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("epochs", "'num_train_epochs', 'teacher_num_train_epochs' or 'view_epochs'"),
        ("lr", "'learning_rate', 'lr_scheduler_kwargs' or 'lr_scheduler_type'"),
        ("batch_size", "'per_device_train_batch_size', 'auto_find_batch_size' or 'per_device_eval_batch_size'"),
        ("temperature", "'distillation_temperature'"),
        ("hiden_size", "'hidden_size'"),
    ],
)
def test_an_unknown_argument_names_those_that_have_it_as_a_part_else_the_nearest(word, meant):
    assert refusal("--dataset_name", "digits", f"--{word}", "3").endswith(f"; did you mean {meant}?")


# --- recipe and command line ------------------------------------------------------------------------------------------


def test_every_field_of_the_configuration_is_an_argument():
    known = {field.name: field.default for field in dataclasses.fields(ModelArguments)}
    for name in DeiTDistillConfig.__annotations__:
        assert known[name] is None  # None: the configuration's own default holds


def test_fields_of_the_configuration_are_parsed_to_their_types():
    model, _, _ = parse(
        *("--dataset_name", "digits", "--hidden_size", "96", "--drop_path_rate", "0.2", "--layer_norm_eps", "1e-5"),
        *("--qkv_bias", "false", "--use_distillation_token", "true", "--fusion", "cls", "--hidden_act", "relu"),
    )
    assert (model.hidden_size, model.drop_path_rate, model.layer_norm_eps) == (96, 0.2, 1e-5)
    assert (model.qkv_bias, model.use_distillation_token) == (False, True)
    assert (model.fusion, model.hidden_act) == ("cls", "relu")


def test_the_command_line_overrides_the_recipe(recipe):
    path = recipe("seed: 3\nnum_train_epochs: 7\ncrop_pct: 0.9\nhidden_size: 96\n")
    model, data, args = parse(path, "--seed", "4", "--hidden_size", "192")
    assert (args.seed, model.hidden_size) == (4, 192)
    assert (args.num_train_epochs, data.crop_pct) == (7, 0.9)


def test_the_recipe_reads_as_the_command_line(recipe):
    text = "learning_rate: 5e-4\nseed: 3\nbf16: false\nrandom_crop_scale: [0.6, 1.0]\n"
    words = ["--learning_rate", "5e-4", "--seed", "3", "--bf16", "false", "--random_crop_scale", "0.6", "1.0"]
    from_recipe, from_words = parse(recipe(text)), parse("--dataset_name", "digits", *words)
    assert [dataclasses.asdict(part) for part in from_recipe] == [dataclasses.asdict(part) for part in from_words]


def test_dashes_and_equal_signs():
    for words in ("--hidden-size 96", "--hidden-size=96", "--hidden_size=96"):
        assert parse("--dataset-name=digits", *words.split())[0].hidden_size == 96, words


def test_values_of_a_recipe(recipe):
    for text, name, value in [
        ("learning_rate: 5e-4", "learning_rate", 5e-4),  # YAML 1.1 reads a string here
        ("weight_decay: 1E-2", "weight_decay", 1e-2),
        ("mixup_alpha: 0", "mixup_alpha", 0.0),
        ("random_crop_scale: [0.6, 1]", "random_crop_scale", [0.6, 1.0]),
        ("report_to: none", "report_to", []),
        ("report_to: [none]", "report_to", []),
        ("dry_run: true", "dry_run", True),
        ("overwrite_output_dir: yes", "overwrite_output_dir", True),
        ("logging_nan_inf_filter: false", "logging_nan_inf_filter", False),
        ("optim_args: null", "optim_args", None),
        ("weight_decay: null", "weight_decay", 0.05),
        ("lr_scheduler_kwargs: {num_cycles: 0.25}", "lr_scheduler_kwargs", {"num_cycles": 0.25}),
        ("output_dir: outputs/a run of mine", "output_dir", "outputs/a run of mine"),
        ("resume_from_checkpoint: true", "resume_from_checkpoint", "true"),
    ]:
        parsed = getattr(parse(recipe(text))[2], name)
        assert parsed == value, text
        assert type(parsed) is type(value), text


VALID = {
    "seed": st.integers(0, 2**31 - 1),
    "data_seed": st.integers(0, 2**31 - 1),
    "hidden_size": st.integers(1, 1000),
    "num_train_epochs": st.one_of(st.integers(1, 1000), st.floats(0.5, 1000)),
    "learning_rate": st.floats(1e-8, 1),
    "weight_decay": st.floats(0, 1),
    "mixup_alpha": st.floats(0, 2),
    "crop_pct": st.floats(0.1, 1),
    "random_crop_scale": st.lists(st.floats(0.01, 1), min_size=2, max_size=2).map(sorted),
    "bf16": st.booleans(),
    "qkv_bias": st.booleans(),
    "dry_run": st.booleans(),
    "fusion": st.sampled_from(["logit_mean", "softmax_mean", "cls", "distillation"]),
    "distillation_type": st.sampled_from(["none", "soft", "hard"]),
    "lr_scheduler_kwargs": st.fixed_dictionaries({"num_cycles": st.floats(0.1, 3)}),
    "output_dir": st.from_regex(r"[a-zé][a-zé0-9 _/.:#]{0,20}", fullmatch=True),
}


def as_words(given: dict) -> list[str]:
    """`{"seed": 3, "betas": [1, 2]}` as `--seed 3 --betas 1 2`."""
    words = []
    for name, value in given.items():
        values = value if isinstance(value, list) else [value]
        texts = [json.dumps(each) if isinstance(each, (dict, bool)) else str(each) for each in values]
        words += [f"--{name}", *texts]
    return words


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.fixed_dictionaries({}, optional=VALID))
def test_any_recipe_and_its_words_mean_the_same(tmp_path_factory, given):
    given = {"dataset_name": "digits", **given}
    path = tmp_path_factory.getbasetemp() / "any_recipe.yaml"
    path.write_text(yaml.safe_dump(given, allow_unicode=True), encoding="utf-8")
    from_recipe, from_words = parse(str(path)), parse(*as_words(given))
    assert [dataclasses.asdict(part) for part in from_recipe] == [dataclasses.asdict(part) for part in from_words]
    _, data, args = from_words
    assert all(getattr(args, name) == value for name, value in given.items() if name in ("seed", "random_crop_scale"))
    assert data.crop_pct == given.get("crop_pct")


def test_a_mapping_of_a_recipe(recipe):
    text = "train_teacher: true\nteacher_config_name: resnet\nteacher_config_overrides:\n  depths: [1, 1]\n  x: false\n"
    assert parse(recipe(text))[0].teacher_config_overrides == {"depths": [1, 1], "x": False}


def test_a_recipe_knows_the_home_folder(recipe, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert parse(recipe("output_dir: ~/runs"))[2].output_dir == "/home/someone/runs"


# --- what a recipe or a command line gets wrong -----------------------------------------------------------------------


def test_unknown_key_on_the_command_line():
    for words, key, near in [
        ("--hiden_size 96", "hiden_size", "hidden_size"),
        ("--hiden_size=96", "hiden_size", "hidden_size"),
        ("--hiden-size 96", "hiden_size", "hidden_size"),
        ("--num_train_epoch 3", "num_train_epoch", "num_train_epochs"),
        ("--hidden_siz 96", "hidden_siz", "hidden_size"),  # no abbreviations either
        ("--xyzzy 3", "xyzzy", "--help"),
    ]:
        message = refusal("--dataset_name", "digits", *words.split())
        assert repr(key) in message and near in message and "command line" in message, words


def test_unknown_key_in_the_recipe(recipe):
    for text, key, near in [
        ("distilation_type: hard", "distilation_type", "distillation_type"),
        ("patch-size: 8", "patch-size", "patch_size"),
        ("xyzzy: 1", "xyzzy", "--help"),
    ]:
        message = refusal(recipe(text))
        assert repr(key) in message and near in message and "recipe" in message, text


def test_a_recipe_that_is_none(tmp_path):
    path = tmp_path / "mine.yaml"
    for content, reason in [
        (None, "cannot be read"),
        (b"- dataset_name\n- digits\n", "key: value"),
        (b"digits", "key: value"),
        (b"", "key: value"),
        (b"seed: [1, 2\n", "not valid YAML"),
        (b"a: b: c\n", "not valid YAML"),
        (b"output_dir: caf\xe9\n", "UTF-8"),
    ]:
        if content is not None:
            path.write_bytes(content)
        message = refusal(str(path))
        assert str(path) in message and reason in message, content


def test_a_folder_is_no_recipe(tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    assert "folder.yaml' cannot be read" in refusal(str(tmp_path / "folder.yaml"))


def test_a_first_word_that_is_no_recipe():
    for words in (["digits", "--seed", "1"], ["recipe.json"]):
        assert repr(words[0]) in refusal(*words)


def test_stray_words(recipe):
    assert "'stray'" in refusal("--dataset_name", "digits", "stray")
    assert "'stray'" in refusal(recipe(), "--seed", "1", "stray")


def test_a_stray_word_after_a_recipe_that_ends_in_a_list(recipe):
    assert "'stray'" in refusal(recipe("label_names: [labels]"), "stray", "--seed", "1")


def test_a_bad_value_names_its_argument(recipe):
    for name, value in [
        ("hidden_size", "wide"),
        ("hidden_size", "96.5"),
        ("model_size", "huge"),
        ("fusion", "mean"),
        ("distillation_type", "medium"),
        ("bf16", "maybe"),
        ("weight_decay", "little"),
        ("random_crop_scale", "all"),
        ("eval_strategy", "sometimes"),
        ("on_bad_image", "ignore"),
        ("repeated_augmentation", "1.5"),
        ("lr_scheduler_type", "cosin"),
    ]:
        for words in ([recipe(f"{name}: {value}")], ["--dataset_name", "digits", f"--{name}", value]):
            message = refusal(*words)
            assert name in message and value in message, words


def test_an_argument_without_its_value():
    assert "hidden_size" in refusal("--dataset_name", "digits", "--hidden_size")


def test_a_list_where_one_value_belongs_names_the_argument(recipe):
    assert "image_size" in refusal(recipe("image_size: [224, 160]"))


def test_overrides_of_the_teacher_are_a_json_object():
    for value, reason in [("[1, 1]", "object"), ("{depths", "JSON")]:
        words = ["--train_teacher", "true", "--teacher_config_name", "resnet", "--teacher_config_overrides", value]
        message = refusal("--dataset_name", "digits", *words)
        assert "teacher_config_overrides" in message and reason in message and value in message


def test_arguments_that_contradict_each_other():
    for words, named in [
        ("--seed 1", ["--dataset_name", "--train_dir"]),
        ("--dataset_name digits --validation_dir photos", ["validation_dir", "train_dir"]),
        ("--dataset_name digits --teacher_config_name resnet", ["teacher_config_name", "--train_teacher true"]),
        ("--dataset_name digits --train_teacher true", ["train_teacher", "--teacher_name_or_path"]),
        (
            '--dataset_name digits --teacher_name_or_path x --teacher_config_overrides {"depths":[1]}',
            ["teacher_config_overrides", "--train_teacher true"],
        ),
    ]:
        message = refusal(*words.split())
        assert [name for name in named if name not in message] == [], words


# --- a source or a teacher on the command line ------------------------------------------------------------------------

TRUST = "trust_remote_code: true\nallow_weak_teacher: true\n"


@pytest.mark.parametrize(
    "words", ["--teacher_name_or_path me/convnet", "--teacher_config_name resnet --train_teacher true"]
)
def test_another_teacher_does_not_inherit_the_trust_in_the_recipe_s(recipe, words):
    path = recipe(f"teacher_name_or_path: me/first\n{TRUST}")
    assert parse(path)[0].trust_remote_code and parse(path)[0].allow_weak_teacher
    model, _, _ = parse(path, *words.split())
    assert (model.trust_remote_code, model.allow_weak_teacher) == (False, False)
    again = parse(path, *words.split(), "--trust_remote_code", "true", "--allow_weak_teacher", "true")[0]
    assert again.trust_remote_code and again.allow_weak_teacher


def test_another_student_does_not_inherit_the_trust_in_the_recipe_s(recipe):
    path = recipe(f"model_name_or_path: me/first\n{TRUST}")
    model, _, _ = parse(path, "--model_name_or_path", "me/student")
    assert (model.trust_remote_code, model.allow_weak_teacher) == (False, True)
    assert parse(path, "--seed", "3")[0].trust_remote_code


@pytest.mark.parametrize("epochs", ["0", "-1"])
def test_a_run_without_epochs_needs_steps(epochs):
    words = ["--dataset_name", "digits", "--num_train_epochs", epochs]
    assert f"num_train_epochs is {float(epochs)}" in refusal(*words)
    assert parse(*words, "--max_steps", "2")[2].max_steps == 2


# --- the recipes that come with the project ---------------------------------------------------------------------------


def test_said_arguments_are_the_recipe_and_the_command_line_over_it(recipe):
    path = recipe("validation_fraction: 0.2\nseed: 3\nrandom_crop_scale: [0.5, 1.0]\n")
    words = ["--train_dir", "photos", "--seed=4", "--hub_token", "hf_secret", "--push-to-hub", "--betas", "1", "2"]
    assert said_arguments([path, *words]) == {
        "random_crop_scale": [0.5, 1.0],
        "train_dir": "photos",  # replaces the recipe's data with all that it says of them
        "seed": 4,
        "push_to_hub": True,
        "betas": [1, 2],
    }


def test_a_shown_command_line_has_no_token():
    words = ["recipe.yaml", "--hub_token", "hf_secret", "--seed", "3", "--hub-token=hf_secret", "--bf16"]
    assert without_tokens(words) == ["recipe.yaml", "--seed", "3", "--bf16"]


def test_a_pickled_copy_has_no_token():
    _, _, args = parse("--dataset_name", "digits", "--hub_token", "hf_secret")
    assert args.hub_token == "hf_secret"
    assert b"hf_secret" not in pickle.dumps(args)


def test_a_native_push_needs_a_push():
    with pytest.raises(InputError, match="push_native is true but push_to_hub is not"):
        parse("--dataset_name", "digits", "--push_native", "true")
    words = ("--push_to_hub", "true", "--push_native", "true", "--hub_revision", "native")
    with pytest.raises(InputError, match="hub_revision is 'native'"):
        parse("--dataset_name", "digits", *words)


def test_replaced_arguments_fill_in_anew_what_was_not_given(tmp_path):
    args = DistillationTrainingArguments(str(tmp_path), per_device_train_batch_size=8, use_cpu=True)
    assert dataclasses.replace(args, seed=3).learning_rate == args.learning_rate
    assert dataclasses.replace(args, seed=3).seed == 3
    assert dataclasses.replace(args, per_device_train_batch_size=16).learning_rate == 2 * args.learning_rate
    assert dataclasses.replace(args, distillation_type="soft").distillation_alpha == 0.1
    assert dataclasses.replace(args, lr_scheduler_type="linear").min_learning_rate == 0.0
    given = dataclasses.replace(args, learning_rate=0.1)
    assert (given.learning_rate, given.base_learning_rate) == (0.1, None)
    twice = dataclasses.replace(dataclasses.replace(given, seed=3), per_device_train_batch_size=16)
    assert (twice.learning_rate, twice.seed) == (0.1, 3)
    with pytest.raises(InputError, match="learning_rate 0.1 and base_learning_rate 0.2 are both given"):
        dataclasses.replace(args, learning_rate=0.1, base_learning_rate=0.2)


def test_held_out_images_alone_are_a_source():
    data = DataArguments(validation_dir="other")
    assert data.is_held_out_alone and data.sources["train_dir"] == data.sources["validation_dir"] == "other"
    assert DataArguments(validation_csv="other.csv").sources["train_csv"] == "other.csv"
    assert not DataArguments(train_dir="photos", validation_dir="other").is_held_out_alone
    with pytest.raises(InputError, match="validation_dir and validation_csv are both given"):
        DataArguments(validation_dir="other", validation_csv="other.csv")
    with pytest.raises(InputError, match="validation_dir goes with train_dir"):
        DataArguments(dataset_name="digits", validation_dir="other")


# --- the table in the docs --------------------------------------------------------------------------------------------


def test_the_tables_of_arguments_are_those_of_the_fields():
    page = (ROOT / "docs" / "arguments.md").read_text(encoding="utf-8")
    written = page.partition(arguments_table.BEGIN)[2].partition(arguments_table.END)[0]
    assert written == arguments_table.tables(), "run `python docs/arguments_table.py`"


# --- workers ----------------------------------------------------------------------------------------------------------


def test_workers_are_automatic_where_nobody_says(recipe, monkeypatch):
    name = "modeling_deit_distill.arguments.training.workers_by_default"
    monkeypatch.setattr(name, lambda device_type: 0 if device_type == "cpu" else 6)
    args = parse(recipe())[2]
    assert (args.dataloader_num_workers, args.workers_are_automatic) == (0, True)
    for words, expected in [(["--dataloader_num_workers", "3"], 3), (["--dataloader_num_workers", "0"], 0)]:
        args = parse(recipe(), *words)[2]
        assert (args.dataloader_num_workers, args.workers_are_automatic) == (expected, False)
    assert parse(recipe("dataloader_num_workers: 10\n"))[2].dataloader_num_workers == 10
    monkeypatch.setattr(name, lambda device_type: 6)  # as if a GPU trained
    args = parse(recipe())[2]
    assert (args.dataloader_num_workers, args.workers_are_automatic) == (6, True)
    assert dataclasses.replace(args).dataloader_num_workers == 6 and dataclasses.replace(args).workers_are_automatic
    assert parse(recipe(), "--dataloader_num_workers", "0")[2].dataloader_num_workers == 0
    assert parse(recipe(), "--keep_decoded_images", "true")[2].dataloader_num_workers == 0
    assert parse(recipe(), "--dataloader_persistent_workers", "true")[2].dataloader_num_workers == 6
