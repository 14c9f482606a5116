"""The paper's tables: every command parses, finished runs are not run again."""

import dataclasses
import json
import multiprocessing
import shlex
from pathlib import Path

import numpy as np
import pytest
from helpers.tables import PROFILE, finish, reproduce_tables, tables_paper, tables_report

from modeling_deit_distill import InputError
from modeling_deit_distill.data.sources import load_image_data
from modeling_deit_distill.files import without_folders
from modeling_deit_distill.recipes import parse_arguments, said_arguments
from modeling_deit_distill.student import student_config

NAMES = [str(digit) for digit in range(10)]


def run_of(name: str, *needs: str):
    return reproduce_tables.Run(name, ("recipe.yaml", "--seed", name[-1]), needs)


# The commands


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_every_command_parses_and_describes_a_student(name, monkeypatch):
    monkeypatch.chdir(reproduce_tables.ROOT)
    profile = reproduce_tables.PROFILES[name]
    for run in reproduce_tables.plan(profile, f"outputs/tables/{name}"):
        words = shlex.split(run.command)
        assert words[:4] == ["accelerate", "launch", "--quiet", "train_deit.py"]
        model_args, data_args, args = parse_arguments([*words[4:], "--bf16", "false"])
        if model_args.model_name_or_path is None:
            config = student_config(model_args, args, NAMES)
            kind = run.name.split("-")[0].split("_")[0]
            assert config.use_distillation_token == (kind in ("token", "equal", "deit", "views"))
        assert args.output_dir == f"outputs/tables/{name}/{run.name}" and str(args.seed) == run.name[-1]
        assert args.data_seed == 0 and args.resume_from_checkpoint and args.save_total_limit == 1
        assert data_args.dataset_name.startswith(f"outputs/tables/{name}/data/")


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_runs_come_after_what_they_need_and_every_row_has_its_runs(name):
    profile = reproduce_tables.PROFILES[name]
    planned = []
    for run in reproduce_tables.plan(profile, "out"):
        assert set(run.needs) <= set(planned), run.name
        planned.append(run.name)
    assert len(set(planned)) == len(planned)
    rows = {row.runs for table in tables_paper.TABLES for row in table.rows}
    assert {run.rpartition("-")[0] for run in planned} == rows
    table3 = {row.runs for row in tables_paper.TABLES[0].rows}
    assert all(f"{row}-{seed}" in planned for row in table3 for seed in range(3))


def test_the_recipes_differ_in_sizes_alone():
    sizes = {"output_dir", "num_train_epochs", "warmup_epochs", "bf16", "logging_steps", "save_steps", "patch_size"}
    sizes |= {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "model_size"}
    prefixes = ("teacher_", "per_device_", "image_size", "dataloader_", "keep_", "learning_rate")
    recipes = [
        reproduce_tables.yaml.safe_load((reproduce_tables.ROOT / PROFILE.recipe).read_text())
        for profile in reproduce_tables.PROFILES.values()
    ]
    for key in recipes[0].keys() | recipes[1].keys():
        if key not in sizes and not key.startswith(prefixes):
            assert recipes[0].get(key) == recipes[1].get(key), key


def test_a_subset_is_seen_for_as_many_steps():
    recipe = {"num_train_epochs": 6, "warmup_epochs": 0.5, "teacher_num_train_epochs": 15}
    words = ("--num_train_epochs", "24", "--warmup_epochs", "2", "--teacher_num_train_epochs", "60")
    assert reproduce_tables.as_many_steps(recipe, 25) == words


def test_the_list_is_of_commands_alone(capsys):
    assert reproduce_tables.main(["--profile", "cpu", "--list", "--output_dir", "somewhere"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(
        line.startswith("accelerate launch --quiet train_deit.py examples/recipes/tables_cpu.yaml ") for line in lines
    )
    assert len(lines) == len(reproduce_tables.plan(reproduce_tables.PROFILES["cpu"], "x"))


# The images


def test_subsets_lie_within_each_other_and_keep_the_classes_even(tmp_path):
    small = dataclasses.replace(PROFILE, num_train=1000, num_held_out=100)
    reproduce_tables.prepare_data(small, "digits", tmp_path)
    held_out, images = None, {}
    for name, count in (("10", 100), ("25", 250), ("50", 500), ("all", 1000)):
        data = load_image_data(str(tmp_path / "data" / name))
        assert np.bincount(data.train["label"][:]).tolist() == [count // 10] * 10
        assert np.bincount(data.validation["label"][:]).tolist() == [10] * 10
        images[name] = {row["image"]["bytes"] for row in data.train}
        assert held_out in (None, data.validation["label"][:])
        held_out = data.validation["label"][:]
    assert images["10"] < images["25"] < images["50"] < images["all"]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    reproduce_tables.prepare_data(small, "digits", tmp_path)  # what was written is used again
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    about = tmp_path / "data" / "about.json"
    assert json.loads(about.read_text()) == {"dataset": "digits", "num_train": 1000, "num_held_out": 100}
    others = dataclasses.replace(small, num_held_out=200)
    with pytest.raises(reproduce_tables.Failed, match=r"digits \(1,000 and 100 images\), but letters \(1,000 and 100"):
        reproduce_tables.prepare_data(small, "letters", tmp_path)
    with pytest.raises(reproduce_tables.Failed, match=r"but digits \(1,000 and 200 images\) is asked for; give that"):
        reproduce_tables.prepare_data(others, "digits", tmp_path)
    about.unlink()  # written before there was one: the numbers alone are known
    reproduce_tables.prepare_data(small, "letters", tmp_path)
    with pytest.raises(reproduce_tables.Failed, match="1,000 and 200 images"):
        reproduce_tables.prepare_data(others, "digits", tmp_path)


def test_the_dataset_of_a_local_folder_is_known_by_its_name(tmp_path):
    (tmp_path / "cifar10").mkdir()
    assert reproduce_tables.describe_data(PROFILE, str(tmp_path / "cifar10"))["dataset"] == "cifar10"
    assert reproduce_tables.describe_data(PROFILE, "uoft-cs/cifar10")["dataset"] == "uoft-cs/cifar10"


def test_too_few_images_are_refused(tmp_path):
    with pytest.raises(InputError, match="1,000 images of each class, a class has 15. only; give the whole"):
        reproduce_tables.prepare_data(PROFILE, "digits", tmp_path)
    assert not (tmp_path / "data").exists()


# Running


@pytest.fixture
def recorded(monkeypatch, tmp_path):
    """Runs that only write their names into a file, and finish unless they are to fail."""
    monkeypatch.setattr(reproduce_tables, "start_method", lambda jobs: multiprocessing.get_context("fork"))

    def train(arguments, log, num_threads):
        name = Path(log).stem
        with open(tmp_path / "order.txt", "a") as file:
            file.write(f"{name} {num_threads}\n")
        if not name.startswith("bad"):
            finish(tmp_path, name)

    monkeypatch.setattr(reproduce_tables, "train", train)
    return lambda: [line.split()[0] for line in (tmp_path / "order.txt").read_text().splitlines()]


def test_finished_runs_are_not_run_again_and_needs_come_first(recorded, tmp_path, capsys):
    finish(tmp_path, "none-0")
    runs = [run_of("token-1", "token-0"), run_of("token-0"), run_of("none-0"), run_of("deit-0", "none-0")]
    reproduce_tables.execute(runs, tmp_path, jobs=2)
    order = recorded()
    assert sorted(order) == ["deit-0", "token-0", "token-1"] and order.index("token-0") < order.index("token-1")
    assert capsys.readouterr().out.count("accelerate launch --quiet train_deit.py recipe.yaml --seed") == 3
    reproduce_tables.execute(runs, tmp_path, jobs=2)
    assert recorded() == order
    assert {line.split()[1] for line in (tmp_path / "order.txt").read_text().splitlines()} == {"1"}


def test_one_job_has_the_whole_machine(recorded, tmp_path):
    reproduce_tables.execute([run_of("none-0")], tmp_path, jobs=1)
    assert (tmp_path / "order.txt").read_text() == "none-0 None\n"


def test_nothing_starts_after_a_failure_and_the_next_call_goes_on_from_there(recorded, tmp_path):
    runs = [run_of("none-0"), run_of("bad-0"), run_of("token-0"), run_of("token-1", "bad-0")]
    with pytest.raises(reproduce_tables.Failed, match=r"bad-0 \(exit code 0, .*logs/bad-0.log\); the same command"):
        reproduce_tables.execute(runs, tmp_path, jobs=1)
    assert recorded() == ["none-0", "bad-0"]
    with pytest.raises(reproduce_tables.Failed, match="bad-0"):
        reproduce_tables.execute(runs, tmp_path, jobs=1)
    assert recorded() == ["none-0", "bad-0", "bad-0"]


def test_what_nobody_makes_is_not_waited_for(recorded, tmp_path):
    with pytest.raises(reproduce_tables.Failed, match="token-1 wait for runs that are not planned"):
        reproduce_tables.execute([run_of("token-1", "token-0")], tmp_path, jobs=2)


def test_what_was_made_by_another_command_is_not_tabulated(tmp_path, monkeypatch):
    monkeypatch.chdir(reproduce_tables.ROOT)
    runs = {run.name: run for run in reproduce_tables.plan(PROFILE, str(tmp_path))}
    for name in ("none-0", "deit-0", "token-0", "sgd-0"):
        said = without_folders(said_arguments(list(runs[name].arguments)))
        finish(tmp_path, name, record={"recipe": said})
    reproduce_tables.refuse_stale(runs.values(), tmp_path)  # as planned, though no folder of answers is left
    before = reproduce_tables.ABLATIONS["sgd"][:4]
    monkeypatch.setitem(reproduce_tables.ABLATIONS, "sgd", before)
    longer = dataclasses.replace(runs["none-0"], arguments=(*runs["none-0"].arguments, "--num_train_epochs", "99"))
    changed = {run.name: run for run in reproduce_tables.plan(PROFILE, str(tmp_path))} | {"none-0": longer}
    with pytest.raises(reproduce_tables.Failed, match="remove these folders") as raised:
        reproduce_tables.refuse_stale(changed.values(), tmp_path)
    message = str(raised.value)
    assert f"{tmp_path}/sgd-0 (differs in weight_decay)" in message and "token-0" not in message
    assert f"{tmp_path}/none-0 (differs in num_train_epochs)" in message
    assert f"{tmp_path}/deit-0 (used one of these)" in message


def test_a_teacher_grows_with_the_finer_student():
    sizes = {}
    for name, profile in reproduce_tables.PROFILES.items():
        runs = {run.name: run.arguments for run in reproduce_tables.plan(profile, "out")}
        words = runs["token_finer-0"]
        sizes[name] = tuple(words[words.index(f"--{key}") + 1] for key in ("image_size", "teacher_image_size"))
    assert sizes == {"cpu": ("30", "30"), "gpu": ("48", "96")}


SMALL = ("--hidden_size", "16", "--num_attention_heads", "2", "--intermediate_size", "32", "--image_size", "12")
SHORT = ("--num_train_epochs", "0.2", "--teacher_num_train_epochs", "0.2", "--warmup_epochs", "0")


@pytest.mark.slow
def test_the_rows_are_trained_for_real(tmp_path):
    small = dataclasses.replace(PROFILE, num_train=1000, num_held_out=100, seeds=(0,), teacher_seeds=(0,))
    reproduce_tables.prepare_data(small, "digits", tmp_path)
    chosen = ("token-0", "none-0", "hard-0", "soft-0", "token_finer-0")
    weak = ("--allow_weak_teacher", "true")
    runs = []
    for run in reproduce_tables.plan(small, str(tmp_path)):
        finer = ("--image_size", "18") if run.name == "token_finer-0" else ()
        arguments = (*run.arguments, *SMALL, *SHORT, *weak, *finer)
        runs.append(dataclasses.replace(run, arguments=arguments))
    reproduce_tables.execute([run for run in runs if run.name in chosen], tmp_path, jobs=2)
    results = {name: json.loads((tmp_path / name / "all_results.json").read_text()) for name in chosen}
    assert results["token-0"]["teacher_views_asked"] > 0 == results["hard-0"]["teacher_views_asked"]
    assert (tmp_path / "token-0" / "teacher").is_dir() and not (tmp_path / "hard-0" / "teacher").exists()
    folder = tables_report.write(small, runs, tmp_path, tmp_path / "results" / "cpu")
    tables = json.loads((folder / "tables.json").read_text())["tables"]
    assert all("mean" in row for row in tables["table3"]["rows"])
    assert tables["finer"]["rows"][3]["mean"] == pytest.approx(100 * results["token_finer-0"]["eval_accuracy"])
    assert len(tables["tokens"]["cosines"][0]) == 1 + 4
