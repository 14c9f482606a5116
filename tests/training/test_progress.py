"""What a run counts over all its resumptions and processes."""

import json
from types import SimpleNamespace

import pytest
from helpers.images import with_bad_rows

from modeling_deit_distill.data.bad_images import STREAM_TRIAL, BadImages
from modeling_deit_distill.errors import InputError
from modeling_deit_distill.training.progress import Progress


def resumed(folder, bad_images, *counts):
    """What a main process has after a resumption from what each process of the run before has counted."""
    for rank, each in enumerate(counts):
        content = {"seconds": 1.0, "teacher_views": 5, "loss_sum": 2.0, **each}
        (folder / f"counts_{rank}.json").write_text(json.dumps(content))
    progress = Progress(SimpleNamespace(store=None), bad_images)
    progress.start(folder)
    progress.on_train_begin(None, SimpleNamespace(global_step=3, is_world_process_zero=True), None)
    return progress


def test_the_bad_images_of_all_processes_are_judged_by_the_images_of_all(tmp_path):
    bad_images = BadImages(with_bad_rows(100, dict.fromkeys(range(8), b"")), max_fraction=0.07, num_processes=4)
    each = [{"bad_rows": [row], "images_shown": 25.0} for row in range(4)]
    each[0]["bad_rows"] += [4, 5, 6]
    progress = resumed(tmp_path, bad_images, *each)
    bad_images.note([], num_shown=4)  # 7 of 100, as many as are allowed, though a process's share is 25
    assert progress._count() == {"teacher_views": 20, "bad_rows": [*range(7)], "images_shown": 104.0}
    with pytest.raises(InputError, match="8 images cannot be read, .* --max_bad_image_fraction 0.07 of 100: "):
        bad_images.note([7], num_shown=4)


def test_the_images_of_a_stream_are_counted_on(tmp_path):
    bad_images = BadImages(None, max_fraction=0.01)
    words = [f"image {number} is bad" for number in range(15)]
    resumed(tmp_path, bad_images, {"bad_rows": words, "images_shown": 2 * STREAM_TRIAL})
    bad_images.note([], num_shown=8)  # 15 of 2,008
    assert bad_images.num_shown == 2 * STREAM_TRIAL + 8


def test_counts_of_an_earlier_version_are_read(tmp_path):
    bad_images = BadImages(with_bad_rows(100, {0: b""}))
    assert resumed(tmp_path, bad_images, {"bad_rows": [0]})._count()["images_shown"] == 0


def begun(output_dir, known, checkpoint=None, counted=0, goes_on=False, teacher="one"):
    """How many views a start says were asked about before it, with a store that holds so many answers."""
    store = SimpleNamespace(count_all=lambda: known)
    progress = Progress(SimpleNamespace(store=store, teacher=teacher), None)
    if checkpoint is not None:
        checkpoint.mkdir(parents=True, exist_ok=True)
        kept = {"seconds": 1.0, "teacher_views": counted, "bad_rows": [], "loss_sum": 2.0}
        (checkpoint / "counts_0.json").write_text(json.dumps(kept))
    progress.start(checkpoint)
    args = SimpleNamespace(output_dir=str(output_dir), resume_from_checkpoint="true" if goes_on else None)
    progress.on_train_begin(args, SimpleNamespace(global_step=3, is_world_process_zero=True), None)
    return progress._answers.num_asked


def test_what_a_store_has_gained_since_the_run_began_was_asked(tmp_path):
    assert begun(tmp_path, known=10) == 0
    assert begun(tmp_path, known=26, goes_on=True) == 16  # killed before its first checkpoint
    checkpoint = tmp_path / "checkpoint-3"
    assert begun(tmp_path, known=42, checkpoint=checkpoint, counted=24) == 32  # and after it
    assert begun(tmp_path, known=74, checkpoint=checkpoint, counted=24, teacher=None) == 64  # the store is full
    assert begun(tmp_path, known=42, checkpoint=checkpoint, counted=40) == 40  # answers were lost, and asked again
    assert begun(tmp_path, known=74) == 0  # started again


def test_without_a_note_the_checkpoints_count_stands_and_is_noted(tmp_path):
    checkpoint = tmp_path / "earlier" / "checkpoint-3"
    assert begun(tmp_path / "out", known=42, checkpoint=checkpoint, counted=24) == 24
    assert begun(tmp_path / "out", known=50, goes_on=True) == 24 + 8
    assert begun(tmp_path / "earlier", known=10) == 0
    assert begun(tmp_path / "other", known=42, checkpoint=checkpoint, counted=24) == 32  # as is noted beside it


def test_a_full_store_is_not_counted_and_what_another_run_noted_goes(tmp_path):
    assert begun(tmp_path, known=10) == 0
    assert begun(tmp_path, known=None, teacher=None) == 0
    assert not list(tmp_path.iterdir())
