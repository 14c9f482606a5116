"""The objectives against numbers worked out by hand and against the public code's formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from modeling_deit_distill.losses import hard_distillation_loss, label_loss, soft_distillation_loss

LN2, LN3, LN5 = math.log(2), math.log(3), math.log(5)


def random_logits(batch=6, classes=7):
    return 3 * torch.randn(batch, classes), 3 * torch.randn(batch, classes)


# --- the teacher's distribution -------------------------------------------------------------------------------------


def test_soft_distillation_by_hand():
    # One sample, two classes, τ = 1. Teacher (3/4, 1/4) from logits (ln 3, 0), student (1/2, 1/2) from (0, 0):
    # KL = 3/4 ln((3/4)/(1/2)) + 1/4 ln((1/4)/(1/2)) = 3/4 ln 3 - 3/4 ln 2 - 1/4 ln 2 = 3/4 ln 3 - ln 2.
    loss = soft_distillation_loss(torch.zeros(1, 2), torch.tensor([[LN3, 0.0]]), temperature=1.0)
    assert loss.item() == pytest.approx(0.75 * LN3 - LN2, abs=1e-6)  # 0.1308


def test_the_target_is_the_teacher():
    # Roles exchanged: KL((1/2, 1/2) ‖ (3/4, 1/4)) = 1/2 ln(2/3) + 1/2 ln 2 = ln 2 - 1/2 ln 3.
    loss = soft_distillation_loss(torch.tensor([[LN3, 0.0]]), torch.zeros(1, 2), temperature=1.0)
    assert loss.item() == pytest.approx(LN2 - 0.5 * LN3, abs=1e-6)  # 0.1438


def test_temperature_by_hand():
    # τ = 2 turns the teacher's logits (2 ln 3, 0) into (ln 3, 0): the KL above, times τ² = 4.
    loss = soft_distillation_loss(torch.zeros(1, 2), torch.tensor([[2 * LN3, 0.0]]), temperature=2.0)
    assert loss.item() == pytest.approx(4 * (0.75 * LN3 - LN2), abs=1e-6)


def test_soft_distillation_is_the_mean_over_the_batch():
    # The sample by hand, and one where student and teacher agree (KL 0): half the sum, whatever the classes.
    teacher = torch.tensor([[LN3, 0.0], [1.0, 2.0]])
    student = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    assert soft_distillation_loss(student, teacher, 1.0).item() == pytest.approx((0.75 * LN3 - LN2) / 2, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_soft_distillation_is_the_public_loss_times_the_classes(temperature):
    student, teacher = random_logits(batch=6, classes=7)
    # facebookresearch/deit, losses.py: the sum divided by numel() = batch · classes.
    public = (
        F.kl_div(
            F.log_softmax(student / temperature, dim=1),
            F.log_softmax(teacher / temperature, dim=1),
            reduction="sum",
            log_target=True,
        )
        * (temperature * temperature)
        / student.numel()
    )
    torch.testing.assert_close(soft_distillation_loss(student, teacher, temperature), 7 * public)


def test_the_gradient_keeps_its_scale_as_the_temperature_grows():
    # For τ far above the logits the gradient tends to (z_s - z_t) / classes per sample (logits of mean zero): Hinton
    # et al. 2015, equation 4. Without τ² it would vanish.
    student, teacher = torch.tensor([[0.3, -0.3]], requires_grad=True), torch.tensor([[-0.1, 0.1]])
    soft_distillation_loss(student, teacher, temperature=100.0).backward()
    torch.testing.assert_close(student.grad, torch.tensor([[0.2, -0.2]]), rtol=1e-3, atol=1e-4)


def test_soft_distillation_ignores_a_constant_added_to_the_logits():
    student, teacher = random_logits()
    shifted = soft_distillation_loss(student + 5, teacher - 2, 3.0)
    torch.testing.assert_close(shifted, soft_distillation_loss(student, teacher, 3.0))


@pytest.mark.parametrize("temperature", [0, -1.0])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature"):
        soft_distillation_loss(torch.zeros(2, 3), torch.zeros(2, 3), temperature)


@pytest.mark.parametrize("teacher_shape", [(2, 1), (1, 3), (2, 4)], ids=str)
def test_logits_of_other_shapes_are_refused_even_where_they_would_broadcast(teacher_shape):
    with pytest.raises(ValueError, match="shape"):
        soft_distillation_loss(torch.zeros(2, 3), torch.zeros(teacher_shape), 1.0)


# --- the teacher's decision -----------------------------------------------------------------------------------------


def test_hard_distillation_by_hand():
    # Softmax of (ln 3, 0) is (3/4, 1/4). Targets 0 and 1: -ln 3/4 and -ln 1/4, mean (ln 16 - ln 3) / 2.
    student = torch.tensor([[LN3, 0.0], [LN3, 0.0]])
    loss = hard_distillation_loss(student, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx((4 * LN2 - LN3) / 2, abs=1e-6)


def test_hard_distillation_is_the_public_loss():
    student, teacher = random_logits()
    # facebookresearch/deit, losses.py: cross-entropy with the teacher's argmax, not smoothed.
    public = F.cross_entropy(student, teacher.argmax(dim=1))
    torch.testing.assert_close(hard_distillation_loss(student, teacher.argmax(dim=1)), public)


def test_hard_distillation_has_no_label_smoothing():
    # A student that is certain of the teacher's label pays nothing; with smoothing it would pay in proportion to 50.
    assert hard_distillation_loss(torch.tensor([[50.0, 0.0, 0.0]]), torch.tensor([0])).item() < 1e-6


# --- the true label -------------------------------------------------------------------------------------------------


def test_label_loss_by_hand():
    # Softmax of (ln 3, 0, 0) is (3/5, 1/5, 1/5). Labels 0 and 2: ln 5 - ln 3 and ln 5.
    logits = torch.tensor([[LN3, 0.0, 0.0], [LN3, 0.0, 0.0]])
    assert label_loss(logits, torch.tensor([0, 2])).item() == pytest.approx(LN5 - LN3 / 2, abs=1e-6)


def test_label_smoothing_by_hand():
    # ε = 0.3 over three classes: target (0.8, 0.1, 0.1) against log-probabilities (ln 3 - ln 5, -ln 5, -ln 5):
    # loss = 0.8 (ln 5 - ln 3) + 0.2 ln 5 = ln 5 - 0.8 ln 3.
    loss = label_loss(torch.tensor([[LN3, 0.0, 0.0]]), torch.tensor([0]), label_smoothing=0.3)
    assert loss.item() == pytest.approx(LN5 - 0.8 * LN3, abs=1e-6)


def test_label_loss_of_probabilities_by_hand():
    # Target (1/4, 3/4, 0) against (ln 3 - ln 5, -ln 5, -ln 5): loss = ln 5 - ln(3) / 4.
    loss = label_loss(torch.tensor([[LN3, 0.0, 0.0]]), torch.tensor([[0.25, 0.75, 0.0]]))
    assert loss.item() == pytest.approx(LN5 - LN3 / 4, abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_one_hot_labels_are_indices(smoothing):
    logits, _ = random_logits(batch=4, classes=7)
    labels = torch.tensor([0, 6, 3, 3])
    torch.testing.assert_close(
        label_loss(logits, F.one_hot(labels, 7).float(), smoothing), label_loss(logits, labels, smoothing)
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixed_labels_are_the_public_mixup_target(smoothing):
    classes, ratio = 7, 0.7
    logits, _ = random_logits(batch=4, classes=classes)
    labels, partners = torch.tensor([0, 6, 3, 3]), torch.tensor([3, 3, 6, 0])

    # timm, data/mixup.py: smoothed one-hot vectors are mixed; loss/cross_entropy.py: SoftTargetCrossEntropy.
    off = smoothing / classes
    on = 1.0 - smoothing + off

    def smoothed(indices):
        return torch.full((4, classes), off).scatter_(1, indices.view(-1, 1), on)

    target = ratio * smoothed(labels) + (1.0 - ratio) * smoothed(partners)
    public = torch.sum(-target * F.log_softmax(logits, dim=-1), dim=-1).mean()

    mixed = ratio * F.one_hot(labels, classes) + (1.0 - ratio) * F.one_hot(partners, classes)
    torch.testing.assert_close(label_loss(logits, mixed, label_smoothing=smoothing), public)


# --- all of them ----------------------------------------------------------------------------------------------------

LOSSES = {
    "soft": lambda student, teacher: soft_distillation_loss(student, teacher, 3.0),
    "hard": lambda student, teacher: hard_distillation_loss(student, teacher.argmax(dim=1)),
    "label": lambda student, teacher: label_loss(student, teacher.softmax(dim=1), label_smoothing=0.1),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_batch_is_the_mean_of_its_samples(loss):
    student, teacher = random_logits(batch=6)
    samples = [loss(student[i : i + 1], teacher[i : i + 1]) for i in range(6)]
    batch = loss(student, teacher)
    assert batch.shape == ()
    torch.testing.assert_close(batch, torch.stack(samples).mean())


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_losses_stay_finite_for_extreme_logits(loss):
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    value = loss(student, torch.tensor([[-1e4, 1e4, 0.0]]))
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all()
    assert value > 1  # they disagree completely


# --- weights of the classes -----------------------------------------------------------------------------------------


def test_weighted_label_loss_by_hand():
    # Two images of probabilities (1/2, 1/2) and (1/4, 3/4), true classes 0 and 1, weights 3 and 1/2:
    # (3 · ln 2 + 1/2 · ln(4/3)) / 2. torch, by class indices, would divide by 3.5 instead.
    logits = torch.tensor([[0.0, 0.0], [0.0, LN3]])
    weights = torch.tensor([3.0, 0.5])
    loss = label_loss(logits, torch.tensor([0, 1]), class_weights=weights)
    assert loss.item() == pytest.approx((3 * LN2 + 0.5 * math.log(4 / 3)) / 2, abs=1e-6)


def test_weighted_mixed_and_smoothed_label_loss_by_hand():
    # One image of probabilities (1/4, 3/4); a mixed label (0.8, 0.2) smoothed by 0.1 is 0.9 · (0.8, 0.2) + 0.05 =
    # (0.77, 0.23). With weights 2 and 1/2 the loss is 2 · 0.77 · ln 4 + 1/2 · 0.23 · ln(4/3).
    logits, weights = torch.tensor([[0.0, LN3]]), torch.tensor([2.0, 0.5])
    loss = label_loss(logits, torch.tensor([[0.8, 0.2]]), 0.1, weights)
    assert loss.item() == pytest.approx(2 * 0.77 * math.log(4) + 0.5 * 0.23 * math.log(4 / 3), abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weights_of_one_change_nothing_and_indices_are_certain_probabilities(smoothing):
    logits, _ = random_logits()
    labels, ones = torch.randint(7, (6,)), torch.ones(7)
    plain = label_loss(logits, labels, smoothing)
    assert label_loss(logits, labels, smoothing, ones).item() == pytest.approx(plain.item(), rel=1e-6)
    weights = torch.rand(7) + 0.5
    certain = F.one_hot(labels, 7).float()
    assert torch.equal(label_loss(logits, labels, smoothing, weights), label_loss(logits, certain, smoothing, weights))


def test_a_weighted_batch_may_be_split():
    logits, _ = random_logits()
    labels, weights = torch.randint(7, (6,)), torch.rand(7) + 0.5
    halves = [label_loss(logits[part], labels[part], 0.1, weights) for part in (slice(0, 3), slice(3, 6))]
    assert (sum(halves) / 2).item() == pytest.approx(label_loss(logits, labels, 0.1, weights).item(), rel=1e-6)


def test_weights_work_under_autocast():
    logits, weights = random_logits()[0].bfloat16(), torch.rand(7) + 0.5
    with torch.autocast("cpu", torch.bfloat16):
        loss = label_loss(logits, torch.randint(7, (6,)), 0.1, weights)
    assert loss.dtype == torch.float32 and loss.isfinite()


# --- views of which a share has labels ------------------------------------------------------------------------------


def test_the_labels_loss_of_a_partly_labelled_view_by_hand():
    # Two classes, student (3/4, 1/4). A mixed view keeps 0.6 of an image of class 0, whose partner has no label:
    # 0.6 · -ln 3/4. A labelled view of class 1: -ln 1/4 = 2 ln 2. One without any label: 0. Divided by the three views.
    logits = torch.tensor([[LN3, 0.0]] * 3)
    labels, labelled = torch.tensor([[0.6, 0.0], [0.0, 1.0], [0.0, 0.0]]), torch.tensor([0.6, 1.0, 0.0])
    expected = (0.6 * (2 * LN2 - LN3) + 2 * LN2) / 3
    assert label_loss(logits, labels, labelled=labelled).item() == pytest.approx(expected, abs=1e-6)
    # ε = 0.1: the target of the first is (0.9 · 0.6 + 0.1 · 0.6 / 2, 0.1 · 0.6 / 2) = (0.57, 0.03), of the last (0, 0).
    expected = (0.57 * (2 * LN2 - LN3) + 0.03 * 2 * LN2 + 0.05 * (2 * LN2 - LN3) + 0.95 * 2 * LN2) / 3
    assert label_loss(logits, labels, 0.1, labelled=labelled).item() == pytest.approx(expected, abs=1e-6)
    # Weights (1, 2) of the classes double what is said of the second.
    expected = (0.57 * (2 * LN2 - LN3) + 2 * 0.03 * 2 * LN2 + 0.05 * (2 * LN2 - LN3) + 2 * 0.95 * 2 * LN2) / 3
    weights = torch.tensor([1.0, 2.0])
    assert label_loss(logits, labels, 0.1, weights, labelled).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 1.0, 2.0, 1.5, 1.0])])
def test_labels_of_the_whole_view_are_an_ordinary_case(smoothing, weights):
    logits, labels = torch.randn(6, 5), torch.rand(6, 5).softmax(dim=-1)
    ours = label_loss(logits, labels, smoothing, weights, torch.ones(6))
    torch.testing.assert_close(ours, label_loss(logits, labels, smoothing, weights))


def test_a_view_without_labels_moves_nothing():
    logits = torch.randn(4, 5, requires_grad=True)
    labels = torch.zeros(4, 5)
    labels[0, 2] = 1.0
    label_loss(logits, labels, 0.1, labelled=labels.sum(-1)).backward()
    assert logits.grad[0].abs().min() > 0 and not logits.grad[1:].any()
