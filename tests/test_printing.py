"""Names from files of others, on their way to the terminal."""

import logging
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_deit_distill.errors import CONTROLS, InputError, printable_lines
from modeling_deit_distill.report import say
from modeling_deit_distill.script import run_script

FIRST = SimpleNamespace(process_index=0)
NAME = "cat\x1b[2J\x1b]0;title\x07\u202e"
SAFE = "cat\\x1b[2J\\x1b]0;title\\x07\\u202e"


@given(st.text())
def test_lines_stay_and_nothing_in_them_is_a_control(text):
    safe = printable_lines(text)
    assert safe.count("\n") == text.count("\n")
    assert not CONTROLS.search(safe.replace("\n", ""))
    assert CONTROLS.search(text.replace("\n", "")) or safe == text


def test_what_is_said(capsys):
    say(FIRST, f"classes {NAME}", f"one\n{NAME}")
    assert capsys.readouterr().out == f"\nclasses {SAFE}\none\n{SAFE}\n"


def test_what_is_logged_and_the_error_in_the_end(capsys, caplog):
    logger, other = logging.getLogger("modeling_deit_distill.data.bad_images"), logging.getLogger("others")

    def main(words):
        logger.warning("%s cannot be read: %d bytes", NAME, 3)
        logger.warning(f"100 % of {NAME}")
        other.warning("\x1b[31mcolours of another library")
        raise InputError(f"{NAME} is no class")

    with pytest.raises(SystemExit):
        run_script(main, [])
    ours, percent, theirs = (record.getMessage() for record in caplog.records)
    assert ours == f"{SAFE} cannot be read: 3 bytes" and percent == f"100 % of {SAFE}" and "\x1b" in theirs
    assert capsys.readouterr().err == f"error: {SAFE} is no class\n"
    logger.warning(NAME)
    assert caplog.records[-1].getMessage() == NAME  # in a library user's program, logs are the user's
