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
    progress = Progress(SimpleNamespace(num_asked=0), bad_images)
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
