"""Hints before a run that will go poorly; by hand."""

import json
from types import SimpleNamespace

import pytest
import torch
from helpers.images import rows
from hypothesis import given
from hypothesis import strategies as st

from modeling_deit_distill import DeiTDistillConfig
from modeling_deit_distill.hints import (
    fitting_patch_size,
    of_batch,
    of_few_images,
    of_output,
    of_patches,
    of_warmup,
    run_hints,
)


def size(image_size, patch_size=16):
    return SimpleNamespace(image_size=image_size, patch_size=patch_size)


def test_few_images_from_scratch():
    assert of_few_images(3068).startswith("3,068 images are few to start from scratch")
    assert "examples/recipes/finetune_own_images.yaml" in of_few_images(9_999)
    assert of_few_images(10_000) is None


@pytest.mark.parametrize(("image_size", "patch_size"), [(224, 16), (384, 16), (64, 8), (32, 4), ((96, 64), 8)])
def test_usual_numbers_of_patches(image_size, patch_size):
    assert of_patches(size(image_size, patch_size), is_new=True) is None


def test_many_patches():
    assert of_patches(size(224, 8), is_new=True) == (
        "image_size 224 with patch_size 8 makes 784 patches, and every step takes at least 4 times as long as with the "
        "usual 196; --patch_size 16 makes 196"
    )
    assert of_patches(size(512), is_new=False).endswith("; lower --image_size")
    assert of_patches(size((256, 512), (8, 16)), is_new=True).endswith("; lower --image_size")


@given(side=st.integers(1, 16), patches=st.integers(25, 60))
def test_the_patch_size_that_is_named_fits(side, patches):
    image_size = side * patches
    found = fitting_patch_size(image_size, side)
    DeiTDistillConfig(image_size=image_size, patch_size=found)  # which refuses what does not divide
    assert found > side and of_patches(size(image_size, found), is_new=True) is None


def test_a_batch_larger_than_the_set():
    assert of_batch(64, 64) is None
    assert of_batch(64, 40).startswith("a step takes 64 views and the training set has 40 images")


def arguments(epochs=2.0, max_steps=-1, warmup_epochs=0.0, warmup_steps=0):
    return SimpleNamespace(
        num_train_epochs=epochs,
        max_steps=max_steps,
        warmup_epochs=warmup_epochs,
        effective_batch_size=10,
        get_warmup_steps=lambda num_steps: warmup_steps,
        device=torch.device("cpu"),
        world_size=2,
    )


def test_a_warm_up_longer_than_the_run():
    # 45 images are 4 steps an epoch
    assert of_warmup(arguments(warmup_epochs=2), 45) is None
    assert "takes 12 steps but the run has 8" in of_warmup(arguments(warmup_epochs=3), 45)
    assert "takes 5 steps but the run has 4" in of_warmup(arguments(max_steps=4, warmup_steps=5), None)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("all_results.json", "a finished run: without --dry_run this command trains nothing; add --overwrite"),
        ("checkpoint-2/config.json", "an unfinished run: without --dry_run this command is refused; add --resume_from"),
    ],
)
def test_what_the_output_folder_holds(tmp_path, name, words):
    given = {"output_dir": str(tmp_path), "overwrite_output_dir": False, "resume_from_checkpoint": None}
    assert of_output(SimpleNamespace(**given)) is None
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    assert f"{tmp_path} holds {words}" in of_output(SimpleNamespace(**given))
    assert of_output(SimpleNamespace(**{**given, "overwrite_output_dir": True})) is None
    resumed = SimpleNamespace(**{**given, "resume_from_checkpoint": "true"})
    assert (of_output(resumed) is None) == ("unfinished" in words)
    ended = {"max_steps": 10, "global_step": 10, "epoch": 2.0, "log_history": []}
    (tmp_path / "trainer_state.json").write_text(json.dumps(ended))
    longer = {"max_steps": 11, "early_stopping_patience": None}
    assert of_output(SimpleNamespace(**vars(resumed), **longer)) is None  # it goes on from there


def test_all_of_a_run():
    images = rows([0, 1] * 3, ["a", "b"])
    plan = SimpleNamespace(
        args=SimpleNamespace(**vars(arguments(warmup_epochs=3)), dry_run=False),
        data=SimpleNamespace(train=images),
        views=images,
        data_args=SimpleNamespace(dataset_name=None),
        config=size(224, 8),
        start=None,
    )
    assert list(run_hints(plan)) == ["patches", "few images", "batch", "warm-up"]
    plan.start = plan.config  # a published one
    assert "few images" not in run_hints(plan)
    plan.start, plan.data_args.dataset_name = None, "digits"
    assert "few images" not in run_hints(plan)
