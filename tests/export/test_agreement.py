"""How often an export decides as PyTorch does, by hand-worked values; what is refused, and what is tried before."""

from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch

from modeling_deit_distill import InputError
from modeling_deit_distill.data.unlabelled import find_images
from modeling_deit_distill.export import precisions
from modeling_deit_distill.export.agreement import Agreement, check_agreement, chosen_images, compare, decoded
from modeling_deit_distill.export.precisions import KEPT, Source


def brightness(pixel_values) -> torch.Tensor:
    """Logits of two classes, dark and bright: of a grey level g the second is log(g / (255 - g))."""
    level = pixel_values.mean()
    return torch.stack([torch.zeros(()), torch.log(level / (255 - level))])


def model(pixel_values):
    return SimpleNamespace(logits=brightness(pixel_values)[None])


def processor(image, return_tensors):
    return {"pixel_values": torch.from_numpy(np.asarray(image, np.float32))}


def test_decisions_and_probabilities_are_compared():
    images = [PIL.Image.new("RGB", (2, 2), (level,) * 3) for level in (51, 102, 153, 204)]
    answers = {
        "same": lambda image: brightness(torch.from_numpy(np.asarray(image, np.float32))).numpy(),
        "bright": lambda image: np.array([0.0, np.log(3)], np.float32),  # 3 of 4, always
    }
    found = compare(model, processor, answers, iter(images))
    assert found["same"] == Agreement(4, 4, pytest.approx(0, abs=1e-6))
    # The probabilities of "bright" are 0.2, 0.4, 0.6 and 0.8: two decisions are equal, 0.75 - 0.2 is the largest.
    assert found["bright"] == Agreement(4, 2, pytest.approx(0.55))
    assert str(found["bright"]) == "2 of 4 decisions are PyTorch's, probabilities within 0.5500"


def test_too_few_equal_decisions_are_refused_and_the_remedy_is_just_enough():
    check_agreement("model.onnx", Agreement(200, 194, 0.2), 0.97)
    with pytest.raises(InputError, match=r"model.onnx: only 193 of 200 .* 96.5% where at least 97% .*_agreement 0.96$"):
        check_agreement("model.onnx", Agreement(200, 193, 0.2), 0.97)
    check_agreement("model.onnx", Agreement(200, 193, 0.2), 0.96)


def test_images_that_cannot_be_read_are_left_out_and_counted(tmp_path):
    for index in (0, 2):
        PIL.Image.new("RGB", (4, 4)).save(tmp_path / f"{index}.png")
    (tmp_path / "1.jpg").write_bytes(b"\xff\xd8broken")
    (tmp_path / "3.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no image")
    images, rows = chosen_images([str(tmp_path)])
    assert [images.name(row)[-5:] for row in rows] == ["0.png", "2.png"]
    assert images.skipped.counts == {"file{s} of no image format": 1, "image{s} that cannot be read": 2}
    assert "1.jpg (" in str(images.skipped) and "3.png (empty file)" in str(images.skipped)


def test_no_image_that_can_be_read_is_an_error(tmp_path):
    with pytest.raises(InputError, match="none of the images can be read.*--images"):
        compare(model, processor, {}, iter([]))
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8broken")
    with pytest.raises(InputError, match=r"--images: none of 1 can be read \(1 image that .*broken.jpg .*give others"):
        chosen_images([str(tmp_path)])
    assert list(decoded(find_images([str(tmp_path)]), [0])) == []


def test_at_most_two_hundred_images_are_looked_at_evenly_spaced(tmp_path):
    for index in range(3):
        PIL.Image.new("RGB", (4, 4)).save(tmp_path / f"{index}.png")
    assert chosen_images([str(tmp_path)])[1] == [0, 1, 2]
    images, rows = chosen_images(["digits"])
    assert len(images) == 360 and len(rows) == 200 and rows[:4] == [0, 1, 3, 5] and rows[-1] == 358
    with pytest.raises(InputError, match="no file and no folder"):
        chosen_images([str(tmp_path / "nowhere")])


@pytest.fixture
def attempts(monkeypatch):
    """Attempts of an export, each with its own share of 100 equal decisions."""
    made, shares = [], {}

    def attempt(source, plain, precision, takes_photographs, kept):
        made.append((precision, kept))
        agreement = Agreement(100, shares[len(made) - 1], 0.1)
        return precisions.Exported(precision, "file", 1.0, 1.0, agreement, {}, kept)

    monkeypatch.setattr(precisions, "_attempt", attempt)
    monkeypatch.setattr(precisions, "write_onnx", lambda model, path: path.touch())
    return made, shares


def test_layers_stay_in_fp32_where_int8_decides_otherwise(attempts, tiny_model, tmp_path):
    made, shares = attempts
    shares |= {0: 90, 1: 98}
    source = Source(tiny_model(num_hidden_layers=3), None, (), (0,))
    [exported] = precisions.write_precisions(source, tmp_path, ["int8"], takes_photographs=True)
    assert made == [("int8", ()), ("int8", ("mlp.fc2",))] and exported.kept == KEPT[1]
    assert list(tmp_path.iterdir()) == []


def test_after_the_last_attempt_it_is_refused(attempts, tiny_model, tmp_path):
    made, shares = attempts
    shares |= {0: 50, 1: 60, 2: 70}
    source = Source(tiny_model(num_hidden_layers=3), None, (), (0,))
    with pytest.raises(InputError, match="70.0% where at least 97% .* --min_agreement 0.7"):
        precisions.write_precisions(source, tmp_path, ["int8"], takes_photographs=True)
    assert made[-1] == ("int8", ("mlp.fc2", "classifier", "layers.0.", "layers.2."))


def test_of_fp16_there_is_one_attempt(attempts, tiny_model, tmp_path):
    made, shares = attempts
    shares |= {0: 50}
    with pytest.raises(InputError, match="50.0%"):
        source = Source(tiny_model(), None, (), (0,))
        precisions.write_precisions(source, tmp_path, ["fp16"], takes_photographs=True)
    assert made == [("fp16", ())]
