"""Runs that are pushed, and what the Hub then has of them."""

import torch
from safetensors.torch import load as load_safetensors

TOKEN = "hf_secret_of_the_test"
CODE = {"configuration_deit_distill.py", "modeling_deit_distill.py"}
COLOURS = {"blue": (30, 60, 220), "red": (220, 40, 40)}
RECIPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 4,
    "allow_weak_teacher": "true",
    "validation_fraction": 0.25,
    "max_steps": 4,
    "learning_rate": 1e-2,
    "repeated_augmentation": 1,
    "per_device_train_batch_size": 8,
    "rand_augment_magnitude": 0,
    "logging_steps": 1,
    "save_steps": 2,
    "report_to": "none",
    "use_cpu": "true",
    "disable_tqdm": "true",
    "bf16": "false",
    "push_to_hub": "true",
    "hub_token": TOKEN,
}


# Of each strategy one run, which several tests look at.
STRATEGIES = {
    "end": {},
    "every_save": {"push_native": "true"},
    "checkpoint": {"save_total_limit": 10},
    "all_checkpoints": {
        "push_native": "true",
        "load_best_model_at_end": "true",
        "eval_strategy": "steps",
        "eval_steps": 2,
    },
}


def weights(files):
    return load_safetensors(files["model.safetensors"])


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def messages(server, revision="main"):
    return [commit.message for commit in server.commits("models", "me/colours", revision)]
