"""Teachers are tried before they teach: alone, and several together."""

import pytest
import torch
import torch.nn.functional as F

from modeling_deit_distill import InputError
from modeling_deit_distill.arguments import ModelArguments
from modeling_deit_distill.teachers.ensemble import Ensemble
from modeling_deit_distill.teachers.trial import check_teacher, check_teachers


class Answers(torch.nn.Module):
    """A classifier that reads its answer from the first pixel."""

    def __init__(self, answers):
        super().__init__()
        self.answers, self.device, self.precision = answers, torch.device("cpu"), "fp32"

    @property
    def members(self):
        return [self]

    def forward(self, pixel_values):
        return F.one_hot(self.answers[pixel_values[:, 0, 0, 0].long()], 10).float()


def images(labels):
    return [{"pixel_values": torch.full((3, 2, 2), index), "labels": label} for index, label in enumerate(labels)]


def balanced(length):
    return torch.arange(length) % 10


def test_a_good_teacher_is_let_through():
    truth = balanced(1000)
    assert check_teacher(Answers(truth), images(truth.tolist()), 64, allow_weak=False) == 1.0
    half_right = torch.where(torch.arange(1000) % 20 < 10, truth, (truth + 1) % 10)
    assert 0.4 < check_teacher(Answers(half_right), images(truth.tolist()), 64, allow_weak=False) < 0.6


@pytest.mark.parametrize("skewed", [False, True])
def test_a_teacher_at_chance_is_refused(skewed):
    generator = torch.Generator().manual_seed(0)
    truth = balanced(1000)
    if skewed:  # nine in ten are of one class, so that answering it always is right nine times in ten
        truth = torch.where(torch.rand(1000, generator=generator) < 0.9, 0, truth)
    for answers, why in (
        ((truth + 3) % 10, r"in another order .*right on 400\); give --teacher_label_map"),
        (truth[torch.randperm(1000, generator=generator)], "head is not trained, or it knows other images"),
        (torch.full((1000,), 0), "answers class 0 whatever it sees"),
    ):
        with pytest.raises(InputError, match=f"chance would be about.*{why}.*--allow_weak_teacher true") as caught:
            check_teacher(Answers(answers), images(truth.tolist()), 64, allow_weak=False)
        assert "another order" in why or "another order" not in str(caught.value)
        assert check_teacher(Answers(answers), images(truth.tolist()), 64, allow_weak=True) <= 1


def test_a_teacher_that_was_trained_here_is_to_be_trained_longer():
    truth = balanced(1000)
    with pytest.raises(InputError, match=r"trained here for 0.5 epochs.*\(--teacher_num_train_epochs") as caught:
        check_teacher(Answers((truth + 3) % 10), images(truth.tolist()), 64, allow_weak=False, trained_epochs=0.5)
    assert "order" not in str(caught.value)


@pytest.mark.parametrize(("precision", "remedy"), [("fp32", "take another teacher"), ("bf16", "fp32 .now bf16")])
def test_a_teacher_whose_answers_are_not_finite_is_refused_whatever_is_allowed(precision, remedy):
    teacher = Answers(balanced(60))
    teacher.forward = lambda pixel_values: torch.full((len(pixel_values), 10), torch.nan)
    teacher.precision = precision
    with pytest.raises(InputError, match=f"answers about validation images are not finite; .*{remedy}"):
        check_teacher(teacher, images([0] * 60), 64, allow_weak=True)


def test_with_too_few_images_to_compare_with_chance_that_is_said_and_no_teacher_is_refused():
    truth, model_args = balanced(14), ModelArguments(teacher_name_or_path="teacher")
    answers = torch.where(torch.arange(14) < 1, truth, (truth + 3) % 10)
    words = check_teachers(model_args, Answers(answers), images(truth.tolist()), 64)
    assert words == "the teacher is right on 1 of 14 held-out images: too few to compare it with chance"
    several = ModelArguments(teacher_name_or_path=["a", "b"])
    words = check_teachers(several, Ensemble([Answers(answers), Answers(truth)]), images(truth.tolist()), 64)
    assert words.endswith(": 14 images, too few to compare them with chance")
    good = check_teachers(model_args, Answers(balanced(50)), images(balanced(50).tolist()), 64)
    assert good == "the teacher is right on 100.0% of the 50 held-out images"


def test_a_weak_member_is_named_and_may_be_allowed_as_a_single_teacher_may():
    truth, names = torch.arange(400) // 40, ["good", "weak"]
    teacher = Ensemble([Answers(truth), Answers(torch.zeros_like(truth))])
    with pytest.raises(
        InputError, match="^teacher 2 of 2, 'weak': the teacher is right on .*--allow_weak_teacher true"
    ):
        check_teachers(ModelArguments(teacher_name_or_path=names), teacher, images(truth.tolist()), 64)
    allowed = ModelArguments(teacher_name_or_path=names, allow_weak_teacher=True)
    words = check_teachers(allowed, teacher, images(truth.tolist()), 64)
    assert words == (
        "the teachers are right on 100.0% (good), 10.0% (weak) of the 400 held-out images, together on 10.0%"
    )
