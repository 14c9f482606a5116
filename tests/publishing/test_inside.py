"""The pictures of a finished run: which held-out images are drawn in which."""

import numpy as np
import pytest
import torch

from modeling_deit_distill.data.evaluation import evaluation_processor
from modeling_deit_distill.publishing import inside


@pytest.fixture
def look(tiny_model, tmp_path, monkeypatch):
    """`look(decisions)`: by picture, what is drawn: the images' numbers, truths and teacher's answers."""
    tiny_model().save_pretrained(tmp_path)
    evaluation_processor(32).save_pretrained(tmp_path)

    def call(decisions):
        drawn = {}

        def draw(model, pixel_values, labels, teacher, processor, path):
            drawn[path.name] = pixel_values[:, 0, 0, 0].int().tolist(), list(labels), teacher

        monkeypatch.setattr(inside, "draw_predictions", draw)
        images = [{"pixel_values": torch.full((3, 32, 32), float(index))} for index in range(len(decisions["labels"]))]
        inside.look_inside(tmp_path, images, decisions, torch.device("cpu"))
        return drawn

    return call


def test_the_surest_mistakes_are_drawn_beside_the_predictions(look):
    labels, confidence = np.array([0, 1, 2, 0, 1]), np.array([0.9, 0.5, 0.8, 0.5, 1.0])
    decisions = {"labels": labels, "fused": np.array([0, 0, 1, 1, 1]), "confidence": confidence, "teacher": labels}
    drawn = look(decisions)
    assert drawn.keys() == {"predictions.png", "mistakes.png"}
    numbers, truths, teacher = drawn["mistakes.png"]
    assert (numbers, truths, teacher.tolist()) == ([2, 1, 3], [2, 1, 0], [2, 1, 0])


def test_without_a_mistake_an_earlier_picture_of_mistakes_goes(look, tmp_path):
    (tmp_path / "mistakes.png").write_bytes(b"of an earlier run")
    labels = np.array([0, 1])
    assert look({"labels": labels, "fused": labels, "confidence": np.ones(2)}).keys() == {"predictions.png"}
    assert not (tmp_path / "mistakes.png").exists()
