"""The one line that is said where data are refused."""

import pytest

from modeling_deit_distill import InputError
from modeling_deit_distill.data.bad_images import BadImages
from modeling_deit_distill.data.sources import load_image_data


def refusal(*args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        load_image_data(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def complaint(bad_images: BadImages, rows: list[int]) -> str:
    with pytest.raises(InputError) as caught:
        bad_images.note(rows)
    assert "\n" not in str(caught.value)
    return str(caught.value)
