"""The image processor as a graph: what it makes of a photograph is what the image processor makes of it."""

import numpy as np
import onnxruntime
import PIL.Image
import PIL.ImageOps
import pytest
from helpers.exports import run, smooth
from transformers import DeiTImageProcessor, ViTImageProcessor
from transformers.image_utils import PILImageResampling

from modeling_deit_distill import InputError
from modeling_deit_distill.data.evaluation import evaluation_processor
from modeling_deit_distill.export.onnx import OPSET
from modeling_deit_distill.export.photograph import (
    as_photograph,
    check_preprocessing,
    preprocessing_graph,
    preprocessing_of,
)

# A level is 1 / 255 of the range; the deviation of a channel a quarter of it.
LEVEL = 1 / 255 / 0.224


def graph_of(processor) -> onnxruntime.InferenceSession:
    graph = preprocessing_graph(preprocessing_of(processor), OPSET)
    return onnxruntime.InferenceSession(graph.SerializeToString())


def differences(processor, images) -> np.ndarray:
    """In what the model sees, of all pixels of all images."""
    session = graph_of(processor)
    return np.concatenate(
        [
            np.abs(
                session.run(None, {"photograph": as_photograph(image)})[0]
                - processor(image, return_tensors="np")["pixel_values"]
            ).ravel()
            for image in images
        ]
    )


SIZES = [(300, 500), (500, 301), (32, 32), (37, 36), (8, 8), (1, 1), (1, 90), (64, 3), (36, 400)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_shorter_side_and_the_crop_are_those_of_the_processor(size):
    found = differences(evaluation_processor(32), [smooth(*size)])
    assert len(found) == 3 * 32 * 32
    assert found.mean() < 0.02 * LEVEL and found.max() < 2.01 * LEVEL


def test_noise_and_black_and_white_too():
    noise = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    found = differences(evaluation_processor(32), [PIL.Image.fromarray(each) for each in (noise, 255 * (noise // 128))])
    assert found.mean() < 0.02 * LEVEL and found.max() < 2.01 * LEVEL


def test_a_squash_and_bilinear_too():
    processor = ViTImageProcessor(size={"height": 24, "width": 40}, resample=PILImageResampling.BILINEAR)
    found = differences(processor, [smooth(300, 500), smooth(11, 7)])
    assert found.mean() < 0.02 / 127.5 and found.max() < 2.01 / 127.5


def test_halves_are_rounded_up_as_in_pillow():
    """A bilinear resize to twice the sides meets them all the time."""
    processor = ViTImageProcessor(size={"height": 24, "width": 40}, resample=PILImageResampling.BILINEAR)
    noise = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    assert differences(processor, [PIL.Image.fromarray(noise)]).max() < 0.1 / 127.5


def test_greyscale_and_alpha_are_taken_in_rgb():
    grey = smooth(50, 60).convert("L")
    assert as_photograph(grey).shape == (1, 3, 50, 60)
    assert np.array_equal(as_photograph(grey), as_photograph(grey.convert("RGBA")))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"do_resize": False}, "resizes to .*; the graph knows shortest_edge, or height and width"),
        ({"size": {"longest_edge": 40}}, "the graph knows shortest_edge"),
        ({"resample": PILImageResampling.LANCZOS}, "by .*LANCZOS.*; the graph knows bilinear and bicubic"),
        ({"crop_size": {"height": 50, "width": 20}}, r"crops \(50, 20\) from .*36.*; the graph does not pad"),
    ],
    ids=["no resize", "longest edge", "Lanczos", "padding"],
)
def test_what_the_graph_does_not_do_is_refused(changes, said):
    processor = DeiTImageProcessor.from_dict({**evaluation_processor(32).to_dict(), **changes})
    with pytest.raises(InputError, match=said):
        preprocessing_of(processor)


class Mirrored(DeiTImageProcessor):
    """Does more than its fields say."""

    def __call__(self, image, **settings):
        return super().__call__(PIL.ImageOps.mirror(image), **settings)


def test_a_processor_that_does_more_than_its_fields_say_is_refused():
    check_preprocessing(evaluation_processor(32), OPSET)
    check_preprocessing(ViTImageProcessor(size={"height": 24, "width": 40}), OPSET)
    with pytest.raises(InputError, match=r"\(Mirrored\) makes something else of 410x300 .*--formats onnx"):
        check_preprocessing(Mirrored.from_dict(evaluation_processor(32).to_dict()), OPSET)


def test_statistics_follow_the_processor():
    image = PIL.Image.new("RGB", (40, 40), (10, 20, 30))
    for changes in ({"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5}):
        processor = DeiTImageProcessor.from_dict({**evaluation_processor(32).to_dict(), **changes})
        [found] = graph_of(processor).run(None, {"photograph": as_photograph(image)})
        np.testing.assert_allclose(found, processor(image, return_tensors="np")["pixel_values"], rtol=1e-5, atol=1e-5)


def test_a_batch_is_answered_image_by_image():
    session, images = graph_of(evaluation_processor(32)), [smooth(50, 60), smooth(50, 60).rotate(180)]
    batch = np.concatenate([as_photograph(image) for image in images])
    [found] = session.run(None, {"photograph": batch})
    for row, image in zip(found, images, strict=True):
        np.testing.assert_array_equal(row, session.run(None, {"photograph": as_photograph(image)})[0][0])


@pytest.mark.slow
def test_the_whole_file_takes_a_photograph(layout):
    folder, _ = layout()
    for name in ("model.onnx", "model_fp16.onnx", "model_quantized.onnx"):
        outputs = run(folder / "onnx" / name, as_photograph(smooth(70, 50)))
        assert [output.shape for output in outputs] == [(1, 5)] * 3 + [(1, 2, 4, 4)]
