"""Large photographs, decoded no larger than their views need: at a half, a quarter or an eighth of their size.

libjpeg makes such an image from the low frequencies of a JPEG's blocks, which spares most of the arithmetic and of the
memory; the file itself is read as a whole. It is done where a crop is at least two, four or eight times as long as the
side that it is resized to. What is left out are details that the resizing would have averaged away.

By which factor is a pure function of the image's size, of the view's own crop and of the run's settings. It depends on
no other view, so the workers, the batch and the company change nothing. Nearly all views of an image share one
decoding:

- An image has the largest factor at which a square crop of the smallest share of `random_crop_scale` is still as long
  as the side, see [`factor_of_image`].
- A view has this factor, or a smaller one where its own crop, which may be oblong, is too short for it, see
  [`factor_of_view`].

Boxes are drawn on the whole image and rounded to pixels of the smaller one, see [`scaled_box`].
"""

import math

from .views import AugmentationSettings

FACTORS = (8, 4, 2)
# Photographs are large from so many pixels on. ImageNet has some of them, too, but half of its images have less than a
# twentieth.
LARGE = 4_000_000


def factor_of_image(height: int, width: int, settings: AugmentationSettings, most: int = FACTORS[0]) -> int:
    """How many times smaller an image of so many pixels is decoded: 1, 2, 4 or 8, and at most `most`."""
    shortest = math.sqrt(settings.random_crop_scale[0] * height * width)
    return _largest(shortest, settings.image_size, most) if settings.scaled_decoding else 1


def factor_of_view(box: tuple[int, int, int, int], image_size: int, factor: int) -> int:
    """The same for a view: that of its image, or less where the box (top, left, height, width) is too short."""
    return _largest(min(box[2:]), image_size, factor)


def scaled_box(box: tuple[int, int, int, int], factor: int, height: int, width: int) -> tuple[int, int, int, int]:
    """A box (top, left, height, width) of a whole image in pixels of the smaller one, (height, width).

    Its sides and its place are rounded, so an edge moves by at most a pixel of the smaller image.
    """
    top, left, box_height, box_width = ((length + factor // 2) // factor for length in box)
    box_height, box_width = min(box_height, height), min(box_width, width)
    return min(top, height - box_height), min(left, width - box_width), box_height, box_width


def _largest(length: float, image_size: int, most: int) -> int:
    return next((factor for factor in FACTORS if factor <= most and length >= factor * image_size), 1)
