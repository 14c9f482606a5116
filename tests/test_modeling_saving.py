"""The student saved and loaded, with this package and without it."""

import inspect
import json
import sys
from pathlib import Path

import pytest
import torch
from helpers.new_processes import run_python
from helpers.students import AUTO_MAP, CODE_FILES, images
from huggingface_hub import HfApi
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, dynamic_module_utils

import modeling_deit_distill
from modeling_deit_distill import DeiTDistillForImageClassification, DeiTDistillModel


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_config):
    """A saved classifier of 32 pixels."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(7)
    DeiTDistillForImageClassification(tiny_config(fusion="softmax_mean")).save_pretrained(folder)
    return folder


def load(folder, **arguments):
    return DeiTDistillForImageClassification.from_pretrained(folder, **arguments)


def assert_same_weights(ours: nn.Module, theirs: nn.Module, but=()):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys()
    differing = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert differing == list(but)


@pytest.mark.parametrize("token", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_save_and_load_keep_every_bit(tiny_model, tmp_path, token, dtype):
    model = tiny_model(use_distillation_token=token, image_size=(32, 48)).to(dtype)
    model.save_pretrained(tmp_path)
    loaded, info = load(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert not loaded.training
    assert_same_weights(loaded, model)
    pixels = images(size=(32, 48)).to(dtype)
    assert torch.equal(loaded(pixels).logits, model(pixels).logits)


def test_the_saved_folder_serves_every_auto_class(checkpoint):
    assert json.loads((checkpoint / "config.json").read_text())["auto_map"] == AUTO_MAP
    for name in CODE_FILES:
        assert (checkpoint / name).read_text() == (Path(modeling_deit_distill.__file__).parent / name).read_text()


@pytest.fixture
def modules_folder(monkeypatch, tmp_path):
    """Where transformers copies the code of a checkpoint to, and from where it imports it."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {name: sys.modules.pop(name) for name in [*sys.modules] if name.startswith("transformers_modules")}
    yield tmp_path / "modules"
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]
    sys.modules.update(before)


def test_the_code_in_the_folder_is_enough(checkpoint, modules_folder):
    config_class, model_class, classifier_class = (
        dynamic_module_utils.get_class_from_dynamic_module(AUTO_MAP[name], checkpoint)
        for name in ("AutoConfig", "AutoModel", "AutoModelForImageClassification")
    )
    assert classifier_class is not DeiTDistillForImageClassification
    assert Path(inspect.getfile(classifier_class)).is_relative_to(modules_folder)
    config = config_class.from_pretrained(checkpoint)
    transformer = model_class.from_pretrained(checkpoint, config=config)
    classifier = classifier_class.from_pretrained(checkpoint, config=config)
    assert (type(classifier.config), config.fusion) == (config_class, "softmax_mean")
    assert torch.equal(transformer(images()).last_hidden_state, load(checkpoint).deit(images()).last_hidden_state)
    assert torch.equal(classifier(images()).logits, load(checkpoint)(images()).logits)


def test_a_loaded_model_saves_as_completely_as_a_new_one(checkpoint, tmp_path):
    load(checkpoint).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert {path.name for path in tmp_path.glob("*.py")} == CODE_FILES
    assert_same_weights(load(tmp_path), load(checkpoint))


def test_saving_the_transformer_alone(tiny_config, tmp_path):
    model = DeiTDistillModel(tiny_config())
    model.save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert {"AutoConfig", "AutoModel"} <= auto_map.keys() and auto_map.items() <= AUTO_MAP.items()
    assert {path.name for path in tmp_path.glob("*.py")} == CODE_FILES
    assert_same_weights(AutoModel.from_pretrained(tmp_path), model)


@pytest.mark.parametrize(
    ("loader", "expected"),
    [
        (DeiTDistillForImageClassification, DeiTDistillForImageClassification),
        (AutoModelForImageClassification, DeiTDistillForImageClassification),
        (DeiTDistillModel, DeiTDistillModel),
        (AutoModel, DeiTDistillModel),
    ],
    ids=["own classifier", "AutoModelForImageClassification", "own transformer", "AutoModel"],
)
@pytest.mark.parametrize("image_size", [32, (16, 40)], ids=str)
def test_loading_into_an_image_size(checkpoint, loader, expected, image_size):
    # With the package imported, the Auto classes need no remote code.
    remote = {} if loader is expected else {"trust_remote_code": False}
    model, info = loader.from_pretrained(checkpoint, image_size=image_size, output_loading_info=True, **remote)
    assert type(model) is expected
    assert not any(info.values())  # nothing missing, nothing left over, nothing drawn anew

    reference = expected.from_pretrained(checkpoint)
    reference.resize_position_embeddings(image_size)
    assert_same_weights(model, reference)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    assert torch.equal(model(images(size=size))[0], reference(images(size=size))[0])
    assert model.config.image_size == image_size


@pytest.mark.parametrize("loader", [DeiTDistillForImageClassification, AutoModelForImageClassification])
def test_loading_with_a_changed_config(checkpoint, loader):
    config = AutoConfig.from_pretrained(checkpoint, image_size=48, drop_path_rate=0.4, fusion="cls")
    model = loader.from_pretrained(checkpoint, config=config)
    assert_same_weights(model, load(checkpoint, image_size=48))
    assert (model.config.image_size, model.config.drop_path_rate, model.config.fusion) == (48, 0.4, "cls")
    assert config.image_size == 48  # the caller's own config is left as it was


def test_a_resized_model_saves_and_loads_at_its_new_size(checkpoint, tmp_path):
    model = load(checkpoint, image_size=48)
    model.save_pretrained(tmp_path)
    assert_same_weights(load(tmp_path), model)
    assert load(tmp_path).config.image_size == 48


@pytest.mark.parametrize("image_size", [32, 48])
def test_new_classes_draw_new_heads_and_keep_all_else(checkpoint, image_size):
    old = load(checkpoint, image_size=image_size)
    new, info = load(
        checkpoint, num_labels=7, image_size=image_size, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_same_weights(new.deit, old.deit)
    for head in (new.cls_classifier, new.distillation_classifier):
        assert head.weight.shape == (7, 32) and (head.bias == 0).all()
        # 224 normal draws of std 0.2: standard error 0.2 / √448 = 0.0094; five of them.
        assert head.weight.std().item() == pytest.approx(0.2, abs=0.047)


def test_other_classes_are_refused_unless_asked_for(checkpoint):
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        load(checkpoint, num_labels=7)


def test_a_classifier_on_a_saved_transformer_draws_its_heads_only(checkpoint, tmp_path):
    transformer = DeiTDistillModel.from_pretrained(checkpoint)
    transformer.save_pretrained(tmp_path)
    model, info = load(tmp_path, output_loading_info=True)
    assert all(name.split(".")[0].endswith("_classifier") for name in info["missing_keys"])
    assert_same_weights(model.deit, transformer)


def test_positions_are_never_drawn_anew(checkpoint):
    # Not even where the shapes would fit by chance.
    for changes in ({"patch_size": 4}, {"patch_size": 4, "image_size": 16}, {"use_distillation_token": False}):
        for ignore in (False, True):
            with pytest.raises(ValueError, match=next(iter(changes))):
                load(checkpoint, ignore_mismatched_sizes=ignore, **changes)


@pytest.mark.parametrize("saved", [8, (8, 8)], ids=str)
def test_the_same_patch_size_may_be_written_as_a_pair(tiny_config, tiny_model, tmp_path, saved):
    model = tiny_model(patch_size=saved)
    model.save_pretrained(tmp_path)
    for patch_size in (8, (8, 8), [8, 8]):
        assert_same_weights(load(tmp_path, config=tiny_config(patch_size=patch_size)), model)


def test_loading_into_a_size_between_patches_is_refused(checkpoint):
    with pytest.raises(ValueError, match="image_size 33"):
        load(checkpoint, image_size=33)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_may_be_chosen_when_loading(checkpoint, attention):
    assert load(checkpoint, attn_implementation=attention).config._attn_implementation == attention


def test_dtype_may_be_chosen_when_loading(checkpoint):
    model = load(checkpoint, dtype=torch.bfloat16, image_size=48)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own call
@pytest.mark.parametrize("loader", [DeiTDistillForImageClassification, AutoModelForImageClassification])
def test_a_revision_is_loaded_at_its_own_image_size(server, tiny_model, tmp_path, loader):
    HfApi().create_repo("me/model")
    revisions = {}
    for size in (32, 48):
        tiny_model(image_size=size).save_pretrained(tmp_path / str(size))
        revisions[size] = HfApi().upload_folder(repo_id="me/model", folder_path=tmp_path / str(size)).oid
    early = loader.from_pretrained("me/model", revision=revisions[32])
    assert early.config.image_size == 32 and loader.from_pretrained("me/model").config.image_size == 48
    assert_same_weights(early, load(tmp_path / "32"))
    resized = loader.from_pretrained("me/model", revision=revisions[32], image_size=16)
    assert_same_weights(resized, load(tmp_path / "32", image_size=16))


STRANGER = """
import importlib.abc, json, sys

class Absent(importlib.abc.MetaPathFinder):  # the package may be installed where the tests run
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "modeling_deit_distill":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

folder, pixels, answers = sys.argv[1:4]
pixels = torch.load(pixels)
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
transformer = AutoModel.from_pretrained(folder, trust_remote_code=True)
classifier = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
larger = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True, image_size=48)
classifier.save_pretrained("again")
again = AutoModelForImageClassification.from_pretrained("again", trust_remote_code=True)
with torch.no_grad():
    torch.save({
        "config": config.to_dict(),
        "tokens": transformer(pixels).last_hidden_state,
        "logits": classifier(pixels).logits,
        "again": again(pixels).logits,
        "positions at 48": larger.get_position_embeddings().detach(),
        "module": type(classifier).__module__,
    }, answers)
"""


@pytest.fixture(scope="module")
def stranger(checkpoint, tmp_path_factory):
    """What a process that has never heard of the package finds in the checkpoint, and the folder it worked in."""
    folder = tmp_path_factory.mktemp("elsewhere")
    torch.save(images(), folder / "pixels.pt")
    modules = tmp_path_factory.mktemp("modules")
    run_python(STRANGER, folder, str(checkpoint), "pixels.pt", "answers.pt", HF_MODULES_CACHE=str(modules))
    return folder, torch.load(folder / "answers.pt")


@pytest.mark.slow
def test_a_stranger_loads_every_auto_class(checkpoint, stranger):
    _, answers = stranger
    model = load(checkpoint)
    assert answers["module"].startswith("transformers_modules.")
    assert (answers["config"]["model_type"], answers["config"]["fusion"]) == ("deit_distill", "softmax_mean")
    with torch.no_grad():
        torch.testing.assert_close(answers["tokens"], model.deit(images()).last_hidden_state)
        torch.testing.assert_close(answers["logits"], model(images()).logits)


@pytest.mark.slow
def test_a_stranger_loads_into_another_image_size(checkpoint, stranger):
    _, answers = stranger
    positions = load(checkpoint, image_size=48).get_position_embeddings().detach()
    torch.testing.assert_close(answers["positions at 48"], positions)


@pytest.mark.slow
def test_a_stranger_saves_as_completely_as_we_do(checkpoint, stranger):
    folder, answers = stranger
    assert json.loads((folder / "again" / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert {path.name for path in (folder / "again").glob("*.py")} == CODE_FILES
    assert torch.equal(answers["again"], answers["logits"])
