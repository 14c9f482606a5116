"""The objectives of DeiT (paper, section 4; equations 2 and 3): tensors in, tensor out, no model and no state.

The total loss, ``(1 - alpha) * label_loss + alpha * teacher_loss``, is put together in ``training/objective.py``.
"""

import torch
import torch.nn.functional as F


def label_loss(
    student_logits: torch.Tensor,
    labels: torch.Tensor,
    label_smoothing: float = 0.0,
    class_weights: torch.Tensor | None = None,
    labelled: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross-entropy with the true label, CE(ψ(Z_s), y), in which each class may have its weight.

    With weights w the loss of an image is -Σ_c w_c · t_c · log ψ(Z_s)_c, where t = (1 - ε)·y + ε/classes is the mixed
    and smoothed target. It is divided by the batch, not by the sum of the weights in it, which torch does for class
    indices alone: so mixed and unmixed labels mean the same, and a batch may be split over processes and accumulation.

    Mixing may join a labelled and an unlabelled image. Let s be the labelled share of a view. Then y sums to s, and
    t = (1 - ε)·y + ε·s/classes. The loss is s times that of the labels alone, and 0 where s is 0.

    Args:
        student_logits: (batch, classes).
        labels: (batch,) class indices, or (batch, classes) probabilities, as mixup and cutmix make them.
        label_smoothing: weight ε of the uniform distribution: the target is (1 - ε)·y + ε/classes.
        class_weights: (classes,), w; None for ones.
        labelled: (batch,), s from 0 to 1, to which the labels (batch, classes) sum; None where all is labelled.

    Returns:
        Scalar, the mean over the batch.
    """
    if labelled is not None:
        target = (1 - label_smoothing) * labels + label_smoothing / student_logits.shape[-1] * labelled[:, None]
        return F.cross_entropy(student_logits, target, class_weights)
    if class_weights is None:
        return F.cross_entropy(student_logits, labels, label_smoothing=label_smoothing)
    if labels.dim() == 1:
        labels = F.one_hot(labels, student_logits.shape[-1])
    labels = labels.to(class_weights.dtype)
    return F.cross_entropy(student_logits, labels, class_weights, label_smoothing=label_smoothing)


def soft_distillation_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float, code_compatible: bool = False
) -> torch.Tensor:
    """τ²·KL between the tempered distributions of teacher and student (paper, equation 2; Hinton et al. 2015).

    The target is the teacher: KL(ψ(Z_t/τ) ‖ ψ(Z_s/τ)). τ² keeps the gradient's scale as τ grows.

    Args:
        student_logits: (batch, classes), Z_s.
        teacher_logits: (batch, classes), Z_t.
        temperature: τ > 0; the paper uses 3.0.
        code_compatible: divide by batch × classes, as the public code does, where the paper's formula means a mean
            over the batch: a thousandth of it on ImageNet.

    Returns:
        Scalar, the mean over the batch.

    Raises:
        ValueError: a temperature that is not positive, or logits of different shapes.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be positive")
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student logits have shape {tuple(student_logits.shape)}, teacher logits {tuple(teacher_logits.shape)}; "
            "both must be (batch, classes) over the same classes"
        )
    student_log_probs = F.log_softmax(student_logits / temperature, dim=-1)
    teacher_log_probs = F.log_softmax(teacher_logits / temperature, dim=-1)
    kl = F.kl_div(student_log_probs, teacher_log_probs, reduction="batchmean", log_target=True)
    if code_compatible:
        kl = kl / student_logits.shape[-1]
    return temperature**2 * kl


def hard_distillation_loss(student_logits: torch.Tensor, teacher_labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with the teacher's decision, CE(ψ(Z_s), y_t) with y_t = argmax_c Z_t(c) (paper, equation 3).

    The teacher's label is taken as it is: it gets no label smoothing.

    Args:
        student_logits: (batch, classes).
        teacher_labels: (batch,) class indices.

    Returns:
        Scalar, the mean over the batch.
    """
    return F.cross_entropy(student_logits, teacher_labels)
