"""A checkpoint's files, wherever they lie, and what is refused."""

import argparse
import json
import os
import pickle
from pathlib import Path

import pytest
import timm
import torch
from helpers.checkpoints import (
    NAMES,
    NATIVE,
    TOLERANCE,
    assert_same_weights,
    difference,
    randomise,
    refused,
    student,
    write,
)
from helpers.hub_server import HubServer, skip_waits, use_hub
from huggingface_hub import HfApi, snapshot_download
from safetensors.torch import load_file, save_file
from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher, DeiTModel, ViTImageProcessor

from modeling_deit_distill.conversion import reading
from modeling_deit_distill.conversion.checkpoint import build_model, load_checkpoint
from modeling_deit_distill.conversion.saving import save_checkpoint, save_native, save_timm
from modeling_deit_distill.conversion.weight_names import ours_to_public, public_to_ours

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own call


def test_the_public_codes_training_checkpoint_is_read(tmp_path, public, monkeypatch):
    warnings = []
    monkeypatch.setattr(reading.logger, "warning", warnings.append)
    content = {
        "model": public,
        "model_ema": {name: tensor + 1 for name, tensor in public.items()},
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
        "epoch": 3,
        "args": argparse.Namespace(model="deit_tiny", lr=5e-4, aa="rand-m9-mstd0.5-inc1", resume=None, betas=(0.9, 1)),
    }
    torch.save(content, tmp_path / "checkpoint.pth")
    checkpoint = load_checkpoint(str(tmp_path / "checkpoint.pth"))
    assert_same_weights(checkpoint.state_dict, public_to_ours(public))
    assert "not those of `model_ema`" in warnings[0]


WRAPPERS = ("module.", "_orig_mod.", "model.", "module._orig_mod.", "model._orig_mod.module.")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_names_may_be_wrapped_by_what_trains_and_compiles(tmp_path, public, suffix):
    inside = {name.replace("blocks.0.", "blocks.0._orig_mod."): tensor for name, tensor in public.items()}
    layouts = [{f"{wrapper}{name}": tensor for name, tensor in public.items()} for wrapper in WRAPPERS]
    layouts += [inside, {f"_fsdp_wrapped_module.{name}": tensor for name, tensor in inside.items()}]
    layouts += [{**layouts[0], "n_averaged": torch.tensor(3)}]  # torch's AveragedModel
    for number, wrapped in enumerate(layouts):
        path = tmp_path / f"{number}{suffix}"
        save_file(wrapped, path) if suffix == ".safetensors" else torch.save(wrapped, path)
        checkpoint = load_checkpoint(path)
        assert_same_weights(checkpoint.state_dict, public_to_ours(public))
        assert (checkpoint.config.num_attention_heads, checkpoint.config.image_size) == (1, 32)


def test_names_that_become_equal_are_refused(tmp_path, public):
    name = next(name for name in public if name.startswith("blocks.0."))
    twice = {**public, name.replace("blocks.0.", "blocks.0._orig_mod."): public[name] + 1}
    torch.save(twice, tmp_path / "twice.pth")
    assert "become equal" in refused(tmp_path / "twice.pth")


def other(weights: dict) -> dict:
    return {name: tensor + 1 for name, tensor in weights.items()}


def test_which_of_several_sets_of_weights_is_taken_is_said(tmp_path, public, monkeypatch):
    said = []
    monkeypatch.setattr(reading.logger, "warning", said.append)
    for content, words in [
        (
            {"state_dict": public, "state_dict_ema": other(public)},
            "of `state_dict` are taken, not those of `state_dict_ema`",
        ),
        ({"model_ema": public, "epoch": 3}, "the averaged weights of `model_ema` are taken"),
        ({"state_dict_ema": {f"module.{name}": tensor for name, tensor in public.items()}}, "of `state_dict_ema` are"),
        ({"ema_state_dict": public, "model": {}, "optimizer": {}}, "of `ema_state_dict` are taken"),
        (
            {"model": {"state_dict": public}, "model_ema": other(public)},
            "of `model` are taken, not those of `model_ema`",
        ),
        ({"model": {"depth": 12}, "state_dict": public}, None),  # a description, no weights
    ]:
        torch.save(content, tmp_path / "checkpoint.pth")
        assert_same_weights(load_checkpoint(str(tmp_path / "checkpoint.pth")).state_dict, public_to_ours(public))
        assert [words in line for line in said] == [True] if words else said == [], words
        said.clear()


@pytest.mark.parametrize("keys", [("model", "state_dict"), ("model_ema", "state_dict_ema")])
def test_where_it_is_not_clear_which_weights_are_meant_they_are_named(tmp_path, public, keys):
    torch.save(dict(zip(keys, (public, other(public)), strict=True)), tmp_path / "checkpoint.pth")
    assert f"several sets of weights: {', '.join(keys)}; save one of them alone" in refused(tmp_path / "checkpoint.pth")


def test_our_own_names_are_read_from_a_file_too(tmp_path, public):
    torch.save(public_to_ours(public), tmp_path / "ours.pt")
    checkpoint = load_checkpoint(str(tmp_path / "ours.pt"))
    assert checkpoint.format == "deit_distill"
    assert_same_weights(checkpoint.state_dict, public_to_ours(public))


class Malicious:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("plain", [False, True])
def test_a_pickle_that_holds_code_is_refused_and_not_run(tmp_path, public, plain):
    content = {"model": public, "args": Malicious(tmp_path / "made")}
    path = tmp_path / "bad.pth"
    path.write_bytes(pickle.dumps(content["args"], protocol=2)) if plain else torch.save(content, path)
    assert "is not opened" in refused(path)
    assert not (tmp_path / "made").exists()


def test_a_folder_with_such_a_pickle_is_refused_too(tiny_config, tmp_path):
    save_native(student(tiny_config), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"a": Malicious(tmp_path / "made")}, tmp_path / "pytorch_model.bin")
    assert "posix.mkdir, which is code" in refused(tmp_path)
    assert not (tmp_path / "made").exists()


def test_files_that_are_no_checkpoints_are_refused(tmp_path, public):
    torch.save({"model": public}, tmp_path / "whole.pth")
    (tmp_path / "half.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:5000])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "page.safetensors").write_text("<html>not found</html>")
    (tmp_path / "weights.onnx").write_bytes(b"x")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"epoch": 3, "cls_token": torch.zeros(1)}, tmp_path / "mixed.pt")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pt")
    reasons = {
        "half.pth": "is no file that torch.save wrote",
        "empty.pth": "is no file that torch.save wrote",
        "page.safetensors": "cannot be read",
        "weights.onnx": "those end in .safetensors, .pth, .pt, .bin",
        "list.pt": "holds no state dict",
        "mixed.pt": "epoch is no tensor",
        "resnet.pt": "holds no DeiT: there is no patch embedding among conv1.weight",
    }
    for name, reason in reasons.items():
        assert reason in refused(tmp_path / name)


def test_weights_that_do_not_fit_are_named(tmp_path, public):
    def changed(**changes) -> str:
        state = {**public, **{name.replace("__", "."): tensor for name, tensor in changes.items()}}
        torch.save({name: tensor for name, tensor in state.items() if tensor is not None}, tmp_path / "x.pth")
        return refused(tmp_path / "x.pth")

    assert "no classification head" in changed(head__weight=None, head__bias=None)
    assert "deit.layers.1.norm1.bias missing" in changed(blocks__1__norm1__bias=None)
    assert "distillation_classifier.bias, distillation_classifier.weight missing" in changed(
        head_dist__weight=None, head_dist__bias=None
    )
    assert "blocks.0.ls1.gamma, blocks.1.ls1.gamma unexpected" in changed(
        blocks__0__ls1__gamma=torch.ones(64), blocks__1__ls1__gamma=torch.ones(64)
    )
    assert "deit.norm.weight is (63,), not (64,)" in changed(norm__weight=torch.ones(63))
    assert "deit.layers.0.mlp.fc1.weight is missing" in changed(blocks__0__mlp__fc1__weight=None)
    assert "has 3 dimensions, not 4" in changed(patch_embed__proj__weight=torch.ones(1, 2, 3))
    assert "15 patches are no square" in changed(pos_embed=torch.ones(1, 17, 64))


def test_a_body_without_a_head_is_refused(tmp_path):
    DeiTModel(DeiTConfig(**NATIVE)).save_pretrained(tmp_path)
    assert "no classification head" in refused(tmp_path)


def test_heads_that_cannot_be_inferred_are_asked_for(tiny_config, tmp_path):
    start = student(tiny_config)
    torch.save(ours_to_public(start.state_dict), tmp_path / "x.pth")
    assert "its width 32 is not divisible by 64" in refused(tmp_path / "x.pth")
    write(tmp_path, config={"num_attention_heads": 4})
    checkpoint = load_checkpoint(str(tmp_path / "x.pth"))
    assert checkpoint.config.num_attention_heads == 4 and checkpoint.format == "public"
    write(tmp_path, config={"num_attention_heads": 5})
    assert "not divisible by num_attention_heads 5" in refused(tmp_path / "x.pth")


def test_an_image_size_that_is_no_square_is_asked_for(tiny_config, tmp_path):
    start = student(tiny_config, image_size=[16, 48])  # 2 x 6 patches
    torch.save(ours_to_public(start.state_dict), tmp_path / "x.pth")
    write(tmp_path, config={"num_attention_heads": 4})
    assert "its 12 patches are no square" in refused(tmp_path / "x.pth")
    write(tmp_path, config={"num_attention_heads": 4, "image_size": [16, 48]})
    checkpoint = load_checkpoint(str(tmp_path / "x.pth"))
    assert checkpoint.config.image_size == [16, 48]
    assert dict(checkpoint.processor.crop_size)["width"] == 48
    assert checkpoint.processor.size["shortest_edge"] == int(48 / 0.875)  # a square image holds the crop as well


# Folders and names that are refused


def test_folders_that_hold_something_else_are_refused(tiny_config, tmp_path):
    assert refused(tmp_path).endswith("holds no model (it has no config.json); give the output folder of a run")
    tiny_config().save_pretrained(tmp_path / "few")
    assert refused(tmp_path).endswith(f"; give the output folder of a run, such as '{tmp_path / 'few'}'")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert "has no config.json; give one of its weight files" in refused(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    write(tmp_path, config={"model_type": "swin"})
    assert refused(tmp_path).endswith("describes a 'swin', not deit_distill, deit or vit; give a DeiT or a ViT")
    write(tmp_path / "teacher", config={"model_type": "resnet"})
    assert refused(tmp_path / "teacher").endswith("; give a DeiT or a ViT")
    tiny_config().save_pretrained(tmp_path)
    assert refused(tmp_path / "teacher").endswith(f"; give '{tmp_path}', the student of its run")
    write(tmp_path, config={"model_type": "deit"})
    assert "has no weights (model.safetensors or pytorch_model.bin)" in refused(tmp_path)
    write(tmp_path, config=[1])
    assert "config.json" in refused(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "is no JSON" in refused(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    native = DeiTForImageClassificationWithTeacher(DeiTConfig(**NATIVE))
    native.save_pretrained(tmp_path, max_shard_size="50KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[0]
    shard.unlink()
    assert f"lacks {shard.name}" in refused(tmp_path)


def test_names_that_mean_nothing_are_refused():
    for source, reason in [
        ("weights", "is no file, no folder, no model of timm's and no Hub name"),
        ("weights.pth", "is no file and no folder here; check the path"),
        ("../weights", "is no file and no folder here; check the path"),
        ("deit3_small_patch16_224", "no DeiT of the paper; those are: deit_base_distilled"),
        ("vit_tiny_patch16_224", "is timm's vit_tiny_patch16_224, no DeiT of the paper"),
        ("deit_tiny_patch16_224.nobody", "timm has no weights 'deit_tiny_patch16_224.nobody'"),
        ("a/b/c", "is no file and no folder here; check the path"),
    ]:
        assert reason in refused(source), source


GOOGLE = ViTImageProcessor().to_dict() | {"resample": 2}


# The Hub


@pytest.fixture
def server(monkeypatch, tmp_path):
    with HubServer(user="timm") as server:
        use_hub(monkeypatch, server, tmp_path / "home")
        yield server


def publish(server, name: str, folder: Path):
    api = HfApi(endpoint=server.endpoint, token=server.token)
    api.create_repo(name)
    api.upload_folder(repo_id=name, folder_path=folder)


def test_a_name_of_timms_is_fetched_from_the_hub(server, tmp_path):
    model = randomise(timm.create_model("deit_tiny_distilled_patch16_224"))
    timm.models.save_for_hf(model, tmp_path / "timm", safe_serialization=True)  # as timm itself writes its folders
    name = "deit_tiny_distilled_patch16_224.fb_in1k"
    publish(server, f"timm/{name}", tmp_path / "timm")
    for source in (name, "deit_tiny_distilled_patch16_224", f"timm/{name}"):
        checkpoint = load_checkpoint(source)
        assert checkpoint.format == "timm"
        assert_same_weights(ours_to_public(checkpoint.state_dict), model.state_dict())
    assert checkpoint.config.num_attention_heads == 3
    assert checkpoint.processor.size["shortest_edge"] == int(224 / 0.9)  # timm's own fraction
    assert difference(build_model(checkpoint), model, torch.randn(1, 3, 224, 224)) <= TOLERANCE


def test_a_native_repository_is_fetched_from_the_hub(server, tmp_path):
    native = randomise(DeiTForImageClassificationWithTeacher(DeiTConfig(**NATIVE)))
    native.save_pretrained(tmp_path / "native")
    publish(server, "timm/native", tmp_path / "native")
    checkpoint = load_checkpoint("timm/native")
    assert difference(build_model(checkpoint), native, torch.randn(2, 3, 32, 32)) <= TOLERANCE
    assert "cannot be read" in refused("timm/nothing")


def test_a_hub_that_fails_is_no_hub_without_the_file(server, tmp_path, monkeypatch):
    skip_waits(monkeypatch)
    DeiTForImageClassificationWithTeacher(DeiTConfig(**NATIVE)).save_pretrained(tmp_path / "native")
    write(tmp_path / "native", preprocessor_config=GOOGLE)
    publish(server, "timm/native", tmp_path / "native")
    server.fail("*", "/resolve/main/preprocessor_config.json", 503, times=100)
    assert "cannot be read" in refused("timm/native")  # rather than ImageNet's statistics


def test_what_was_fetched_is_read_without_the_hub(tmp_path, monkeypatch):
    DeiTForImageClassificationWithTeacher(DeiTConfig(**NATIVE)).save_pretrained(tmp_path / "native")
    skip_waits(monkeypatch)
    with HubServer(user="timm") as server:
        use_hub(monkeypatch, server, tmp_path / "home")
        publish(server, "timm/native", tmp_path / "native")
        checkpoint = load_checkpoint("timm/native")  # it has no preprocessor, which is remembered too
    assert_same_weights(load_checkpoint("timm/native").state_dict, checkpoint.state_dict)
    assert "cannot be read" in refused("timm/other")


@pytest.mark.parametrize("is_pickle", [False, True])
def test_a_repository_fetched_by_hand_is_read_without_the_hub(tiny_config, tmp_path, monkeypatch, is_pickle):
    # `hf download` keeps no word of the files that a repository lacks; timm's configuration needs no image processor's.
    save_timm(student(tiny_config), tmp_path / "deit")
    if is_pickle:
        weights = tmp_path / "deit" / "model.safetensors"
        torch.save(load_file(weights), tmp_path / "deit" / "pytorch_model.bin")
        weights.unlink()
    skip_waits(monkeypatch)
    with HubServer(user="timm") as server:
        use_hub(monkeypatch, server, tmp_path / "home")
        publish(server, "timm/deit", tmp_path / "deit")
        snapshot_download("timm/deit", token=server.token)
    expected, found = load_checkpoint(tmp_path / "deit"), load_checkpoint("timm/deit")
    assert_same_weights(found.state_dict, expected.state_dict)
    assert found.processor.to_dict() == expected.processor.to_dict()
    for name in ("model.safetensors", "pytorch_model.bin"):
        for path in (tmp_path / "home").rglob(name):
            path.unlink()
    assert "cannot be read from the Hub" in refused("timm/deit")


def test_what_lies_on_the_disk_goes_before_names(tiny_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(student(tiny_config), "deit_tiny_patch16_224")
    assert load_checkpoint("deit_tiny_patch16_224").config.id2label == NAMES


def test_weights_that_are_not_finite_are_refused(tmp_path, tiny_model):
    model = tiny_model()
    model.deit.layers[0].mlp.fc1.bias.data[3] = torch.inf
    model.save_pretrained(tmp_path)
    assert "holds weights that are not finite, first deit.layers.0.mlp.fc1.bias; give another" in refused(tmp_path)


@pytest.mark.parametrize("name", ["image_std", "image_mean"])
def test_statistics_that_would_spoil_the_pixels_are_refused(tmp_path, tiny_model, name):
    tiny_model().save_pretrained(tmp_path)
    content = {"size": {"shortest_edge": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    content[name] = [0.5, 0.0 if name == "image_std" else float("nan"), 0.5]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    assert f"the checkpoint's image processor has {name} [0.5, " in refused(tmp_path)
