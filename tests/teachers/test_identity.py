"""Which teacher a checkpoint was made with."""

import json
import shutil

import pytest
import torch
from helpers.saved_checkpoints import checkpoint
from helpers.teachers import DIGITS, save_resnet, teacher_in
from torch import nn

from modeling_deit_distill import InputError
from modeling_deit_distill.output_folder import commit_checkpoint
from modeling_deit_distill.teachers.ensemble import Ensemble
from modeling_deit_distill.teachers.identity import teacher_going_on, teacher_identity


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "resnet"
    save_resnet(folder)
    return folder


@pytest.fixture
def made_with(tmp_path):
    """`made_with(teacher)`: a checkpoint that was made with it."""

    def make(teacher):
        path = checkpoint(tmp_path)
        commit_checkpoint(path, json.loads(json.dumps({"teacher": teacher_identity(teacher)})))
        return path

    return make


def test_the_same_weights_are_the_same_teacher_wherever_they_lie(resnet, made_with, tmp_path):
    path = made_with(teacher_in(resnet))
    shutil.copytree(resnet, tmp_path / "moved")
    for precision in ("fp32", "bf16"):  # the remedy for answers that are not finite
        teacher_going_on(path, teacher_in(tmp_path / "moved", teacher_precision=precision))
    teacher_going_on(path, torch.compile(teacher_in(resnet)))
    assert str(tmp_path) not in (path / "complete.json").read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher_image_size": 64}, "resnet .teacher_image_size 32., this run has resnet .teacher_image_size 64."),
        ({"class_names": DIGITS[::-1]}, "label_map null., this run has resnet .label_map .9, 8"),
    ],
)
def test_other_answers_of_the_same_weights_are_refused(resnet, made_with, changes, words):
    with pytest.raises(InputError, match=f"was made with the teacher .*{words}.*give the same to go on"):
        teacher_going_on(made_with(teacher_in(resnet)), teacher_in(resnet, **changes))


def test_several_teachers_are_compared_in_their_order(resnet, made_with, tmp_path):
    shutil.copytree(resnet, tmp_path / "other")
    one, other = teacher_in(resnet), teacher_in(resnet)
    nn.init.zeros_(other.model.classifier[1].bias)
    other.model.save_pretrained(tmp_path / "other")
    other = teacher_in(tmp_path / "other")
    path = made_with(Ensemble([one, other]))
    teacher_going_on(path, Ensemble([one, other]))
    with pytest.raises(InputError, match="the teacher resnet other .teacher_weights"):
        teacher_going_on(path, Ensemble([other, one]))
    with pytest.raises(InputError, match="number of teachers 2., this run has resnet .number of teachers 1"):
        teacher_going_on(path, one)


def test_where_nothing_is_known_nothing_is_refused(resnet, made_with, tmp_path):
    teacher, module = teacher_in(resnet), nn.LazyLinear(2)  # of the user's own: its weights may change as it answers
    assert teacher_going_on(None, None) is None
    assert teacher_going_on(tmp_path, teacher) == teacher_identity(teacher)  # a checkpoint of an earlier version
    path = made_with(teacher)
    assert teacher_going_on(path, None) == teacher_identity(teacher)  # a store answers: the next checkpoint still knows
    assert teacher_going_on(path, module) is None and teacher_identity(module) is None
    teacher_going_on(made_with(module), teacher)
