"""Runs with images without labels: what is learned of them, what is counted, and the same bits however one trains."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.pictures import draw_blank_pictures
from helpers.runs import COLOURS, SHORT_RUN, words_of
from helpers.trainers import SETTINGS, rows, snapshot, student, views_trainer

import train_deit
from modeling_deit_distill import DistillationTrainingArguments, InputError
from modeling_deit_distill.data.columns import NO_LABEL
from modeling_deit_distill.data.datasets import ViewDataset
from modeling_deit_distill.data.views import AugmentationSettings
from modeling_deit_distill.plan import Plan
from modeling_deit_distill.teachers.store import TeacherStore
from modeling_deit_distill.training.checkpoints import agreement, check_fits
from modeling_deit_distill.training.objective import Views

pytestmark = pytest.mark.usefixtures("blank_pictures")

# 12 labelled images, 4 held out, 20 without labels: an epoch is four steps of 8 views.
RECIPE = {**SHORT_RUN, "num_train_epochs": 2, "logging_steps": 1}
LABELLED, UNLABELLED = 12, 20


@pytest.fixture(scope="module")
def folders(save_photos, tmp_path_factory):
    """A folder of labelled photos and one of others, all of a class's in subfolders that mean nothing."""
    photos, more = save_photos(COLOURS, 12), tmp_path_factory.mktemp("more")
    moved = [
        path for path in sorted(photos.rglob("*.png")) if int(path.stem) >= (6 if path.parent.name == "red" else 5)
    ]
    for number, path in enumerate(moved):
        (more / f"day {number % 3}").mkdir(exist_ok=True)
        shutil.move(path, more / f"day {number % 3}" / f"{number}.png")
    return photos, more


@pytest.fixture(scope="module")
def words(folders, random_teacher):
    """`words(folder, **changes)`: the command line."""
    photos, more = folders
    given = {**RECIPE, "train_dir": photos, "unlabeled_dir": more, "teacher_name_or_path": random_teacher}
    return lambda folder, **changes: words_of({**given, "output_dir": folder, **changes})


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        draw_blank_pictures(monkeypatch)
        train_deit.main(words(folder))
    return folder


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def read(folder: Path, name: str = "all_results.json") -> dict:
    return json.loads((folder / name).read_text())


# --- what is counted ------------------------------------------------------------------------------------------------


def test_results_record_and_card_count_them(whole):
    assert read(whole)["unlabelled_images"] == UNLABELLED
    assert read(whole)["teacher_views_asked"] == 2 * 32
    facts = read(whole, "run.json")["facts"]
    assert f"{UNLABELLED:,} images without labels, 62% of an epoch" in facts["unlabelled"]
    assert facts["data"].endswith(f": {LABELLED} images") and facts["length"] == "2 epochs, 8 steps"
    card = (whole / "README.md").read_text()
    assert f"and on {UNLABELLED} images without labels" in card
    assert str(whole.parent.parent) not in card  # no folder of this machine


def test_the_log_tells_the_parts_of_the_loss(whole):
    logged = [each for each in read(whole, "trainer_state.json")["log_history"] if "label_loss" in each]
    assert len(logged) == 8
    for each in logged:
        assert 0 <= each["labelled_share"] <= 1
        total = 0.5 * each["label_loss"] + 0.5 * each["teacher_loss"]
        assert each["loss"] == pytest.approx(total, abs=1e-3)


def test_the_shares_of_an_epoch_are_those_of_the_images(whole):
    logged = [each["labelled_share"] for each in read(whole, "trainer_state.json")["log_history"] if "loss" in each]
    # Three views of each drawn image: eleven of the 32 images an epoch. Mixing moves shares within a pair alone.
    shares = [sum(logged[first : first + 4]) * 8 for first in (0, 4)]
    assert all(abs(share - round(share)) < 1e-4 and 0 < share < 32 for share in shares)


# --- what is learned ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixing", [0.0, 0.8])
def test_a_trainer_takes_views_without_labels(tmp_path, mixing):
    some = rows(16)
    label = some["label"][:]
    partly = some.remove_columns("label").add_column(
        "label", [NO_LABEL if row % 2 else label[row] for row in range(16)], feature=some.features["label"]
    )
    settings = {"mixup_alpha": mixing, "cutmix_alpha": 0.0, "max_steps": 4, "save_strategy": "no"}
    run = views_trainer(tmp_path / "partly", partly, **settings)
    run.train()
    assert run.views.has_unlabelled
    ordinary = views_trainer(tmp_path / "all", some, **settings)
    ordinary.train()
    assert not ordinary.views.has_unlabelled
    ours, theirs = snapshot(run.model), snapshot(ordinary.model)
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(value.isfinite().all() for value in ours.values())


def test_a_trainer_without_a_teacher_refuses_them(tmp_path):
    some = rows(8)
    none = some.remove_columns("label").add_column("label", [NO_LABEL] * 8, feature=some.features["label"])
    with pytest.raises(InputError, match="8 training images have no label: images without labels teach by a teacher"):
        args = DistillationTrainingArguments(output_dir=str(tmp_path), distillation_type="none", **SETTINGS)
        Views(args, ViewDataset(none, AugmentationSettings(16)), None, student().config)
    with pytest.raises(InputError, match="balanced_views draws each class equally often, and images without labels"):
        views_trainer(tmp_path, none, balanced_views=True).train()


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"distillation_type": "none", "teacher_name_or_path": None},
            "unlabeled_dir: images without labels teach by a",
        ),
        ({"distillation_alpha": 0}, "unlabeled_dir: images without labels .* distillation_alpha is 0; raise it"),
        (
            {"balanced_views": "true"},
            "unlabeled_dir: balanced_views draws each class .* --class_weights balanced instead",
        ),
        (
            {"streaming": "true", "max_steps": 4},
            "streaming: unlabeled_dir puts its images among the others of an epoch",
        ),
    ],
)
def test_what_does_not_go_with_them_is_refused(words, tmp_path, changes, message):
    with pytest.raises(InputError, match=f"^{message}"):
        Plan.from_arguments(words(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_a_run_without_them_is_refused(whole, words):
    plan = Plan.from_arguments(words(whole, unlabeled_dir=None, resume_from_checkpoint="true"))
    with pytest.raises(InputError, match=f"was made with num_unlabelled {UNLABELLED}, this run has 0"):
        check_fits(whole / "checkpoint-8", agreement(plan.args, plan.views, plan.config), plan.config)


def test_a_finished_model_is_judged_without_reading_them(words, whole):
    plan = Plan.from_arguments(words(whole, do_train="false", unlabeled_dir="nowhere"))
    assert plan.data.unlabelled is None


def test_too_many_that_cannot_be_read_end_the_run(words, folders, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folders[1], broken)
    for path in sorted(broken.rglob("*.png"))[:6]:
        path.write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(InputError, match="6 images cannot be read, more than 5 and than --max_bad_image_fraction 0.01"):
        train_deit.main(words(tmp_path / "run", unlabeled_dir=broken))


# --- stores ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_live_and_from_a_store_the_weights_are_the_same(words, whole, folders, tmp_path):
    store = tmp_path / "store"
    train_deit.main(words(tmp_path / "writing", teacher_store=store))
    assert weights(tmp_path / "writing") == weights(whole)
    train_deit.main(words(tmp_path / "reading", teacher_store=store, teacher_name_or_path=None))
    assert weights(tmp_path / "reading") == weights(whole)
    assert read(tmp_path / "reading")["teacher_views_asked"] == 0

    with pytest.raises(InputError, match="holds answers for unlabelled_images .*, this run has null"):
        train_deit.main(words(tmp_path / "without", teacher_store=store, unlabeled_dir=None))
    others = tmp_path / "others"
    shutil.copytree(folders[1], others)
    shutil.copy(sorted(others.rglob("*.png"))[0], others / "again.png")
    with pytest.raises(
        InputError, match='holds answers for unlabelled_images "[0-9a-f]{32}", this run has "[0-9a-f]{32}"'
    ):
        train_deit.main(words(tmp_path / "with others", teacher_store=store, unlabeled_dir=others))


@pytest.mark.slow
def test_a_store_made_without_them_says_nothing_of_them(words, tmp_path):
    store, changes = tmp_path / "store", {"unlabeled_dir": None, "max_steps": 1}
    train_deit.main(words(tmp_path / "writing", teacher_store=store, **changes))
    assert "unlabelled_images" not in TeacherStore(store).fingerprint  # as earlier versions wrote it, identity included
    train_deit.main(words(tmp_path / "reading", teacher_store=store, teacher_name_or_path=None, **changes))
    with pytest.raises(InputError, match="holds answers for unlabelled_images null, this run has"):
        train_deit.main(words(tmp_path / "with", teacher_store=store, max_steps=1))


@pytest.mark.slow
def test_a_store_of_them_is_verified(words, tmp_path, capsys):
    from modeling_deit_distill.teachers.command_line import main

    store = tmp_path / "store"
    train_deit.main(words(tmp_path / "writing", teacher_store=store))
    assert main(["verify", str(store), "--device", "cpu"]) == 0
    assert "the live teacher answers 64 of 64 views as stored" in capsys.readouterr().out


# --- the same bits --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"distillation_type": "soft", "class_weights": "balanced", "label_smoothing_factor": 0.2},
        {"view_epochs": 1, "repeated_augmentation": 1},
        {"mixup_alpha": 0, "cutmix_alpha": 0, "use_distillation_token": "false"},
    ],
)
def test_other_ways_to_train_end_in_numbers_and_are_repeatable(words, tmp_path, changes):
    for name in ("one", "two"):
        train_deit.main(words(tmp_path / name, **changes))
    assert weights(tmp_path / "one") == weights(tmp_path / "two")
    asked = 32 if "view_epochs" in changes else 64
    assert read(tmp_path / "one")["teacher_views_asked"] == asked


@pytest.mark.slow
def test_the_runs_own_teacher_is_trained_on_the_labelled_images_alone(words, tmp_path):
    own = {"train_teacher": "true", "teacher_name_or_path": None, "teacher_config_name": "resnet"}
    own |= {"teacher_num_train_epochs": 2, "max_steps": 2}
    own["teacher_config_overrides"] = json.dumps({"embedding_size": 8, "hidden_sizes": [8], "depths": [1]})
    train_deit.main(words(tmp_path / "with", **own))
    train_deit.main(words(tmp_path / "without", unlabeled_dir=None, **own))
    with_, without = (tmp_path / name / "teacher" / "model.safetensors" for name in ("with", "without"))
    assert with_.read_bytes() == without.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_killed_in_an_epoch_ends_with_the_same_bits(forked, words, whole, tmp_path, processes):
    changes = {"resume_from_checkpoint": "true", "per_device_train_batch_size": 8 // processes}
    done = forked.run(words(tmp_path / "whole", **changes), processes=processes)
    assert done.codes == [0] * processes, done.printed
    if processes == 1:
        assert weights(tmp_path / "whole") == weights(whole)
    for part in range(8, 14):  # about the sixth of eight steps
        folder, at = tmp_path / f"run{part}", done.calls["train"] * part // 16
        killed = forked.run(words(folder, **changes), "SIGKILL", at, processes=processes)
        assert killed.codes[0] == -9, killed.printed
        steps = [int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*")]
        if steps and max(steps) in (3, 6):
            break
    assert steps and max(steps) in (3, 6)
    again = forked.run(words(folder, **changes), processes=processes)
    assert again.codes == [0] * processes and "resuming from" in again.printed
    assert weights(folder) == weights(tmp_path / "whole")
    assert read(folder)["unlabelled_images"] == UNLABELLED


@pytest.mark.slow
def test_one_that_is_removed_before_a_resumption_keeps_its_number(words, folders, tmp_path):
    more, folder = tmp_path / "more", tmp_path / "run"
    shutil.copytree(folders[1], more)
    changes = {"unlabeled_dir": more, "max_bad_image_fraction": 0.2, "teacher_store": tmp_path / "store"}
    train_deit.main(words(folder, max_steps=4, **changes))
    sorted(more.rglob("*.png"))[3].unlink()
    train_deit.main(words(folder, num_train_epochs=2, resume_from_checkpoint="true", **changes))
    assert read(folder)["unlabelled_images"] == UNLABELLED
    assert read(folder)["teacher_views_asked"] <= 64


@pytest.mark.slow
def test_an_image_with_a_label_is_removed_before_a_resumption_and_its_copy_stays_left_out(words, folders, tmp_path):
    photos, more, folder = tmp_path / "photos", tmp_path / "more", tmp_path / "run"
    shutil.copytree(folders[0], photos)
    shutil.copytree(folders[1], more)
    labelled = sorted(photos.rglob("*.png"))[3]
    shutil.copy(labelled, more / "copy.png")
    changes = {"train_dir": photos, "unlabeled_dir": more, "max_bad_image_fraction": 0.2}
    train_deit.main(words(folder, max_steps=4, **changes))
    labelled.unlink()
    train_deit.main(words(folder, num_train_epochs=2, resume_from_checkpoint="true", **changes))
    assert read(folder)["unlabelled_images"] == UNLABELLED
    assert read(folder, "trainer_state.json")["global_step"] == 8
