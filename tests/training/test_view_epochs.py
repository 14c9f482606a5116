"""Runs that repeat views: the teacher is asked about the first epochs alone, and the bits stay the same."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.pictures import draw_blank_pictures
from helpers.runs import SHORT_RUN, words_of

import train_deit
from modeling_deit_distill import InputError
from modeling_deit_distill.training.checkpoints import check_fits

pytestmark = pytest.mark.usefixtures("blank_pictures")

# Four steps an epoch of 32 views; the third and the fourth epoch show again what the first two did.
RECIPE = {**SHORT_RUN, "num_train_epochs": 4, "view_epochs": 2}
ASKED = 2 * 32


@pytest.fixture(scope="module")
def words(photos, random_teacher):
    """`words(folder, **changes)`: the command line."""
    given = {**RECIPE, "train_dir": photos, "teacher_name_or_path": random_teacher}
    return lambda folder, **changes: words_of({**given, "output_dir": folder, **changes})


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def results(folder: Path) -> dict:
    return json.loads((folder / "all_results.json").read_text())


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        draw_blank_pictures(monkeypatch)
        train_deit.main(words(folder))
    return folder


def test_the_teacher_is_asked_about_the_first_epochs_alone(whole):
    assert results(whole)["teacher_views_asked"] == ASKED
    assert sorted(path.name for path in (whole / "answers").glob("epoch-*")) == ["epoch-00000.bin", "epoch-00001.bin"]


# Before the first checkpoint, and between that of step 3 and that of step 6.
@pytest.mark.parametrize("step", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_what_was_asked_before_a_failure_is_counted_though_it_is_not_asked_again(words, tmp_path, monkeypatch, step):
    compute_loss, calls = train_deit.DistillationTrainer.compute_loss, []

    def fail_once(self, model, inputs, *args, **kwargs):
        loss = compute_loss(self, model, inputs, *args, **kwargs)
        calls.append(model.training)
        if sum(calls) == step:
            raise MemoryError
        return loss

    monkeypatch.setattr(train_deit.DistillationTrainer, "compute_loss", fail_once)
    with pytest.raises(MemoryError):
        train_deit.main(words(tmp_path / "run", resume_from_checkpoint="true"))
    train_deit.main(words(tmp_path / "run", resume_from_checkpoint="true"))
    assert results(tmp_path / "run")["teacher_views_asked"] == ASKED


@pytest.mark.slow
def test_live_and_from_a_store_the_weights_are_the_same(words, whole, tmp_path):
    train_deit.main(words(tmp_path / "writing", teacher_store=tmp_path / "store"))
    assert weights(tmp_path / "writing") == weights(whole)
    train_deit.main(words(tmp_path / "reading", teacher_store=tmp_path / "store", teacher_name_or_path=None))
    assert weights(tmp_path / "reading") == weights(whole)
    assert results(tmp_path / "reading")["teacher_views_asked"] == 0
    # A store of these two epochs begins one of more.
    train_deit.main(words(tmp_path / "more", teacher_store=tmp_path / "store", view_epochs=0))
    assert results(tmp_path / "more")["teacher_views_asked"] == ASKED


@pytest.mark.slow
def test_other_views_give_other_weights_and_soft_answers_repeat_too(words, whole, tmp_path):
    train_deit.main(words(tmp_path / "plain", view_epochs=0))
    assert weights(tmp_path / "plain") != weights(whole)
    assert results(tmp_path / "plain")["teacher_views_asked"] == 2 * ASKED
    assert not (tmp_path / "plain" / "answers").exists()
    train_deit.main(words(tmp_path / "soft", distillation_type="soft"))
    assert results(tmp_path / "soft")["teacher_views_asked"] == ASKED


@pytest.mark.slow
def test_without_a_teacher_views_repeat_as_well(words, tmp_path):
    train_deit.main(words(tmp_path / "none", distillation_type="none", teacher_name_or_path=None))
    assert results(tmp_path / "none")["teacher_views_asked"] == 0
    assert not (tmp_path / "none" / "answers").exists()


@pytest.mark.slow
def test_a_run_that_is_begun_anew_replaces_answers_about_other_views(words, whole, tmp_path, monkeypatch):
    shutil.copytree(whole / "answers", tmp_path / "run" / "answers")
    with pytest.raises(InputError, match="horizontal_flip_prob"):
        train_deit.main(words(tmp_path / "run", horizontal_flip_prob=0))
    train_deit.main(words(tmp_path / "run", horizontal_flip_prob=0, overwrite_output_dir="true"))
    assert results(tmp_path / "run")["teacher_views_asked"] == ASKED
    train_deit.main(words(tmp_path / "run", horizontal_flip_prob=0, overwrite_output_dir="true"))
    assert results(tmp_path / "run")["teacher_views_asked"] == 0  # they fit
    (tmp_path / "run" / "asked.json").write_text('{"known_before": 0}')  # as a run would note that asked about them all
    with monkeypatch.context() as failing, pytest.raises(ZeroDivisionError):
        failing.setattr(train_deit.DistillationTrainer, "evaluate_teacher", lambda _: 1 / 0)
        train_deit.main(words(tmp_path / "run", horizontal_flip_prob=0, overwrite_output_dir="true"))
    train_deit.main(words(tmp_path / "run", horizontal_flip_prob=0, resume_from_checkpoint="true"))
    assert results(tmp_path / "run")["teacher_views_asked"] == 0


def test_the_summary_says_what_the_teacher_is_spared(words, tmp_path, capsys):
    train_deit.main(words(tmp_path / "dry", dry_run="true"))
    said = capsys.readouterr().out
    assert "views" in said and "of 2 epochs are repeated, each time in another order" in said
    assert f"the teacher is asked about {ASKED} of {2 * ASKED} views" in said
    assert not (tmp_path / "dry").exists() or not (tmp_path / "dry" / "answers").exists()


@pytest.mark.parametrize(
    "changes", [{"view_epochs": 4}, pytest.param({"max_steps": 7, "num_train_epochs": None}, marks=pytest.mark.slow)]
)
def test_where_no_view_is_repeated_no_answers_are_kept(words, tmp_path, capsys, changes):
    train_deit.main(words(tmp_path / "run", **changes))
    said = capsys.readouterr().out
    assert f"none is repeated: the run is no longer than --view_epochs {changes.get('view_epochs', 2)}" in said
    assert "teacher's store" not in said and not (tmp_path / "run" / "answers").exists()
    assert results(tmp_path / "run")["teacher_views_asked"] == 8 * changes.get("max_steps", 16)


def test_a_checkpoint_of_other_rounds_is_refused(whole, words):
    from modeling_deit_distill.plan import Plan
    from modeling_deit_distill.training.checkpoints import agreement

    plan = Plan.from_arguments(words(whole, view_epochs=3))
    with pytest.raises(InputError, match="was made with view_epochs 2, this run has 3"):
        check_fits(whole / "checkpoint-16", agreement(plan.args, plan.views, plan.config), plan.config)


def test_a_stream_has_no_rounds(words, tmp_path):
    with pytest.raises(InputError, match="streaming: view_epochs repeats views by position"):
        train_deit.main(words(tmp_path / "run", streaming="true", max_steps=4, num_train_epochs=None))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_killed_in_the_third_epoch_ends_with_the_same_bits(forked, words, whole, tmp_path, processes):
    changes = {"resume_from_checkpoint": "true", "per_device_train_batch_size": 8 // processes}
    done = forked.run(words(tmp_path / "whole", **changes), processes=processes)
    assert done.codes == [0] * processes, done.printed
    if processes == 1:
        assert weights(tmp_path / "whole") == weights(whole)
    assert results(tmp_path / "whole")["teacher_views_asked"] == ASKED

    for part in range(9, 13):  # about the tenth of sixteen steps
        folder, at = tmp_path / f"run{part}", done.calls["train"] * part // 16
        killed = forked.run(words(folder, **changes), "SIGKILL", at, processes=processes)
        assert killed.codes[0] == -9, killed.printed
        last = max(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))
        if 8 < last < 12:
            break
    assert 8 < last < 12
    again = forked.run(words(folder, **changes), processes=processes)
    assert again.codes == [0] * processes and "resuming from" in again.printed
    # Two processes add up their gradients, and each draws its own paths to drop: their bits are their own.
    assert weights(folder) == weights(tmp_path / "whole")
    for name in ("epoch-00000.bin", "epoch-00001.bin"):
        assert (folder / "answers" / name).read_bytes() == (whole / "answers" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kept", "processes"), [("in the output folder", 1), ("in a store that knew two steps", 2), ("nowhere", 2)]
)
def test_a_run_killed_while_it_asks_counts_what_it_asked(forked, words, tmp_path, kept, processes):
    changes = {"resume_from_checkpoint": "true", "per_device_train_batch_size": 8 // processes}
    expected, store = ASKED, tmp_path / "store"
    if kept == "in a store that knew two steps":
        train_deit.main(words(tmp_path / "before", teacher_store=store, max_steps=2))
        expected -= 2 * 8
    if kept == "nowhere":
        changes |= {"view_epochs": 0, "num_train_epochs": 2}

    def changed(folder):
        return words(folder, **changes, **({"teacher_store": folder / "answers"} if store.exists() else {}))

    def begun(name):
        if store.exists():
            shutil.copytree(store, tmp_path / name / "answers")
        return tmp_path / name

    done = forked.run(changed(begun("whole")), processes=processes)
    assert done.codes == [0] * processes, done.printed
    assert results(tmp_path / "whole")["teacher_views_asked"] == expected
    have_saved = []
    for part in (3, 8):  # of about sixteen steps
        folder = begun(f"run{part}")
        killed = forked.run(changed(folder), "SIGKILL", done.calls["train"] * part // 16, processes=processes)
        assert killed.codes[0] == -9, killed.printed
        have_saved.append(any(folder.glob("checkpoint-*/counts_0.json")))
        again = forked.run(changed(folder), processes=processes)
        assert again.codes == [0] * processes, again.printed
        assert results(folder)["teacher_views_asked"] == expected, part
        assert weights(folder) == weights(tmp_path / "whole")
    assert have_saved == [False, True]
