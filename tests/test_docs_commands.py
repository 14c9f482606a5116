"""The commands in the docs: each is taken by the parser that would read it, and each option that is named exists."""

import argparse
import importlib
import re

import pytest
import torch.distributed.run
from accelerate.commands.launch import launch_command_parser
from helpers.arguments import parse
from helpers.docs import FILES, blocks, commands, name_of, text_of
from helpers.examples import load_example
from helpers.paths import ROOT

from modeling_deit_distill import InputError
from modeling_deit_distill.recipes import DECLARATIONS

RECIPE = str(ROOT / "examples" / "recipes" / "digits.yaml")
TRAINING = ("train_deit.py", "examples/show_augmentations.py")
MODULES = {
    "modeling_deit_distill.conversion": "modeling_deit_distill.conversion.__main__",
    "modeling_deit_distill.export": "modeling_deit_distill.export.__main__",
    "modeling_deit_distill.model_card": "modeling_deit_distill.publishing.card",
    "modeling_deit_distill.predict": "modeling_deit_distill.predict",
    "modeling_deit_distill.store_cli": "modeling_deit_distill.teachers.command_line",
}
OTHERS = (
    "cd",
    "docker",
    "hf",
    "lint-imports",
    "mkdocs",
    "npm",
    "pytest",
    "ruff",
    "sbatch",
    "twine",
)  # programs that are not ours
# Options of launchers and of other programs, which docs name in the text.
OPTIONS_OF_OTHERS = {
    *("config_file", "cpu", "machine_rank", "main_process_ip", "main_process_port", "num_cpu_threads_per_process"),
    *(
        "check",
        "directory",
        "include",
        "local-dir",
        "no-cache",
        "multi_gpu",
        "nodes",
        "nproc-per-node",
        "num_processes",
        "quiet",
        "shm-size",
        "signal",
    ),
    *("standalone", "strict"),
}
PLACEHOLDERS = {"key", "hub_"}


class Parsed(Exception):
    """The command line was taken."""


@pytest.fixture
def stops_after_parsing(monkeypatch):
    """Argparse ends a program once it has taken the command line."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, *args, **kwargs):
        parse_args(self, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.syspath_prepend(ROOT / "examples" / "benchmarks")  # whose scripts import each other


def take(words: list[str]):
    """Have a command's own parser read it."""
    program, rest = words[0], words[1:]
    if program.startswith("--"):
        parse(RECIPE, *words)
    elif words[:2] == ["accelerate", "launch"]:
        launched, _ = launch_command_parser().parse_known_args(words[2:])
        assert launched.config_file is None or (ROOT / launched.config_file).exists(), launched.config_file
        take_script(launched.training_script, launched.training_script_args)
    elif program == "torchrun":
        launched, _ = torch.distributed.run.get_args_parser().parse_known_args(rest)
        take_script(launched.training_script, launched.training_script_args)
    elif program == "python" and rest[0] == "-c":
        compile(rest[1], "<command>", "exec")
    elif program == "python" and rest[0] == "-m":
        take_module(rest[1], rest[2:])
    elif program == "python":
        take_script(rest[0], rest[1:])
    elif words[:2] == ["pip", "install"]:
        extras = {name for word in rest for name in re.findall(r"\.\[(\w+)\]", word)}
        assert all(f'"{extra}":' in (ROOT / "setup.py").read_text() for extra in extras), extras
    else:
        assert program in OTHERS, words


def take_script(script: str, words: list[str]):
    """A script of the repository."""
    assert (ROOT / script).exists(), script
    words = [RECIPE if word == "RECIPE.yaml" else word for word in words]
    if script in TRAINING:
        parse(*words)
    elif script == "examples/label_with_teacher.py":
        parse(*load_example("label_with_teacher").take_epochs(words)[1])
    elif script != "docs/arguments_table.py":
        with pytest.raises(Parsed):
            load_example(script.removeprefix("examples/").removesuffix(".py")).main(words)


def take_module(name: str, words: list[str]):
    """A module that is run."""
    if name in MODULES:
        with pytest.raises(Parsed):
            importlib.import_module(MODULES[name]).main(words)
    else:
        assert name == "http.server", name


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_command_is_taken_by_its_parser(path, stops_after_parsing):
    refused = {}
    for words in commands(path):
        try:
            take(words)
        except (InputError, SystemExit) as error:
            refused[" ".join(words)] = str(error)
    assert refused == {}


def test_every_option_that_is_named_exists():
    sources = [path for folder in ("modeling_deit_distill", "examples") for path in (ROOT / folder).rglob("*.py")]
    own = {name for path in sources for name in re.findall(r'"--([\w-]+)"', path.read_text(encoding="utf-8"))}
    known = own | DECLARATIONS.keys() | OPTIONS_OF_OTHERS | PLACEHOLDERS
    for path in FILES:
        named = set(re.findall(r"(?<![\w-])--([a-zA-Z][\w-]*)", text_of(path)))
        assert named <= known, (name_of(path), named - known)


def test_commands_are_found():
    readme = [" ".join(words) for words in commands(ROOT / "README.md")]
    assert "accelerate launch --quiet train_deit.py examples/recipes/digits.yaml" in readme
    assert len(readme) >= 8 and blocks(ROOT / "docs" / "teachers.md", "bash")
