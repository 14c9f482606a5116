"""A recipe and the command line over it, read into the three dataclasses: `RECIPE.yaml --key value ...`."""

import difflib
import json
import os
from argparse import ArgumentDefaultsHelpFormatter
from pathlib import Path
from typing import NamedTuple

import yaml
from transformers import HfArgumentParser

from .arguments import DataArguments, DistillationTrainingArguments, ModelArguments
from .errors import InputError
from .fields import Choice, Range, declarations
from .launcher import program
from .plain_yaml import NULL, mapping_nodes, meaning, written


class Arguments(NamedTuple):
    """All arguments of a run."""

    model: ModelArguments
    data: DataArguments
    training: DistillationTrainingArguments


DECLARATIONS = {
    name: declared for kind in Arguments.__annotations__.values() for name, declared in declarations(kind).items()
}

# What arguments are called for short, here and elsewhere.
SHORT_NAMES = {
    "batch_size": "per_device_train_batch_size",
    "epochs": "num_train_epochs",
    "lr": "learning_rate",
    "model": "model_name_or_path",
    "output": "output_dir",
    "teacher": "teacher_name_or_path",
}

# Our recipes: within an installed package, or where they are in a checkout.
_INSTALLED = Path(__file__).with_name("recipe_files")
FOLDER = _INSTALLED if _INSTALLED.exists() else Path(__file__).parents[1] / "examples" / "recipes"


class _HelpFormatter(ArgumentDefaultsHelpFormatter):
    """Says no default of an argument whose default depends on others: its help says it in words."""

    def _get_help_string(self, action) -> str:
        return action.help if action.default is None else super()._get_help_string(action)


class _ArgumentParser(HfArgumentParser):
    """Adds ranges to the help, and reports a bad value as an `InputError` instead of a page of usage."""

    def add_argument(self, *names: str, **settings):
        """Add to the help which numbers are taken."""
        ranges = [each for each in DECLARATIONS.get(names[0].removeprefix("--"), ()) if isinstance(each, Range)]
        if ranges:
            settings["help"] = f"{settings['help']} ({ranges[0]})"
        return super().add_argument(*names, **settings)

    def error(self, message: str):
        """Raise instead of printing usage and leaving."""
        raise InputError(f"{message} (python {program()} --help lists all arguments)")


def parse_arguments(arguments: list[str]) -> Arguments:
    """Read `RECIPE.yaml --key value ...`: the recipe first, the command line over it.

    A recipe is a command line written down, one `key: value` a line, so both go through the same parser: `5e-4` in a
    recipe is a number because the argument is, and `no` is false only for an argument that is true or false. Lists
    become several values, mappings JSON; a null is left out. A data source, a teacher or a learning rate on the
    command line replaces the recipe's, with all that it says of it.

    Raises:
        InputError: an unknown key (with the nearest known one), a bad value, a recipe that cannot be read.
    """
    parser = _ArgumentParser(
        Arguments.__annotations__.values(),
        prog=program(),
        usage=f"python {program()} [RECIPE.yaml] [--key value ...]",
        epilog=f"On several GPUs or machines: accelerate launch --quiet {program()} [RECIPE.yaml] [--key value ...]",
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
    )
    known = {option.lstrip("-").replace("-", "_") for option in parser._option_string_actions}
    recipe, command_line = _split_recipe(arguments)
    if command_line and not command_line[0].startswith("-"):
        raise InputError(f"unexpected {command_line[0]!r}; arguments are written --key value, after the recipe")
    given = _names(command_line)
    _check_keys(recipe, known, "the recipe")
    _check_keys(given, known, "the command line")
    for key, value in recipe.items():
        if isinstance(value, list) and len(value) != 1 and parser._option_string_actions[f"--{key}"].nargs != "+":
            raise InputError(f"{key} takes one value, not the list {value} of the recipe")
        if isinstance(value, list) and any(word.startswith("--") for word in value):
            raise InputError(f"{key} has a value that begins with dashes, as arguments do: {value}")
    recipe = _not_replaced(recipe, given)
    try:
        *parsed, rest = parser.parse_args_into_dataclasses(
            _as_command_line(recipe) + command_line, return_remaining_strings=True, look_for_args_file=False
        )
    except InputError:
        raise
    except ValueError as error:  # transformers' own checks
        raise InputError(" ".join(str(error).split())) from error
    if rest:
        raise InputError(f"unexpected {' '.join(rest)!r}; arguments are written --key value, after the recipe")
    return Arguments(*parsed)


def said_arguments(arguments: list[str]) -> dict[str, object]:
    """What the user said, by name: the recipe's lines and the command line over them, tokens left out.

    Args:
        arguments: as for [`parse_arguments`], which has accepted them.
    """
    recipe, command_line = _split_recipe(arguments)
    said, words, key = _not_replaced(recipe, _names(command_line)), {}, None
    for name, value in said.items():
        if isinstance(value, list):
            said[name] = [_as_in_a_recipe(word) for word in value]
        elif isinstance(value, str):
            said[name] = _as_in_a_recipe(value)
    for word in command_line:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            key = name.replace("-", "_")
            said[key] = _as_in_a_recipe(value) if equals else True
        else:
            words[key] = [*words.get(key, []), _as_in_a_recipe(word)]
            said[key] = words[key] if len(words[key]) > 1 else words[key][0]
    said.pop("hub_token", None)
    return said


def _as_in_a_recipe(word: str) -> object:
    """A number or a truth value if YAML writes it as `word`, else the word: `010` would come back as 10."""
    try:
        value = json.loads(word)
    except ValueError:
        return word
    is_plain = isinstance(value, (bool, int, float)) and yaml.safe_dump(value).split()[0] == word
    return value if is_plain else word


def without_tokens(arguments: list[str]) -> list[str]:
    """A command line as it may be shown: what follows `--hub_token` left out."""
    return without_arguments(arguments, {"hub_token"})


def without_arguments(arguments: list[str], names: set[str]) -> list[str]:
    """A command line without some arguments, of which the values go too."""
    kept, is_dropped = [], False
    for word in arguments:
        if word.startswith("--"):
            is_dropped = not _names([word]).isdisjoint(names)
        if not is_dropped:
            kept.append(word)
    return kept


def _names(command_line: list[str]) -> set[str]:
    return {word[2:].split("=")[0].replace("-", "_") for word in command_line if word.startswith("--")}


def _not_replaced(recipe: dict, given: set[str]) -> dict:
    """The recipe without the groups of which the command line makes a choice."""
    replaced = {each.group for name in given for each in DECLARATIONS.get(name, ()) if isinstance(each, Choice)}
    return {name: value for name, value in recipe.items() if replaced.isdisjoint(DECLARATIONS.get(name, ()))}


def _split_recipe(arguments: list[str]) -> tuple[dict, list[str]]:
    if not arguments or arguments[0].startswith("-"):
        return {}, arguments
    path = Path(arguments[0])
    if path.suffix not in (".yaml", ".yml"):
        raise InputError(f"recipe {str(path)!r} is not a .yaml file; options start with --")
    try:
        text = shipped(path).read_text(encoding="utf-8-sig")
        values = {key: _value(key, node) for key, node in mapping_nodes(text).items()}
    except UnicodeDecodeError as error:
        raise InputError(f"recipe {str(path)!r} is not UTF-8 text: {error}") from error
    except OSError as error:
        raise InputError(f"recipe {str(path)!r} cannot be read: {error.strerror}; {_ours()}") from error
    except yaml.YAMLError as error:
        raise InputError(f"recipe {str(path)!r} is not valid YAML: {' '.join(str(error).split())}") from error
    except TypeError as error:
        raise InputError(f"recipe {str(path)!r} must be a list of 'key: value' lines") from error
    return {key: value for key, value in values.items() if value is not None}, arguments[1:]


def shipped(path: Path) -> Path:
    """A recipe's file: the path where it is one, else that of our recipe of this name, if there is one.

    Args:
        path: as given; one of ours is called by its name, `digits.yaml` or `examples/recipes/digits.yaml`.
    """
    ours = FOLDER / path.name
    is_named = path.parent in (Path(), Path("examples/recipes"))
    return ours if is_named and not path.exists() and ours.exists() else path


def _ours() -> str:
    return f"ours are {', '.join(sorted(path.name for path in FOLDER.glob('*.yaml')))}"


def _value(key: str, node: yaml.Node) -> str | list[str] | dict | None:
    """What a recipe gives an argument: text as it is written, a list of texts, or a mapping; None for a null.

    Raises:
        InputError: nothing is given.
    """
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
    # `~` is null in YAML and a folder to most people; null is clear.
    if not nodes or any(written(each) in ("", "~") and each.style is None for each in nodes):
        raise InputError(f"{key} has no value in the recipe; give one, write null for the default, or drop the line")
    if isinstance(node, yaml.MappingNode):
        return meaning(node)
    if isinstance(node, yaml.SequenceNode):
        return [written(each) for each in nodes]
    return None if node.tag == NULL else node.value


def _check_keys(keys, known: set[str], where: str):
    for key in keys:
        if key not in known:
            *near, last = [repr(name) for name in _near(key, known)] or [None]
            meant = f"{', '.join(near)} or {last}" if near else last
            hint = f"did you mean {meant}?" if last else f"python {program()} --help lists all arguments"
            raise InputError(f"unknown argument {key!r} in {where}; {hint}")


def _near(key: str, known: set[str]) -> list[str]:
    """What an unknown argument may mean: up to three that have it as a part, else the most similar one."""
    usual = [SHORT_NAMES[key]] if key in SHORT_NAMES else []
    having = sorted(name for name in known if f"_{key}_" in f"_{name}_")
    found = list(dict.fromkeys(usual + having))[:3]
    return found or difflib.get_close_matches(key, known, n=1)


def _as_command_line(recipe: dict) -> list[str]:
    words = []
    for key, value in recipe.items():
        if isinstance(value, list):
            words += [f"--{key}", *map(os.path.expanduser, value)]
        else:
            # One word, since a value may begin with a dash.
            words.append(f"--{key}={json.dumps(value) if isinstance(value, dict) else os.path.expanduser(value)}")
    return words
