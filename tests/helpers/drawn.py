"""Draws of many views by the recipe, the columns they are made from, and the generators that timm draws from."""

import ast
import inspect
import random

import numpy as np

from modeling_deit_distill.data import views
from modeling_deit_distill.data.views import AugmentationSettings, Draws, draw, draw_uniforms

NUM_VIEWS = 20_000
SIZE = 224


def seed_generators():
    """Those from which timm draws."""
    random.seed(0)
    np.random.seed(0)


def draws(num_views: int = NUM_VIEWS, seed: int = 0, epoch: int = 0, **settings) -> Draws:
    positions = range(num_views)
    uniforms = draw_uniforms(seed, epoch, positions)
    return draw(AugmentationSettings(**{"image_size": SIZE, **settings}), seed, epoch, positions, uniforms)


def columns() -> dict[str, np.ndarray]:
    """The columns of a view's uniform numbers that `data/views.py` reads, by the name that it reads them under."""
    everything, found = np.arange(draw_uniforms(0, 0, [0]).shape[1]), {}
    for node in ast.walk(ast.parse(inspect.getsource(views))):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "uniforms":
            place = node.slice.elts[-1] if isinstance(node.slice, ast.Tuple) else node.slice
            if not isinstance(place, ast.Slice):  # which would be rows
                name = ast.unparse(place)
                found[name] = np.atleast_1d(everything[eval(name, dict(vars(views)))])
    return found
