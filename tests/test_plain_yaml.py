"""What stands in a recipe is what is meant: words as they are written, and nothing guessed from an empty line."""

import dataclasses
import json
import os
import re

import pytest
import yaml
from helpers.arguments import RECIPES, parse
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modeling_deit_distill import InputError
from modeling_deit_distill.plain_yaml import mapping_nodes, meaning
from modeling_deit_distill.recipes import said_arguments

# What YAML 1.1 reads as something else.
WORDS = ["no", "yes", "on", "off", "y", "2024-01-01", "1e5", "010", "1:30", "0x1F", "1_000", ".5", "=", "None", "NA"]
TEXTS = ("train_split", "validation_split", "image_column", "label_column", "dataset_config_name")


@pytest.fixture
def recipe(tmp_path):
    """`recipe(text)`: the path of a recipe on the digits that holds `text` besides."""

    def write(text: str) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(f"dataset_name: digits\n{text}\n", encoding="utf-8")
        return str(path)

    return write


def as_dictionaries(arguments) -> list[dict]:
    return [dataclasses.asdict(part) for part in arguments]


@pytest.mark.parametrize("word", [*WORDS, "true", "False", "nulls", "-x", "--seed"])
def test_an_argument_of_text_takes_the_word_that_is_written(recipe, word):
    path = recipe(f"train_split: {word}")
    assert parse(path)[1].train_split == word
    assert as_dictionaries(parse(path)) == as_dictionaries(parse("--dataset_name=digits", f"--train_split={word}"))
    # As the record keeps it, and the card shows it.
    assert parse(recipe(yaml.safe_dump({"train_split": said_arguments([path])["train_split"]})))[1].train_split == word


def test_words_of_a_list_are_as_they_are_written(recipe):
    words = ["no", "010", "2024-01-01", "1e5"]
    with pytest.raises(InputError, match=re.escape(f"label_names is {words}")):
        parse(recipe("label_names: [no, 010, 2024-01-01, 1e5]"))


def test_arguments_that_are_true_or_false_take_the_usual_words(recipe):
    for word, value in [("true", True), ("yes", True), ("True", True), ("no", False), ("false", False), ("0", False)]:
        assert parse(recipe(f"push_native: false\ndry_run: {word}"))[2].dry_run is value, word
    with pytest.raises(InputError, match="dry_run.*got on but expected"):
        parse(recipe("dry_run: on"))


def test_numbers_are_those_that_are_written(recipe):
    assert parse(recipe("seed: 010"))[2].seed == 10  # 8 in YAML 1.1
    assert parse(recipe("learning_rate: 1e-5"))[2].learning_rate == 1e-5
    with pytest.raises(InputError, match="seed: invalid int value: '1:30'"):  # 90 in YAML 1.1
        parse(recipe("seed: 1:30"))


def test_a_mapping_has_numbers_truth_values_and_words(recipe):
    text = "{a: 1e-5, b: 010, c: no, d: 2024-01-01, e: false, f: null, g: 0x1f, h: '1', i: [1.5]}"
    text = f"train_teacher: true\nteacher_config_name: resnet\nteacher_config_overrides: {text}"
    overrides = parse(recipe(text))[0].teacher_config_overrides
    wanted = {"a": 1e-5, "b": 10, "c": "no", "d": "2024-01-01", "e": False, "f": None, "g": 31, "h": "1", "i": [1.5]}
    assert overrides == wanted


@pytest.mark.parametrize("text", ["train_split:", "train_split: ~", "seed: []", "label_names: []", "label_names: [~]"])
def test_an_empty_value_is_refused_by_its_key(recipe, text):
    with pytest.raises(InputError, match=f"^{text.split(':')[0]} has no value in the recipe; give one, write null"):
        parse(recipe(text))


def test_null_leaves_an_argument_out(recipe):
    assert parse(recipe("train_split: null"))[1].train_split == "train"
    assert parse(recipe("train_split: 'null'"))[1].train_split == "null"


def test_what_is_no_plain_recipe_is_refused(recipe):
    for text, words in [
        ("seed: 1\nseed: 2", "not valid YAML.*the key 'seed' is there twice"),
        ("lr_scheduler_kwargs: {a: !!timestamp 2024-01-01}", "not valid YAML.*timestamp"),
        ("label_names: [a, '--seed', '5']", "label_names has a value that begins with dashes"),
    ]:
        with pytest.raises(InputError, match=words):
            parse(recipe(text))


@settings(max_examples=60, deadline=None)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(TEXTS, st.text(max_size=20))))
@example({"train_split": "no", "label_column": "1:30", "image_column": "-1e-3"})
def test_any_text_of_a_recipe_is_that_of_the_command_line(tmp_path_factory, given):
    path = tmp_path_factory.getbasetemp() / "any_text.yaml"
    path.write_text(yaml.safe_dump({"dataset_name": "digits", **given}), encoding="utf-8")
    # A shell expands `~`, which a recipe cannot ask it for.
    words = [f"--{name}={os.path.expanduser(value)}" for name, value in given.items()]
    from_recipe = parse(str(path))
    assert as_dictionaries(from_recipe) == as_dictionaries(parse("--dataset_name", "digits", *words))
    assert all(getattr(from_recipe[1], name) == os.path.expanduser(value) for name, value in given.items())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_our_recipes_mean_the_same_to_other_readers_of_yaml(path):
    words = []
    for name, value in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *(json.dumps(each) if isinstance(each, (dict, bool)) else str(each) for each in values)]
    assert as_dictionaries(parse(str(path))) == as_dictionaries(parse(*words))


CHARACTERS = st.text(st.characters(max_codepoint=0xFFFF))  # JSON writes others as two halves, which YAML does not join
KEYS = st.text(
    st.characters(max_codepoint=0xFFFF), max_size=150
)  # YAML's keys have 1,024 characters, six for an escape
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | CHARACTERS,
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(KEYS, JSON, max_size=3))
def test_json_means_the_same_as_yaml(value):
    assert {key: meaning(node) for key, node in mapping_nodes(json.dumps(value)).items()} == value
