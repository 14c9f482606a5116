"""Numbers that go wrong: a step that is not finite changes nothing, is named, and too many in a row end the run."""

import json
import logging

import pytest
import torch
from helpers.trainers import CountingTeacher, rows, snapshot, student, trainer, views_trainer
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from modeling_deit_distill import InputError
from modeling_deit_distill.training.finite import FiniteGuard, shorten
from modeling_deit_distill.weights import check_finite_weights

NAN = float("nan")


def optimiser_state(run):
    return [value.clone() for state in run.optimizer.state_dict()["state"].values() for value in state.values()]


def follow(run):
    """Keep weights, optimiser state and the trainer's verdict as they are after each step, under `run.history`."""
    run.history, original = [], run.callback_handler.on_optimizer_step

    def after(args, state, control):
        seen = (
            snapshot(run.model),
            optimiser_state(run),
            bool(run.finite.step_was_skipped(run.accelerator)),
            run._get_learning_rate(),
        )
        run.history.append(seen)
        return original(args, state, control)

    run.callback_handler.on_optimizer_step = after
    return run


def same(first, second):
    return all(torch.equal(value, second[0][name]) for name, value in first[0].items()) and all(
        torch.equal(one, other) for one, other in zip(first[1], second[1], strict=True)
    )


def poison_pixels(run, calls):
    original, run.calls = run.compute_loss, 0

    def poisoned(model, inputs, **kwargs):
        if model.training:
            run.calls += 1
            if run.calls in calls:
                inputs = {**inputs, "pixel_values": torch.full_like(inputs["pixel_values"], NAN)}
        return original(model, inputs, **kwargs)

    run.compute_loss = poisoned


def poison_teacher(run, calls):
    original, run.calls = run.answers.teacher.forward, 0

    def poisoned(pixel_values):
        answered = original(pixel_values)
        run.calls += 1
        if run.calls in calls:
            answered.logits[1, 2] = NAN
        return answered

    run.answers.teacher.forward = poisoned


def poison_gradient(run, calls):
    run.calls = 0

    def poisoned(gradient):
        run.calls += 1
        return torch.full_like(gradient, float("inf")) if run.calls in calls else gradient

    run.model.deit.norm.weight.register_hook(poisoned)


POISONS = {"pixels": poison_pixels, "teacher": poison_teacher, "gradient": poison_gradient}


DEFAULT_OPTIMISER = "adamw_torch_fused"
POISONED_RUNS = [(name, DEFAULT_OPTIMISER) for name in sorted(POISONS)]
POISONED_RUNS += [("gradient", "adamw_torch"), ("gradient", "sgd")]


@pytest.mark.parametrize(("poison", "optim"), POISONED_RUNS)
def test_a_step_that_is_not_finite_changes_no_bit_and_the_next_one_goes_on(tmp_path, caplog, poison, optim):
    run = follow(trainer(tmp_path, teacher=CountingTeacher(), max_steps=4, optim=optim))
    POISONS[poison](run, {2})
    with caplog.at_level(logging.WARNING):
        results = run.train()
    assert [skipped for _, _, skipped, _ in run.history] == [False, True, False, False]
    assert same(run.history[0], run.history[1])
    assert not same(run.history[1], run.history[2]) and not same(run.history[2], run.history[3])
    rates = [rate for *_, rate in run.history]
    assert rates == sorted(rates, reverse=True) and len(set(rates)) == 4  # the schedule goes on
    assert "the step was skipped: step 2:" in caplog.text and "gradient norm" in caplog.text
    assert run.finite.num_skipped == 1
    assert all(value.isfinite().all() for value in run.model.state_dict().values())
    assert torch.isfinite(torch.tensor(results.training_loss * results.metrics["train_loss"]))


def test_the_message_names_the_term(tmp_path, caplog):
    for distillation_type in ("hard", "soft"):
        run = trainer(tmp_path, teacher=CountingTeacher(), max_steps=3, distillation_type=distillation_type)
        poison_teacher(run, {2})
        run.train()
        (line,) = [record.message for record in caplog.records if "skipped" in record.message]
        assert "teacher_loss nan" in line and "label_loss nan" not in line and "gradient norm nan" in line
        caplog.clear()


def test_the_message_names_epoch_and_positions(tmp_path, caplog):
    run = views_trainer(tmp_path, rows(26), gradient_accumulation_steps=3, max_nonfinite_steps=4)
    poison_images(run, {5})  # two steps an epoch of three batches of four views: the second batch of the second step
    run.train()
    line = next(record.message for record in caplog.records if "skipped" in record.message)
    assert "step 2, epoch 0, positions 12-23: label_loss nan (positions 16-19), teacher_loss nan" in line


def poison_images(run, calls):
    original, run.calls = run.views, 0

    def poisoned(inputs):
        pixel_values, *rest = original(inputs)
        run.calls += 1
        return (pixel_values * NAN if run.calls in calls else pixel_values), *rest

    poisoned.bad_images, poisoned.class_weights = original.bad_images, original.class_weights
    run.views = poisoned


def test_one_bad_batch_spoils_its_whole_accumulated_step_and_no_other(tmp_path):
    run = trainer(
        tmp_path, teacher=CountingTeacher(), max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    poison_pixels(follow(run), {6})
    run.train()
    assert [skipped for _, _, skipped, _ in run.history] == [False, True, False]
    assert same(run.history[0], run.history[1]) and not same(run.history[1], run.history[2])


def test_clipping_does_not_hide_it(tmp_path):
    run = follow(trainer(tmp_path, teacher=CountingTeacher(), max_steps=3, max_grad_norm=1.0))
    poison_gradient(run, {2})
    run.train()
    assert same(run.history[0], run.history[1]) and not same(run.history[1], run.history[2])


def test_logged_means_are_those_of_the_finite_batches(tmp_path):
    still = {
        "max_steps": 4,
        "learning_rate": 0.0,
    }  # the student stays as it is, so a batch has the same loss in each run
    whole = trainer(tmp_path, teacher=CountingTeacher(), **still)
    whole.train()
    first, _, third, fourth = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    again = trainer(tmp_path, teacher=CountingTeacher(), **still, logging_steps=4)
    poison_pixels(again, {2})
    rest = again.train().metrics["train_loss"]
    entry = next(entry for entry in again.state.log_history if "loss" in entry)
    assert rest == pytest.approx(entry["loss"]) == pytest.approx((entry["label_loss"] + entry["teacher_loss"]) / 2)
    assert rest == pytest.approx((first + third + fourth) / 3)


def test_too_many_in_a_row_end_the_run_with_advice_and_what_was_saved_is_finite(tmp_path):
    run = trainer(
        tmp_path,
        teacher=CountingTeacher(),
        max_steps=10,
        max_nonfinite_steps=3,
        save_strategy="steps",
        save_steps=2,
        eval_strategy="no",
    )
    poison_pixels(run, set(range(6, 100)))
    with pytest.raises(InputError) as caught:
        run.train()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("3 steps in a row had a loss or a gradient that is not finite, the last: step 8")
    assert "the pixels are not finite: look at the samples" in message and "learning_rate" not in message
    assert f"; the last checkpoint, {tmp_path / 'checkpoint-6'}, is kept; a run with another learning rate" in message
    assert f"(--model_name_or_path {tmp_path / 'checkpoint-6'}, and another --output_dir)" in message
    saved = sorted(tmp_path.glob("checkpoint-*/model.safetensors"))
    assert len(saved) == 3
    assert all(value.isfinite().all() for path in saved for value in load_file(path).values())
    state = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["global_step"] == 6


def test_the_count_starts_anew_after_a_finite_step(tmp_path):
    run = trainer(tmp_path, teacher=CountingTeacher(), max_steps=8, max_nonfinite_steps=3)
    poison_pixels(run, {2, 3, 5, 6, 8})
    run.train()
    assert run.finite.num_skipped == 5


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    run = trainer(tmp_path / "out", teacher=CountingTeacher(), max_steps=1)
    run.train()
    run.model.cls_classifier.bias.data[2] = NAN
    with pytest.raises(
        InputError, match="bias and 0 more.*not saved; an update was too large.*no checkpoint was saved"
    ):
        run.save_model()
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_weights_that_are_not_finite_are_not_pushed(tmp_path, monkeypatch):
    run = trainer(tmp_path, teacher=CountingTeacher(), max_steps=1)
    run.publisher.destination = object()
    monkeypatch.setattr("modeling_deit_distill.publishing.publisher.push_all", lambda *_: pytest.fail("pushed"))
    run.model.cls_classifier.bias.data[2] = NAN
    with pytest.raises(InputError, match="not finite"):
        run.push_to_hub()


def test_a_student_that_starts_from_nan_stops_before_anything_is_saved(tmp_path):
    model = student()
    model.cls_classifier.bias.data[2] = NAN
    run = trainer(tmp_path / "out", model, CountingTeacher(), max_steps=50, max_nonfinite_steps=2)
    with pytest.raises(InputError, match="2 steps in a row.*student's weights are not finite before the step"):
        run.train()


# --- the guard alone --------------------------------------------------------------------------------------------------


def decide(guard, norm, number=1, scaler=None):
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.full((3,), norm)
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    module = torch.nn.Module()
    module.weight = weight
    guard.decide(number, module, optimizer, weight.grad.norm(), scaler)
    if scaler is None:
        optimizer.step()
    return weight.detach()


def test_the_loss_is_unchanged_bit_for_bit_if_it_is_finite():
    guard = FiniteGuard(3)
    loss = torch.tensor(0.1234567, requires_grad=True)
    watched = guard.watch(loss, {"label_loss": loss}, {})
    watched.backward()
    assert torch.equal(watched, loss) and loss.grad == 1.0


def test_a_loss_that_is_not_finite_spoils_the_gradient_so_that_all_processes_see_it():
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    loss = weight.sum() + torch.tensor(float("inf"))
    FiniteGuard(3).watch(loss, {"label_loss": loss}, {}).backward()
    assert weight.grad.isnan().all()


class Scaler:
    """As much of a gradient scaler as is looked at."""

    def __init__(self, scale):
        self._scale = torch.tensor(scale)


def test_overflows_while_the_scale_settles_are_the_scalers_affair():
    guard = FiniteGuard(1)
    decide(guard, NAN, scaler=Scaler(512.0))
    assert guard.num_skipped == 0
    with pytest.raises(InputError, match="1 steps in a row"):
        decide(guard, NAN, scaler=Scaler(1.0))


def test_verdicts_may_be_read_later_and_nothing_changed_meanwhile(monkeypatch):
    guard = FiniteGuard(2)
    monkeypatch.setattr(guard, "read", lambda leave=0: None)
    changed = [not torch.equal(decide(guard, norm, number), torch.ones(3)) for number, norm in enumerate((1.0, NAN))]
    assert changed == [True, False]
    assert guard.num_skipped == 0
    monkeypatch.undo()
    guard.read(leave=1)
    assert guard.num_skipped == 0
    guard.read()
    assert guard.num_skipped == 1


@settings(max_examples=50, deadline=None)
@given(st.sets(st.integers(0, 20), max_size=7))
def test_few_positions_are_all_named(positions):
    named = set()
    for part in shorten(positions).split(", ") if positions else ():
        first, _, last = part.partition("-")
        named.update(range(int(first), int(last or first) + 1))
    assert named == positions


def test_positions_are_named_shortly():
    assert shorten([3, 1, 2, 2, 9, 11, 12]) == "1-3, 9, 11-12"
    assert shorten(range(0, 200, 2)) == "0, 2, 4, 6, 8, 10, 12, ... 198"
    assert shorten([]) == ""


def test_a_share_of_sharded_weights_asks_the_others(monkeypatch):
    monkeypatch.setattr("modeling_deit_distill.weights.gather_object", lambda flags: [*flags, True])
    with pytest.raises(InputError, match="step 3: .*those of another process"):
        check_finite_weights([("weight", torch.ones(2))], "step 3", "lower the rate", is_sharded=True)
    check_finite_weights([("weight", torch.ones(2)), ("steps", torch.tensor(3))], "step 3", "lower the rate")
