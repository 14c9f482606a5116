"""Draws of many views by the recipe, and the generators that timm draws from."""

import random

import numpy as np

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
