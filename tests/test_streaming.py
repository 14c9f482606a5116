"""What a run of a stream may ask for, and what is refused."""

import datasets
import pytest

from modeling_deit_distill import InputError
from modeling_deit_distill.plan import Plan

STREAMED = ["--dataset_name", "me/photos", "--streaming", "true", "--max_steps", "4", "--use_cpu", "true"]


def test_datasets_5_0_0_streams_to_one_worker_only(monkeypatch):
    many = [*STREAMED, "--dataloader_num_workers", "2"]
    Plan.from_arguments(many)
    monkeypatch.setattr(datasets, "__version__", "5.0.0")
    Plan.from_arguments([*STREAMED, "--dataloader_num_workers", "1"])
    Plan.from_arguments([word if word != "--streaming" else "--keep_decoded_images" for word in many])
    with pytest.raises(InputError, match="datasets 5.0.0 gives all shards of a stream to one worker; install another"):
        Plan.from_arguments(many)


def test_a_stream_keeps_no_decoded_images():
    with pytest.raises(InputError, match="streaming: keep_decoded_images is for images that are read again"):
        Plan.from_arguments([*STREAMED, "--keep_decoded_images", "true"])


@pytest.mark.parametrize("name", ["eval", "save"])
def test_a_stream_has_no_epochs_to_evaluate_or_save_after(name):
    remedy = f"--{name}_strategy steps --{name}_steps N"
    with pytest.raises(InputError, match=f"{name}_strategy 'epoch' would wait for the last step; give {remedy}"):
        Plan.from_arguments([*STREAMED, f"--{name}_strategy", "epoch"])
    Plan.from_arguments([*STREAMED, f"--{name}_strategy", "steps", f"--{name}_steps", "2"])


def test_a_stream_has_few_workers_by_itself(monkeypatch):
    monkeypatch.setattr("modeling_deit_distill.arguments.training.workers_by_default", lambda device_type: 12)
    assert Plan.from_arguments(STREAMED).args.dataloader_num_workers == 4
    assert Plan.from_arguments([*STREAMED, "--dataloader_num_workers", "12"]).args.dataloader_num_workers == 12
    monkeypatch.setattr(datasets, "__version__", "5.0.0")
    assert Plan.from_arguments(STREAMED).args.dataloader_num_workers == 1
