"""Renaming weights: what a DeiT has gets the other side's name, all else stays to be noticed."""

import torch

from modeling_deit_distill.conversion.weight_names import native_to_ours, ours_to_native, ours_to_public, public_to_ours


def assert_same(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(tensor, right[name]) for name, tensor in left.items())


def test_names_are_renamed_and_others_stay():
    zero = torch.zeros(1)
    public = {
        "blocks.11.attn.qkv.bias": zero,
        "head_dist.weight": zero,
        "norm.weight": zero,
        "blocks.0.ls1.gamma": zero,
    }
    ours = ["deit.layers.11.attention.qkv.bias", "distillation_classifier.weight", "deit.norm.weight"]
    assert list(public_to_ours(public)) == [*ours, "blocks.0.ls1.gamma"]
    assert list(ours_to_public(public_to_ours(public))) == list(public)


def test_query_key_and_value_are_joined_in_this_order_and_split_again():
    qkv = {"deit.layers.3.attention.qkv.weight": torch.arange(6.0).view(6, 1)}
    native = ours_to_native(qkv, "ViTForImageClassification")
    prefix = "vit.encoder.layer.3.attention.attention"
    assert {name: tensor.flatten().tolist() for name, tensor in native.items()} == {
        f"{prefix}.query.weight": [0, 1],
        f"{prefix}.key.weight": [2, 3],
        f"{prefix}.value.weight": [4, 5],
    }
    assert_same(native_to_ours(native), qkv)
    newer = {f"deit.layers.3.attention.{part}_proj.weight": t for part, t in zip("qkv", native.values(), strict=True)}
    assert_same(native_to_ours(newer), qkv)
