"""The script with several teachers: live, from a store, and what is recorded of them."""

import json
import re

import pytest
from helpers import runs
from helpers.runs import RECIPE, without_teacher, words_of
from helpers.teachers import save_resnet

import train_deit
from modeling_deit_distill.arguments import ModelArguments
from modeling_deit_distill.teachers.ensemble import load_teachers
from modeling_deit_distill.teachers.store import TeacherStore


@pytest.fixture(scope="module")
def two(run, tmp_path_factory):
    """A teacher that has learned the colours, and one that has not."""
    folder = tmp_path_factory.mktemp("two") / "teacher"
    save_resnet(folder, ["red", "green", "blue"])
    return [str(run[0] / "teacher"), str(folder)]


def taught(photos, folder, teachers, **changes):
    """A short run with several teachers; its results and the student's bytes."""
    own = {key: value for key, value in RECIPE.items() if not key.startswith("teacher_")}
    given = {"train_teacher": "false", "max_steps": 6, "eval_strategy": "no", "save_strategy": "no", **changes}
    where = {"train_dir": photos, "validation_fraction": 0.25, "output_dir": folder}
    train_deit.main([*words_of({**own, **given, **where}), "--teacher_name_or_path", *teachers])
    return json.loads((folder / "all_results.json").read_text()), (folder / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_weights_are_the_same_live_and_from_the_store(two, photos, tmp_path, monkeypatch, kind):
    settings = {"teacher_store": tmp_path / "answers", "distillation_type": kind}
    written, weights = taught(photos, tmp_path / "written", two, **settings)
    if kind == "hard":
        live, unstored = taught(photos, tmp_path / "live", two)
        assert unstored == weights and live["teacher_views_asked"] == written["teacher_views_asked"] == 6 * 8
    monkeypatch.setattr("modeling_deit_distill.plan.load_teachers", None)
    read, again = taught(photos, tmp_path / "read", two, **settings)
    assert again == weights and read["teacher_views_asked"] == 0
    for key in ("teacher_accuracy", "teacher_1_accuracy", "teacher_2_accuracy"):
        assert 0 <= read[key] == written[key] <= 1
    monkeypatch.setattr(runs, "RECIPE", without_teacher())
    where = {"train_dir": photos, "validation_fraction": 0.25, "output_dir": tmp_path / "unnamed", **settings}
    train_deit.main(runs.arguments(**where, max_steps=6, eval_strategy="no", save_strategy="no"))
    assert (tmp_path / "unnamed" / "model.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_all_teachers_are_named_and_their_cost_is_the_sum(two, photos, tmp_path, capsys):
    results, _ = taught(photos, tmp_path / "out", two)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"teacher the mean probability of 2: {two[0]}, {two[1]}" in printed
    alone = [100 * results[f"teacher_{number}_accuracy"] for number in (1, 2)]
    assert re.search(rf"teacher 1 alone {alone[0]:.2f} % \(\S*/?teacher\) teacher 2 alone {alone[1]:.2f} %", printed)
    assert "views the teachers were asked about 48, by each of 2: 96 answers" in printed
    assert "ensemble of 2 teachers" in printed
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"its ensemble of 2 teachers on {100 * results['teacher_accuracy']:.2f}" in card
    assert re.search(r"\| teacher 2 alone \| +[\d.]+ % \(two\d+/teacher\) +\|", card)
    assert str(tmp_path) not in card and "48, by each of 2: 96 answers" in card
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert len(set(record["teachers"])) == 2 and record["teacher"] is None
    whole = load_teachers(ModelArguments(teacher_name_or_path=two), ["blue", "green", "red"], 16)
    assert results["teacher_num_parameters"] == sum(weights.numel() for weights in whole.parameters())


@pytest.mark.slow
def test_a_list_in_a_recipe_and_rounds_of_views(two, photos, tmp_path, capsys):
    lines = [f"{key}: {json.dumps(value)}" for key, value in {**without_teacher(), "num_train_epochs": 2}.items()]
    lines += [f"teacher_name_or_path: [{', '.join(two)}]", "view_epochs: 1"]
    (tmp_path / "recipe.yaml").write_text("\n".join(lines))
    where = {"train_dir": photos, "validation_fraction": 0.25, "output_dir": tmp_path / "out"}
    train_deit.main([str(tmp_path / "recipe.yaml"), *words_of({**where, "eval_strategy": "no", "save_strategy": "no"})])
    assert "each of 2 teachers is asked about 32 of 64 views" in " ".join(capsys.readouterr().out.split())
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["teacher_views_asked"] == 32
    assert TeacherStore(tmp_path / "out" / "answers").about["teacher"] == two
