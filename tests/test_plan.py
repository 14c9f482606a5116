"""What a plan refuses before anything is loaded."""

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
