"""The thread that pushes: its order, and waiting for it by a clock of the test's."""

import threading

import pytest

from modeling_deit_distill import InputError
from modeling_deit_distill.publishing.pushes import Pushes
from modeling_deit_distill.script import LEFT_BEHIND


class Clock:
    """Seconds that pass where somebody waits; `after[seconds]()` is called when they have passed."""

    def __init__(self, **after):
        self.now, self.after = 0.0, after.get("after", {})

    def __call__(self):
        return self.now

    def wait(self, pushes, timeout):
        self.now += timeout
        for moment in [moment for moment in self.after if moment <= self.now]:
            self.after.pop(moment)()
            pushes[0].exception()  # it is on its way


def test_pushes_run_one_after_the_other_and_their_results_come_back():
    pushes, order = Pushes(10), []
    jobs = [pushes.submit(order.append, number) for number in range(20)]
    last = pushes.submit(lambda: "commit")
    assert pushes.result(last, "push") == "commit"
    assert order == list(range(20)) and all(job.done() for job in jobs)


def test_a_line_every_half_minute_and_the_result(capsys):
    go_on = threading.Event()
    clock = Clock(after={100: go_on.set})
    pushes = Pushes(600, clock.wait, clock)
    assert pushes.result(pushes.submit(go_on.wait), "push to 'me/model'")
    assert clock.now == 120
    assert capsys.readouterr().out.splitlines() == [
        f"waiting for the Hub: push to 'me/model', for {waited} of at most 10 min 00 s"
        for waited in ("30 s", "1 min 00 s", "1 min 30 s")
    ]


def test_the_wait_ends_and_what_hangs_is_left_behind(capsys):
    release, clock = threading.Event(), Clock()
    pushes = Pushes(70, clock.wait, clock)
    hanging, behind = pushes.submit(release.wait), pushes.submit(lambda: None)
    with pytest.raises(InputError, match="^push is not done after 1 min 10 s; run the same command again.*hub_max"):
        pushes.result(behind, "push")
    assert clock.now == 70 and capsys.readouterr().out.count("\n") == 3
    pushes.drain()  # at the end of the process
    assert clock.now == 70
    assert pushes.submit(lambda: "later").result() == "later"
    assert not hanging.done()
    release.set()


def test_at_the_end_of_the_process_what_is_under_way_is_waited_for(caplog):
    release, clock = threading.Event(), Clock()
    pushes = Pushes(70, clock.wait, clock)
    pushes.submit(release.wait)
    clock.after[10] = release.set
    pushes.drain()
    assert clock.now == 30 and not pushes.pending and not caplog.text
    never = threading.Event()
    pushes.submit(never.wait)
    pushes.drain()
    assert clock.now == 100 and "the last push of training is not done" in caplog.text
    never.set()


def test_a_failure_is_raised_and_does_not_end_the_thread():
    pushes = Pushes(10)
    failing = pushes.submit(int, "x")
    assert pushes.result(pushes.submit(lambda: 1), "push") == 1
    with pytest.raises(ValueError, match="invalid literal"):
        failing.result()


def test_the_end_of_a_process_is_hastened_by_a_push_under_way_alone():
    started, release, pushes = threading.Event(), threading.Event(), Pushes(10)
    push = pushes.submit(lambda: (started.set(), release.wait()))
    started.wait()
    assert pushes._thread.name == LEFT_BEHIND
    release.set()
    push.result()
    pushes.submit(lambda: None).result()
    assert pushes.result(pushes.submit(lambda: pushes._thread.name), "push") == LEFT_BEHIND
    assert not pushes._thread.is_alive() and pushes._thread.name != LEFT_BEHIND


def test_the_thread_ends_when_nothing_is_left_to_push():
    pushes = Pushes(10)
    pushes.result(pushes.submit(lambda: None), "push")
    assert not pushes._thread.is_alive()
