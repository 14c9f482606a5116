"""Runs that are killed, interrupted and resumed end as if nothing had happened."""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from helpers.forked_runs import MOMENTS
from helpers.paths import PYTHONPATH, ROOT
from helpers.runs import words_of

import train_deit
from modeling_deit_distill import InputError
from modeling_deit_distill.output_folder import unfinished_checkpoints
from modeling_deit_distill.output_lock import locked
from modeling_deit_distill.precision import multiplies_bf16

pytestmark = pytest.mark.usefixtures("blank_pictures")

STEPS, NUM_KILLS = 14, 20
# Every draw there is; four steps an epoch, and the last epoch cut short.
RECIPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "hidden_dropout_prob": 0.1,
    "drop_path_rate": 0.3,
    "image_size": 16,
    "patch_size": 4,
    "allow_weak_teacher": "true",
    "distillation_type": "hard",
    "repeated_augmentation": 3,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_steps": STEPS,
    "learning_rate": "1e-2",
    "ema_half_life": 4,
    "warmup_steps": 3,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 2,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": "true",
    "disable_tqdm": "true",
    "bf16": "false",
    "resume_from_checkpoint": "true",
}


@pytest.fixture(scope="module")
def words(photos, random_teacher):
    """`words(folder, **changes)`: the command line."""
    given = {**RECIPE, "train_dir": photos, "validation_fraction": 0.25, "teacher_name_or_path": random_teacher}
    return lambda folder, **changes: words_of({**given, "output_dir": folder, **changes})


@pytest.fixture(scope="module")
def whole(forked, words, tmp_path_factory):
    """The uninterrupted run: its folder and how many calls its phases took."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = forked.run(words(folder))
    assert done.codes == [0], done.printed
    assert f"no checkpoint of the student in {folder} yet: its training starts from the beginning" in done.printed
    return folder, done.calls


def figures(folder, but):
    """The results without times, and without those named in `but`."""
    results = json.loads((folder / "all_results.json").read_text())
    times = ("_runtime", "_per_second", "milliseconds_per_image")
    return {key: value for key, value in results.items() if not key.endswith((*times, *but))}


def assert_same_end(folder, whole, but=(), steps=STEPS):
    """The same weights and results, and the same state to go on from, bit by bit."""
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    ours, theirs = (found / f"checkpoint-{steps}" / "ema.safetensors" for found in (folder, whole))
    assert ours.read_bytes() == theirs.read_bytes()
    ours, theirs = (figures(found, but) for found in (folder, whole))
    assert ours.pop("train_loss") == pytest.approx(theirs.pop("train_loss"), rel=1e-5)  # a sum, added up in other parts
    assert ours == theirs
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        ours, theirs = (found / f"checkpoint-{steps}" / name for found in (folder, whole))
        if name == "rng_state.pth":
            assert ours.read_bytes() == theirs.read_bytes()
        else:
            ours, theirs = torch.load(ours, weights_only=True), torch.load(theirs, weights_only=True)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert json.loads((folder / "predictions.json").read_text()) == json.loads((whole / "predictions.json").read_text())


def signal_until_done(forked, words, whole, draws, kill, tmp_path, num_kills, **changes):
    """Runs that get a signal at random moments, every other one while saving, until there were so many; the folders."""
    calls, kills, folders, torn = whole[1], 0, [], 0
    while kills < num_kills:
        folders.append(tmp_path / f"run{len(folders)}")
        code = None
        while code != 0:
            phase = ("train", "save")[kills % 2]
            at = draws.randrange(1, calls[phase] // 3)
            done = forked.run(words(folders[-1], **changes), kill, at, phase)
            (code,) = done.codes
            assert code in (0, -9 if kill == "SIGKILL" else 143), done.printed
            assert (folders[-1] / "interrupted.json").exists() == (code == 143)
            kills += code != 0
            torn += bool(unfinished_checkpoints(folders[-1]))
    assert kill == "SIGTERM" or torn >= num_kills // 5  # some of them in the middle of a save
    return folders


@pytest.mark.slow
def test_a_run_killed_at_twenty_random_moments_ends_with_the_same_bits(forked, words, whole, tmp_path):
    folders = signal_until_done(forked, words, whole, random.Random(0), "SIGKILL", tmp_path, NUM_KILLS)
    for folder in folders:
        assert_same_end(folder, whole[0])
        assert not unfinished_checkpoints(folder) and not list(folder.glob("_*"))
        assert len(list(folder.glob("checkpoint-*"))) == 2


@pytest.mark.slow
@pytest.mark.skipif(not multiplies_bf16("cpu"), reason="this processor has no bf16 units")
def test_a_run_that_is_killed_once_ends_with_the_same_bits_in_bf16(forked, words, tmp_path):
    whole = forked.run(words(tmp_path / "whole", bf16="true"))
    assert whole.codes == [0], whole.printed
    killed = forked.run(words(tmp_path / "run", bf16="true"), "SIGKILL", whole.calls["train"] // 2)
    assert killed.codes == [-9], killed.printed
    done = forked.run(words(tmp_path / "run", bf16="true"))
    assert done.codes == [0] and "resuming from" in done.printed and "bf16" in done.printed
    assert_same_end(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_a_run_that_a_signal_ends_at_random_moments_ends_with_the_same_bits(forked, words, whole, tmp_path):
    for folder in signal_until_done(forked, words, whole, random.Random(1), "SIGTERM", tmp_path, NUM_KILLS):
        assert_same_end(folder, whole[0])


@pytest.mark.slow
def test_a_run_killed_while_it_fills_a_store_ends_with_the_same_bits_and_a_whole_store(forked, words, tmp_path):
    def stored(folder):
        return {path.name: path.read_bytes() for path in (folder / "answers").glob("epoch-*")}

    changes = {"distillation_type": "soft", "teacher_store_top_k": 2}
    (tmp_path / "whole").mkdir()
    done = forked.run(words(tmp_path / "whole" / "run", teacher_store=tmp_path / "whole" / "answers", **changes))
    assert done.codes == [0], done.printed
    draws, whole = random.Random(2), (tmp_path / "whole" / "run", done.calls)
    changes["teacher_store"] = tmp_path / "answers"
    first, *others = signal_until_done(forked, words, whole, draws, "SIGKILL", tmp_path, NUM_KILLS, **changes)
    # Once the store is full, no teacher is loaded whose size could be measured; the other runs ask nothing.
    assert_same_end(first, whole[0], ["teacher_num_parameters"])
    for folder in others:
        assert_same_end(folder, whole[0], ["teacher_views_asked", "teacher_num_parameters"])
        assert figures(folder, [])["teacher_views_asked"] == 0
    assert stored(tmp_path) == stored(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_killed_in_the_second_epoch_see_the_right_views(forked, words, tmp_path):
    changes = {"per_device_train_batch_size": 2, "ema_half_life": None}  # whose evaluations would make steps unequal
    whole = forked.run(words(tmp_path / "whole", **changes), processes=2)
    assert whole.codes == [0, 0], whole.printed
    for kill, code in (("SIGKILL", -9), ("SIGTERM", 143)):
        # About the seventh step; an epoch has four. How many calls two processes make while they wait is not certain.
        for part in range(11, 18):
            folder, at = tmp_path / f"{kill}{part}", whole.calls["train"] * part // (2 * STEPS)
            done = forked.run(words(folder, **changes), kill, at, processes=2)
            assert done.codes[0] == code and done.codes[1] != 0, done.printed
            last = max(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))
            if 4 < last < 8:
                break
        assert 4 < last < 8
        done = forked.run(words(folder, **changes), processes=2)
        assert done.codes == [0, 0], done.printed
        assert (folder / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_workers_that_get_the_signal_too_do_not_bring_the_run_down_nor_change_a_bit(forked, words, whole, tmp_path):
    folder, workers = tmp_path / "run", {"dataloader_num_workers": 1, "dataloader_persistent_workers": "true"}
    steps = []
    for share in (0.1, 0.3, 0.25):  # of the calls of a whole run, since the last start
        done = forked.run(words(folder, **workers), "SIGTERM", int(share * whole[1]["train"]))
        assert done.codes == [143], done.printed
        assert "interrupted by SIGTERM" in done.printed
        record = json.loads((folder / "interrupted.json").read_text())
        steps.append(record["global_step"])
        kept = {"signal": "SIGTERM", "global_step": steps[-1], "checkpoint": str(folder / f"checkpoint-{steps[-1]}")}
        assert record == kept
    assert 0 < steps[0] < steps[1] < steps[2] < STEPS
    done = forked.run(words(folder, **workers))
    assert done.codes == [0], done.printed
    assert not (folder / "interrupted.json").exists()
    assert (folder / "model.safetensors").read_bytes() == (whole[0] / "model.safetensors").read_bytes()


NEW_TEACHER = {
    "teacher_name_or_path": None,
    "train_teacher": "true",
    "teacher_config_name": "resnet",
    "teacher_config_overrides": json.dumps(
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    ),
}
SHORT = {"max_steps": 6, "resume_from_checkpoint": None, **NEW_TEACHER, "teacher_num_train_epochs": 2}
SIGNALS = ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"]


def words_to_go_on(done, kill, folder):
    """Of a run that ended in one line with the right exit codes and no traceback: what that line says to type."""
    assert done.codes[0] == 128 + getattr(signal, kill), done.printed
    assert "Traceback" not in done.printed and "Exception ignored" not in done.printed, done.printed
    (line,) = [line for line in done.printed.splitlines() if "interrupted" in line]
    assert line.startswith(f"interrupted by {kill}: ") and done.printed.rstrip().endswith(line)
    assert json.loads((folder / "interrupted.json").read_text())["signal"] == kill
    return shlex.split(line.partition("train_deit.py ")[2])


@pytest.fixture(scope="module")
def short(forked, words, tmp_path_factory):
    """An uninterrupted run of six steps, with evaluations after the third and the last."""
    folder = tmp_path_factory.mktemp("short") / "run"
    done = forked.run(words(folder, **SHORT))
    assert done.codes == [0], done.printed
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("kill", SIGNALS)
def test_each_signal_at_each_moment_is_one_line_and_loses_nothing(forked, words, short, tmp_path, kill, moment):
    started = words(tmp_path / "run", **SHORT)
    again = words_to_go_on(forked.run(started, kill, moment=moment), kill, tmp_path / "run")
    assert again == [*started, "--resume_from_checkpoint", "true"]
    done = forked.run(again)
    assert done.codes == [0], done.printed
    assert_same_end(tmp_path / "run", short, steps=6)
    assert not (tmp_path / "run" / "interrupted.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("to_all", [False, True], ids=["to_the_first", "to_all"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_two_processes_end_together_at_each_moment(forked, words, tmp_path, moment, to_all):
    kill = SIGNALS[list(MOMENTS).index(moment) % len(SIGNALS)]
    started = words(tmp_path / "run", **{**SHORT, "per_device_train_batch_size": 2, "ema_half_life": None})
    done = forked.run(started, kill, moment=moment, processes=2, to_all=to_all)
    # The first process alone writes the results; the other may have ended by then.
    assert done.codes[1] in ([0] if moment == "writing the results" else []) + [done.codes[0]], done.printed
    again = words_to_go_on(done, kill, tmp_path / "run")
    assert forked.run(again, processes=2).codes == [0, 0]


def launch(*command):
    """What a launcher printed, on both streams, and its exit code."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run([sys.executable, "-m", *map(str, command)], env=environment, cwd=ROOT, timeout=300, **pipes)
    return done.stdout, done.returncode


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_under_torchrun_the_line_comes_once_and_before_the_launchers_report(words, tmp_path, moment):
    started = words(tmp_path / "run", **{**SHORT, "per_device_train_batch_size": 2, "ema_half_life": None})
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    kill = SIGNALS[(list(MOMENTS).index(moment) + 1) % len(SIGNALS)]
    printed, code = launch(*torchrun, "helpers.signalled_run", kill, moment, *started)
    assert code == 1 and printed.count(f"interrupted by {kill}") == 1, printed
    ours, line, launchers = printed.partition(f"interrupted by {kill}")
    assert "Traceback" not in ours and launchers.count("Traceback") <= 1, printed
    assert json.loads((tmp_path / "run" / "interrupted.json").read_text())["signal"] == kill


@pytest.mark.slow
def test_accelerate_launched_quietly_ends_with_our_line(words, tmp_path):
    quiet = ("accelerate.commands.launch", "--quiet", "--cpu", "--num_processes", "1", "--module")
    started = words(tmp_path / "run", **SHORT)
    printed, code = launch(*quiet, "helpers.signalled_run", "SIGHUP", "a step", *started)
    assert code == 1 and "Traceback" not in printed
    assert printed.rstrip().splitlines()[-1].startswith("interrupted by SIGHUP: "), printed
    wrong = words(tmp_path / "other", **{**SHORT, "train_dir": tmp_path / "nowhere"})
    printed, code = launch(*quiet, "helpers.signalled_run", "SIGHUP", "a step", *wrong)
    assert code == 1 and printed.rstrip().splitlines()[-1].startswith("error: train_dir"), printed


@pytest.mark.slow
@pytest.mark.parametrize("to_all", [False, True])
def test_an_interrupted_script_ends_with_its_workers(words, tmp_path, to_all):
    workers = {"dataloader_num_workers": 2, "dataloader_persistent_workers": "true", "max_steps": 100_000}
    command = [sys.executable, str(ROOT / "train_deit.py"), *words(tmp_path / "run", **workers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
    while process.poll() is None and not (tmp_path / "run" / "checkpoint-2").exists():
        pass
    (os.killpg if to_all else os.kill)(process.pid, signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "interrupted by SIGTERM" in printed
    assert (tmp_path / "run" / "interrupted.json").exists()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.slow
def test_a_vanished_teacher_is_missed_unless_its_store_has_all_answers(words, random_teacher, tmp_path):
    shutil.copytree(random_teacher, tmp_path / "teacher")
    changes = {"teacher_name_or_path": tmp_path / "teacher", "teacher_store": tmp_path / "answers", "max_steps": 3}
    changes |= {"eval_strategy": "no", "ema_half_life": None}
    train_deit.main(words(tmp_path / "run", **changes))
    (tmp_path / "run" / "all_results.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoint-3")
    shutil.rmtree(tmp_path / "teacher")
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    train_deit.main(words(tmp_path / "run", **changes))
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights
    gone = f"{tmp_path / 'teacher'}' is gone: bring it back, or give --teacher_name_or_path"
    with pytest.raises(InputError, match=f"lacks 8, the first of epoch 0, and the teacher '{gone}"):
        train_deit.main(words(tmp_path / "longer", **{**changes, "max_steps": 4}))
    with pytest.raises(InputError, match="teacher.*cannot be read.*bring it back, or name a copy of it"):
        train_deit.main(words(tmp_path / "longer", **{**changes, "teacher_store": None}))


@pytest.mark.slow
def test_a_vanished_teacher_of_the_runs_own_is_not_trained_again(words, tmp_path):
    changes = {**NEW_TEACHER, "teacher_num_train_epochs": 1, "max_steps": 2}
    train_deit.main(words(tmp_path / "run", **changes))
    shutil.rmtree(tmp_path / "run" / "teacher")
    (tmp_path / "run" / "all_results.json").unlink()
    with pytest.raises(InputError, match=r"run/teacher is gone.*checkpoint-2, or start again with --overwrite"):
        train_deit.main(words(tmp_path / "run", **changes))


def test_a_run_that_fails_and_is_resumed_ends_with_the_same_bits(words, tmp_path, monkeypatch):
    train_deit.main(words(tmp_path / "whole", max_steps=6))
    compute_loss, calls = train_deit.DistillationTrainer.compute_loss, []

    def fail_once(self, model, inputs, *args, **kwargs):
        calls.append(model.training)
        if sum(calls) == 10:  # two batches are a step: step 5, after the checkpoint of step 4
            raise MemoryError
        return compute_loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(train_deit.DistillationTrainer, "compute_loss", fail_once)
    with pytest.raises(MemoryError):
        train_deit.main(words(tmp_path / "run", max_steps=6))
    train_deit.main(words(tmp_path / "run", max_steps=6))
    assert sum(calls) == 10 + 4
    assert_same_end(tmp_path / "run", tmp_path / "whole", steps=6)


def test_a_second_run_in_the_same_folder_is_refused_before_it_reads_anything(words, tmp_path):
    line = words(tmp_path / "run", train_dir=tmp_path / "nowhere", resume_from_checkpoint=None)
    with locked(tmp_path / "run"), pytest.raises(InputError, match="run' is in use by process .* choose another --out"):
        train_deit.main(line)
    with pytest.raises(InputError, match="nowhere"):
        train_deit.main(line)


@pytest.mark.slow
def test_a_run_that_lacks_its_evaluation_alone_trains_nothing(words, tmp_path):
    train_deit.main(words(tmp_path / "run", max_steps=3))
    results = json.loads((tmp_path / "run" / "all_results.json").read_text())
    kept = (tmp_path / "run" / "model.safetensors").read_bytes()
    for name in ("all_results.json", "model.safetensors"):
        (tmp_path / "run" / name).unlink()
    train_deit.main(words(tmp_path / "run", max_steps=3))
    again = json.loads((tmp_path / "run" / "all_results.json").read_text())
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == kept
    assert again["eval_accuracy"] == results["eval_accuracy"] and again["eval_loss"] == results["eval_loss"]
    # though nothing is asked and trained again, the figures are those of the whole run
    assert again["teacher_views_asked"] == results["teacher_views_asked"]
    assert again["train_loss"] == pytest.approx(results["train_loss"], rel=1e-5)
