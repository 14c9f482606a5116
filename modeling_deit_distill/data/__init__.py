"""From a dataset to batches of uint8 views: sources, decoding, the draws of every view, datasets, evaluation."""

from .decoding import decode_image, decode_pixels
from .evaluation import evaluation_processor

__all__ = ["decode_image", "decode_pixels", "evaluation_processor"]
