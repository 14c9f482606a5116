"""Command lines and recipes on the digits."""

from helpers.paths import ROOT
from modeling_deit_distill.recipes import parse_arguments

RECIPE_FOLDER = ROOT / "examples" / "recipes"
RECIPES = sorted(RECIPE_FOLDER.glob("*.yaml"))
IMAGENET_RECIPES = [path for path in RECIPES if path.stem.startswith("imagenet")]


def parse(*words):
    """The three dataclasses; `use_cpu` because several devices would multiply the batch."""
    return parse_arguments([*words, "--use_cpu", "true"])


def training(*words):
    return parse("--dataset_name", "digits", *words)[2]
