"""The card where files are missing, names are odd or the writing fails."""

import json
import re
import runpy
import subprocess
import sys

import pytest
from helpers.cards import RECORD, assert_no_trace_of_what_is_missing, card_of, classes, section
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modeling_deit_distill import InputError
from modeling_deit_distill.output_folder import CURVES
from modeling_deit_distill.publishing.card import main, write_card_and_curves, write_model_card

# What is missing


def test_a_configuration_alone_makes_a_card(bare):
    card = card_of(bare())
    assert "# a-folder" in card.text and 'model="a-folder"' in card.text
    assert card.data.eval_results is None and card.data.base_model is None and card.data.datasets is None
    assert "%" not in section(card.text, "How to use it") and "## How good it is" not in card.text
    assert_no_trace_of_what_is_missing(card.text)


FILES = ["all_results", "predictions", "run", "trainer_state", "preprocessor_config"]


@settings(max_examples=32, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(missing=st.sets(st.sampled_from(FILES)))
@pytest.mark.slow
def test_any_files_may_be_missing(run, missing):
    folder = run()
    for name in missing:
        (folder / f"{name}.json").unlink()
    card = card_of(folder)
    has_accuracy = not {"all_results", "trainer_state"} <= missing  # the log knows it too
    assert_no_trace_of_what_is_missing(card.text)
    assert ("differs from" in card.text) == ("predictions" not in missing)
    assert ("interval" in card.text) == ("predictions" not in missing and has_accuracy)
    assert bool(card.data.eval_results) == ("run" not in missing and has_accuracy)
    assert ("```yaml" in card.text) == ("run" not in missing)


@pytest.mark.slow
def test_any_part_of_the_record_may_be_missing(run):
    for name in RECORD:
        for value in ("absent", None, ""):
            record = {key: each for key, each in RECORD.items() if key != name}
            if value != "absent":
                record[name] = value
            assert_no_trace_of_what_is_missing(card_of(run(run=record)).text)


def test_empty_predictions_are_none(run):
    text = card_of(run(predictions={"labels": [], "fused": []})).text
    assert "differs from" not in text
    assert_no_trace_of_what_is_missing(text)


def test_a_checkpoint_of_a_run_under_way_says_so(run):
    card = card_of(run(all_results=None, predictions=None, run={**RECORD, "native": True}))
    expected = "It is right on **50.00 %** of the held-out images, after 2 epochs of 10."
    assert f"Training is still under way. {expected}" in card.text
    assert "| finished |" not in card.text
    assert 'revision="native"' not in card.text  # pushed at the end
    assert [result.metric_value for result in card.data.eval_results] == [0.5]
    assert_no_trace_of_what_is_missing(card.text)


# Odd names


def test_class_names_are_taken_for_no_markup(run):
    odd = ["# a|b", "two\nlines", "<script>x</script>", "*star_ [link](http://x) `code`", "$\\frac$ & ~~gone~~"]
    text = card_of(run(classes(odd))).text
    expected = (
        r"\# a\|b, two lines, &lt;script&gt;x&lt;/script&gt;, \*star\_ \[link\](http://x) \`code\`, "
        r"\$\\frac\$ &amp; \~\~gone\~\~."
    )
    assert f"5 classes: {expected}" in text
    assert r"| \# a\|b | two lines | 1 | 25.00 % |" in text
    assert "<script>" not in text


def test_a_bar_in_a_fact_keeps_the_table_whole(run):
    text = card_of(run(run={"facts": {"classes": "2: cat|dog, cow\nand more"}})).text
    assert r"| classes | 2: cat\|dog, cow and more |" in text.splitlines()


def test_a_fence_in_a_command_does_not_end_its_block(run):
    text = card_of(run(run={"command": "echo '\n```\n# heading'"})).text
    assert "````bash\necho '\n```\n# heading'\n````\n" in text


def test_braces_in_names_are_no_template(run):
    text = card_of(run(classes(["{{ name }}", "{% if %}"]), predictions=None)).text
    assert "{{ name }}, {% if %}" in text


# Writing it


def test_a_card_is_replaced_as_a_whole(run, monkeypatch):
    output_dir = run()
    before = write_model_card(output_dir).read_bytes()

    def break_off(card, path):
        path.write_text("half of a card")
        raise KeyboardInterrupt

    monkeypatch.setattr(ModelCard, "save", break_off)
    with pytest.raises(KeyboardInterrupt):
        write_model_card(output_dir)
    assert (output_dir / "README.md").read_bytes() == before


@pytest.mark.slow
def test_it_is_rebuilt_from_the_folder_by_a_command(run):
    output_dir = run()
    card, curves = write_card_and_curves(output_dir).read_bytes(), (output_dir / CURVES).read_bytes()
    (output_dir / "README.md").unlink()
    (output_dir / CURVES).unlink()
    command = [sys.executable, "-m", "modeling_deit_distill.model_card", str(output_dir)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"wrote {output_dir / 'README.md'}\n"
    assert (output_dir / "README.md").read_bytes() == card
    assert (output_dir / CURVES).read_bytes() == curves


def test_curves_stay_where_there_is_no_log(run):
    output_dir = run(trainer_state=None)
    (output_dir / CURVES).write_bytes(b"drawn before")
    assert main([str(output_dir)]) == 0
    assert (output_dir / CURVES).read_bytes() == b"drawn before"


def test_a_folder_without_a_model_is_an_error_of_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["model_card", str(tmp_path / "nowhere")])
    monkeypatch.delitem(sys.modules, "modeling_deit_distill.model_card", raising=False)  # or runpy would warn
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("modeling_deit_distill.model_card", run_name="__main__")
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert re.fullmatch(r"error: '.*nowhere' holds no config.json; give the output_dir of a run.*\n", said.err)


def test_predictions_that_fit_nothing_are_refused(run):
    for predictions, words in (
        ({"labels": [0, 1], "fused": [0]}, "all of one length"),
        ({"labels": [0, 1]}, "must hold labels and fused"),
        ({"labels": [0, 1], "fused": [0, 5]}, "fused are not class indices below 5"),
        ({"labels": [0, 1], "fused": [0.5, 1.0]}, "fused are not class indices"),
        ([0, 1], "holds a list"),
    ):
        with pytest.raises(InputError, match=words):
            write_model_card(run(predictions=predictions))


def test_a_broken_file_is_named(run):
    output_dir = run()
    (output_dir / "run.json").write_text("{half")
    with pytest.raises(InputError, match=r"run\.json' is no JSON .*; remove it"):
        write_model_card(output_dir)


def test_a_model_of_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(InputError, match="holds a 'vit' model"):
        write_model_card(tmp_path)
