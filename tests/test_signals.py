"""Signals that end a command: one line and the right exit code, a second Ctrl-C at once, nothing of what is ignored."""

import os
import pty
import signal
import subprocess
import sys
import threading

import pytest
from helpers.paths import ROOT

from modeling_deit_distill import signals
from modeling_deit_distill.script import run_script
from modeling_deit_distill.signals import ENDING, Interrupted, handling, leave


@pytest.fixture(autouse=True)
def as_from_a_terminal():
    """A job in the background ignores Ctrl-C, and its tests would too."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in ENDING}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_a_signal_is_one_line_and_128_plus_its_number(number, capsys):
    with pytest.raises(SystemExit) as ended:
        run_script(lambda words: signal.raise_signal(number), [])
    assert ended.value.code == 128 + number
    assert capsys.readouterr() == (f"interrupted by {number.name}\n", "")


def test_only_the_first_signal_raises(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: clock[0])
    with pytest.raises(Interrupted), handling(leave, takes_ctrl_c=True):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)  # a launcher says it again
            clock[0] = 6.0
            with pytest.raises(Interrupted):  # the end of it hangs, say
                signal.raise_signal(signal.SIGTERM)


def test_while_one_handler_is_left_the_outer_one_takes_no_signal():
    with pytest.raises(Interrupted) as ended, handling(leave, takes_ctrl_c=True):
        try:
            with handling(leave):
                raise Interrupted(signal.SIGUSR1)  # what several processes agreed on
        finally:
            signal.raise_signal(signal.SIGTERM)  # of the launcher, after another process has ended
    assert ended.value.number == signal.SIGUSR1


class Dies:
    """Gets a signal while it is destroyed."""

    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_in_a_destructor_is_not_lost(capfd):
    with pytest.raises(Interrupted), handling(leave, takes_ctrl_c=True):
        dies = Dies()
        del dies
        threading.Event().wait(60)
        pytest.fail("the signal was lost")
    assert capfd.readouterr() == ("", "")


def test_what_is_ignored_stays_ignored_and_handlers_come_back():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as by nohup
    heard = []
    with handling(heard.append, takes_ctrl_c=True):
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGUSR1)
    assert heard == [signal.SIGUSR1]
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_librarys_user_gets_keyboard_interrupt():
    with pytest.raises(KeyboardInterrupt), handling(leave):
        signal.raise_signal(signal.SIGINT)


def test_an_echo_of_the_launcher_is_no_second_ctrl_c(monkeypatch):
    clock, heard, ended = [0.0], [], []
    monkeypatch.setattr(signals.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(signals, "_end_at_once", ended.append)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with handling(heard.append, takes_ctrl_c=True):
        for clock[0] in (0.0, 0.1, 3.0):
            signal.raise_signal(signal.SIGINT)
    assert ended == [signal.SIGINT] and len(heard) == 3
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    with handling(heard.append, takes_ctrl_c=True):
        for clock[0] in (10.0, 10.1):
            signal.raise_signal(signal.SIGINT)
    assert len(ended) == 2


def test_a_ctrl_c_that_was_noted_and_is_passed_on_is_no_second_one(monkeypatch):
    noted, ended = [], []
    monkeypatch.setattr(signals, "_end_at_once", ended.append)
    with pytest.raises(Interrupted), handling(leave, takes_ctrl_c=True):
        with handling(noted.append):
            signal.raise_signal(signal.SIGINT)
        signals.pass_on(*noted)
    assert noted == [signal.SIGINT] and not ended
    with pytest.raises(Interrupted):
        signals.pass_on(signal.SIGTERM)


TWICE = """
import signal, sys
from modeling_deit_distill.signals import handling
signal.signal(signal.SIGINT, signal.default_int_handler)
with handling(lambda number: None, takes_ctrl_c=True):
    signal.raise_signal(signal.SIGINT)
    print("after the first", flush=True)
    signal.raise_signal(signal.SIGINT)
    print("after the second", flush=True)
"""


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once():
    done = subprocess.run([sys.executable, "-c", TWICE], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 130 and done.stderr == ""
    assert done.stdout.split("\n")[0] == "after the first"
    assert done.stdout.endswith("interrupted by a second Ctrl-C: stopped at once; checkpoints made before are whole\n")


def test_nothing_is_written_to_a_terminal_that_was_closed(tmp_path):
    process, terminal = pty.fork()
    if not process:
        code = 1
        try:
            ready = open(tmp_path / "ready", "w")  # noqa: SIM115
            heard = []
            with handling(heard.append):
                os.write(1, b"ready")
                while not heard:  # until the terminal is closed
                    pass
                print("written nowhere", flush=True)
                print("this neither", file=sys.__stderr__, flush=True)
                ready.write("went on")
                ready.close()
            code = 0
        finally:
            os._exit(code)
    os.read(terminal, 5)
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert (tmp_path / "ready").read_text() == "went on"
