"""How long a run will take, estimated from a few steps; by hand, with a clock of our own."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_deit_distill.dry_run import SECONDS, STEPS, Costs, Counts, Stopwatch, estimate, occasions


class Clock:
    """A clock that only `pass_by` moves."""

    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds


def timed(steps_per_epoch, max_steps, wait, step, epoch_start=0.0, first=0.0, ahead=0, share=1.0, batches=4):
    """A training by the clock: its costs, and how many steps it took. Waiting for a ready batch takes no time."""
    clock = Clock()
    stopwatch = Stopwatch(ahead, share, clock)
    state, control = SimpleNamespace(global_step=0, max_steps=max_steps), SimpleNamespace(should_training_stop=False)
    args = SimpleNamespace(device=SimpleNamespace(type="cpu"))
    while not control.should_training_stop:
        if state.global_step % steps_per_epoch == 0:
            stopwatch.on_epoch_begin(args, state, control)
            clock.seconds += epoch_start
        clock.seconds += wait if state.global_step >= ahead else 0.0
        stopwatch.on_step_begin(args, state, control)
        clock.seconds += step + (first if state.global_step == 0 else 0.0)
        state.global_step += 1
        stopwatch.on_step_end(args, state, control)
    assert control.should_evaluate and control.should_save
    clock.seconds += 2.0  # workers start
    for _ in range(batches):
        clock.seconds += 0.5
        stopwatch.on_prediction_step(args, state, control)
    stopwatch.on_evaluate(args, state, control)
    clock.seconds += 0.25
    stopwatch.on_save(args, state, control)
    return stopwatch.costs(), state.global_step


def test_the_first_step_counts_once_and_so_does_the_start_of_each_epoch():
    costs, _ = timed(steps_per_epoch=10, max_steps=1000, wait=0.5, step=1.0, epoch_start=3.0, first=7.0)
    assert costs.start == pytest.approx(7.0)
    assert costs.epoch_start == pytest.approx(3.0)
    assert costs.step == pytest.approx(1.5)
    assert costs.saving == pytest.approx(0.25)
    # 20 steps in 2 epochs: 7 + 2 · 3 + 20 · 1.5, with one evaluation and two checkpoints
    counts = Counts(steps=20, epochs=2, evaluations=1, savings=2)
    assert costs.of(counts) == pytest.approx(43.0 + costs.evaluation + 0.5)


def test_steps_that_ask_the_teacher_take_their_own_time():
    # 3 of 10 steps of 5 s, the others of 1 s, and a start of 7 s
    costs = Costs(start=7.0, epoch_start=0.0, step=1.0, evaluation=0.0, saving=0.0, asking_step=5.0)
    counts = Counts(steps=10, epochs=2, evaluations=0, savings=0, asking_steps=3)
    assert costs.of(counts) == pytest.approx(7.0 + 3 * 5.0 + 7 * 1.0)
    words = "3 steps of 5 s asking the teacher, 7 steps of 1 s"
    assert estimate({"student": (costs, counts)}) == f"  student  29 s  {words}"


def test_batches_that_lie_ready_do_not_count():
    costs, num_steps = timed(steps_per_epoch=1000, max_steps=1000, wait=0.9, step=0.1, ahead=8)
    assert costs.step == pytest.approx(1.0) and num_steps > 8 + STEPS


def test_at_least_three_steps_and_some_seconds():
    assert timed(steps_per_epoch=100, max_steps=100, wait=0.0, step=60.0)[1] == 1 + STEPS
    assert timed(steps_per_epoch=100, max_steps=100, wait=0.0, step=60.0, ahead=8)[1] == 2 + STEPS
    assert timed(steps_per_epoch=100, max_steps=100, wait=0.0, step=1.0)[1] == 1 + SECONDS


@pytest.mark.parametrize(("steps_per_epoch", "max_steps"), [(1, 1), (2, 2), (1, 30), (3, 4), (100, 100)])
@pytest.mark.parametrize("epoch_start", [0.0, 2.0])
def test_short_trainings_and_epochs(steps_per_epoch, max_steps, epoch_start):
    costs, num_steps = timed(steps_per_epoch, max_steps, wait=0.5, step=1.0, epoch_start=epoch_start)
    epochs = -(-num_steps // steps_per_epoch)
    expected = epochs * epoch_start + num_steps * 1.5
    assert costs.of(Counts(num_steps, epochs, 0, 0)) == pytest.approx(expected)


def test_an_evaluation_of_some_images_tells_of_all():
    # 2 s until workers are there, 0.5 s a batch
    assert timed(10, 10, 0.0, 1.0, batches=4)[0].evaluation == pytest.approx(2.0 + 4 * 0.5)
    assert timed(10, 10, 0.0, 1.0, batches=4, share=0.1)[0].evaluation == pytest.approx(2.0 + 40 * 0.5)
    assert timed(10, 10, 0.0, 1.0, batches=1)[0].evaluation == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("strategy", "every", "expected"),
    [("no", 10, 0), ("epoch", 500, 5), ("best", 500, 5), ("steps", 22, 5), ("steps", 30, 4), ("steps", 0.1, 10)],
)
def test_how_often_trainer_evaluates_by_hand(strategy, every, expected):
    assert occasions(strategy, every, num_steps=110, num_epochs=5) == expected


@given(every=st.integers(1, 50), num_steps=st.integers(1, 200))
def test_evaluations_by_steps_are_the_multiples_and_the_last(every, num_steps):
    at = {step for step in range(1, num_steps + 1) if step % every == 0} | {num_steps}
    assert occasions("steps", every, num_steps, 1) == len(at)


def test_the_words():
    costs = Costs(start=1.0, epoch_start=0.0, step=0.115, evaluation=0.5, saving=0.25)
    one = estimate({"student": (costs, Counts(1000, 10, 0, 0))})
    assert one == "  student  1 min 56 s  1,000 steps of 0.12 s"
    lines = estimate(
        {"1 of 2: teacher": (costs, Counts(1000, 10, 10, 0)), "2 of 2: student": (costs, Counts(1, 1, 1, 1))}
    ).splitlines()
    assert lines[0].split("  ")[1:] == [
        "1 of 2: teacher",
        "2 min 01 s",
        "1,000 steps of 0.12 s, 10 evaluations of 0.5 s",
    ]
    assert lines[1].endswith("1 step of 0.12 s, 1 evaluation of 0.5 s, 1 checkpoint of 0.25 s")
    assert lines[2].split() == ["in", "all", "2", "min", "03", "s"]
