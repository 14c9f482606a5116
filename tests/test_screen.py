"""What is seen of a training while it runs, on a terminal and in a log; by hand and from real trainings."""

import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers.trainers import CountingTeacher, Images, trainer
from transformers import ProgressCallback
from transformers.trainer_callback import PrinterCallback

from modeling_deit_distill.screen import LogFile, Screen, Table, columns_of, show, steps_between_lines

COLUMNS = {"held out": "eval_accuracy", "teacher agrees": "eval_teacher_agreement"}


def test_the_table_by_hand():
    table = Table("epoch", COLUMNS)
    assert table.header() == "     epoch      loss  held out  teacher agrees  time left"
    figures = {"eval_accuracy": 0.98611, "eval_loss": 3.0}
    expected = "         1    0.5124   98.61 %               -  1 min 15 s"
    assert table.line("1", 0.51239, figures, 75.0) == expected
    assert table.line("2.5", None, {}, 0).split() == ["2.5", "-", "-", "-", "0", "s"]


@pytest.mark.parametrize(
    ("max_steps", "steps_per_epoch", "expected"),
    [
        (60, 20, 20),
        (20, 20, 20),
        (3, 20, 1),  # less than an epoch
        (15, 20, 2),
        (375_300, 1251, 626),  # ImageNet: two lines an epoch
        (100, None, 10),  # a stream
        (1_000_000, None, 1000),
    ],
)
def test_how_often_a_line_comes(max_steps, steps_per_epoch, expected):
    assert steps_between_lines(max_steps, steps_per_epoch) == expected


def test_columns_of_a_run():
    args = SimpleNamespace(weight_average_decay=None, distillation_type="none")
    assert list(columns_of(args)) == ["held out"]
    args = SimpleNamespace(weight_average_decay=0.9, distillation_type="soft")
    assert list(columns_of(args)) == ["held out", "average", "teacher agrees"]


def shown(tmp_path, capsys, **arguments) -> tuple[list[str], list[list[str]], object]:
    """A training's heading and names of columns, and the cells of its lines; four steps are an epoch."""
    settings = {"max_steps": -1, "num_train_epochs": 3, "logging_steps": 100, "eval_strategy": "epoch", **arguments}
    made = trainer(tmp_path, teacher=CountingTeacher(), **settings)
    made.evaluate_teacher()
    show(made, "2 of 2: student", COLUMNS, str(tmp_path), made.progress.loss_so_far)
    capsys.readouterr()
    made.train()
    printed = capsys.readouterr()
    assert "{" not in printed.out and "\r" not in printed.out and "training" not in printed.err
    lines = printed.out.strip().splitlines()
    return lines[:2], [re.split("  +", line.strip()) for line in lines[2:]], made


def test_a_line_an_epoch(tmp_path, capsys):
    head, lines, made = shown(tmp_path, capsys)
    assert head == ["2 of 2: student, 3 epochs, 12 steps", Table("epoch", COLUMNS).header()]
    assert [line[0] for line in lines] == ["1", "2", "3"]
    evaluations = [entry for entry in made.state.log_history if "eval_accuracy" in entry]
    for line, entry in zip(lines, evaluations, strict=True):
        assert line[2:4] == [f"{100 * entry['eval_accuracy']:.2f} %", f"{100 * entry['eval_teacher_agreement']:.2f} %"]
    assert lines[-1][-1] == "0 s"
    # nothing was logged within 12 steps: the mean loss is that of all steps all the same
    final = next(entry for entry in made.state.log_history if "train_loss" in entry)
    assert sum(float(line[1]) for line in lines) / 3 == pytest.approx(final["train_loss"], abs=2e-4)


def test_without_evaluations(tmp_path, capsys):
    head, lines, _ = shown(tmp_path, capsys, eval_strategy="no", num_train_epochs=2)
    assert head[1] == Table("epoch", {}).header()
    assert [line[0] for line in lines] == ["1", "2"] and all(len(line) == 3 for line in lines)


def test_evaluations_by_steps(tmp_path, capsys):
    _, lines, _ = shown(tmp_path, capsys, eval_strategy="steps", eval_steps=2, num_train_epochs=2)
    assert [line[0] for line in lines] == ["0.5", "1", "1.5", "2"]
    assert all("-" not in line for line in lines)
    _, lines, _ = shown(tmp_path, capsys, eval_strategy="steps", eval_steps=8, num_train_epochs=3)
    assert [(line[0], line[2] == "-") for line in lines] == [("1", True), ("2", False), ("3", False)]


def test_less_than_an_epoch(tmp_path, capsys):
    head, lines, _ = shown(tmp_path, capsys, max_steps=3, eval_strategy="no")
    assert head[0] == "2 of 2: student, 3 steps"
    assert [line[0] for line in lines] == ["1", "2", "3"]


def test_steps_that_end_within_an_epoch(tmp_path, capsys):
    head, lines, _ = shown(tmp_path, capsys, max_steps=6)
    assert head[0] == "2 of 2: student, 1.5 epochs, 6 steps"
    assert [line[0] for line in lines] == ["1", "1.5"]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        while True:
            yield from (Images(8)[row] for row in range(8))


def test_a_stream(tmp_path, capsys):
    made = trainer(tmp_path, teacher=CountingTeacher(), max_steps=4, eval_strategy="steps", eval_steps=2)
    made.train_dataset = Stream()
    show(made, "student", COLUMNS, str(tmp_path), made.progress.loss_so_far)
    made.train()
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[:2] == ["student, 4 steps", Table("step", COLUMNS).header()]
    assert [line.split()[0] for line in lines[2:]] == ["1", "2", "3", "4"]


def test_a_resumed_run_says_where_it_goes_on(tmp_path, capsys):
    shown(tmp_path, capsys, num_train_epochs=3, save_strategy="epoch")
    made = trainer(tmp_path, teacher=CountingTeacher(), max_steps=-1, num_train_epochs=3, logging_steps=100)
    show(made, "student", COLUMNS, str(tmp_path), made.progress.loss_so_far)
    made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0] == "student, 3 epochs, 12 steps, from step 8 on"
    assert [line.split()[0] for line in lines[2:]] == ["3"]


def test_trainers_dictionaries_go_to_the_log_file(tmp_path, capsys):
    _, _, made = shown(tmp_path, capsys, num_train_epochs=1, logging_steps=2)
    kinds = {type(each) for each in made.callback_handler.callbacks}
    assert {Screen, LogFile} < kinds and not kinds & {PrinterCallback, ProgressCallback}
    written = [json.loads(line) for line in (tmp_path / "train_log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in written] == [2, 4, 4, 4]
    for entry, kept in zip(written, made.state.log_history, strict=True):
        assert entry.pop("phase") == "2 of 2: student" and entry.pop("time")
        assert entry == kept


def events(screen, is_main=True, evaluation=()):
    """An epoch of two steps, as Trainer tells it."""
    state = SimpleNamespace(global_step=0, max_steps=2, epoch=0.0, num_train_epochs=1, is_world_process_zero=is_main)
    args = SimpleNamespace(gradient_accumulation_steps=1, eval_strategy="epoch", disable_tqdm=False)
    control = SimpleNamespace(should_evaluate=False)
    screen.on_train_begin(args, state, control, train_dataloader=[0, 1])
    for step in (1, 2):
        state.global_step, state.epoch = step, step / 2
        screen.on_step_end(args, state, control)
    screen.on_epoch_end(args, state, SimpleNamespace(should_evaluate=True))
    for _ in evaluation:
        screen.on_prediction_step(args, state, control, eval_dataloader=evaluation)
    screen.on_log(args, state, control, {"eval_accuracy": 0.5})
    screen.on_evaluate(args, state, control)
    screen.on_train_end(args, state, control)


def test_only_the_main_process_prints_and_all_ask_for_the_loss(capsys):
    asked = []
    events(Screen("student", COLUMNS, lambda step: asked.append(step) or 0.0), is_main=False)
    assert capsys.readouterr() == ("", "") and asked == [0, 2]


def test_the_bars_are_on_a_terminal_alone(capsys, monkeypatch):
    events(Screen("student", COLUMNS), evaluation=range(3))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    events(Screen("student", COLUMNS), evaluation=range(3))
    printed = capsys.readouterr()
    assert "training" in printed.err and "2/2" in printed.err and "left" in printed.err
    assert "held-out images" in printed.err
    assert "\r" not in printed.out and "50.00 %" in printed.out


def test_without_show_a_trainer_keeps_its_own_display(tmp_path):
    kinds = {type(each) for each in trainer(tmp_path, teacher=CountingTeacher()).callback_handler.callbacks}
    assert PrinterCallback in kinds and Screen not in kinds
