"""What SECURITY.md promises about checkpoints, data sets and tokens that come from others."""

import ast
import contextlib
import json
import os
import shutil
from dataclasses import fields
from pathlib import Path

import PIL.Image
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from helpers.paths import ROOT
from helpers.teachers import teacher_in
from transformers import AutoConfig, AutoModelForImageClassification, ResNetConfig, ResNetForImageClassification

from modeling_deit_distill import (
    DeiTDistillConfig,
    DeiTDistillForImageClassification,
    DistillationTrainer,
    DistillationTrainingArguments,
    InputError,
)
from modeling_deit_distill.arguments import ModelArguments
from modeling_deit_distill.conversion.checkpoint import build_model, load_checkpoint
from modeling_deit_distill.data.bad_images import why_bad
from modeling_deit_distill.data.decoding import BadImageError, decode_image, decode_pixels
from modeling_deit_distill.data.evaluation import EvaluationDataset
from modeling_deit_distill.data.sources import load_image_data

SOURCES = [*ROOT.glob("modeling_deit_distill/**/*.py"), *ROOT.glob("examples/**/*.py"), ROOT / "train_deit.py"]
NAMES = ["a", "b"]


class Evil:
    """A pickle that makes a file when it is loaded with code."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


# --- no pickle with code ----------------------------------------------------------------------------------------------

# May never be called; `torch.load` may, in the way below.
FORBIDDEN = {"pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "marshal.loads", "shelve.open"}
FORBIDDEN |= {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "os.system"}


def faults(source: str) -> list[str]:
    """Calls that could run what a file holds."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name in FORBIDDEN or (name.endswith("torch.load") and given.get("weights_only") != "True"):
            found.append(name)
        if given.get("allow_pickle") == "True" or given.get("trust_remote_code") == "True":
            found.append(name)
    return found


def test_nothing_is_loaded_in_a_way_that_could_run_it():
    assert len(SOURCES) > 40
    assert {str(path): found for path in SOURCES if (found := faults(path.read_text(encoding="utf-8")))} == {}


def test_each_way_to_run_a_file_is_found():
    for source in (
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "numpy.load(path, allow_pickle=True)",
        "pickle.loads(b'')",
        "yaml.load(text, yaml.Loader)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ):
        assert len(faults(source)) == 1, source
    assert faults("torch.load(path, weights_only=True), yaml.safe_load(text), f(trust_remote_code=chosen)") == []


def plain_trainer(folder, **changes) -> DistillationTrainer:
    """Two steps of a student without a teacher, on random images."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = DeiTDistillConfig(**sizes, image_size=16, patch_size=8, num_labels=2, use_distillation_token=False)
    settings = {"distillation_type": "none", "mixup_alpha": 0.0, "cutmix_alpha": 0.0, "max_steps": 2, "bf16": False}
    settings |= {"per_device_train_batch_size": 4, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    args = DistillationTrainingArguments(output_dir=str(folder), **settings, **changes)
    samples = [{"pixel_values": torch.randn(3, 16, 16), "labels": index % 2} for index in range(8)]
    return DistillationTrainer(DeiTDistillForImageClassification(config), args, train_dataset=samples)


def test_a_checkpoint_with_code_is_not_run_on_resuming(tmp_path):
    plain_trainer(tmp_path, save_strategy="steps", save_steps=1).train()
    checkpoint = tmp_path / "checkpoint-1"
    (checkpoint / "complete.json").unlink()  # whose checksums whoever means ill would have changed too
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        kept = (checkpoint / name).read_bytes()
        torch.save(Evil(tmp_path / "mark"), checkpoint / name)
        with pytest.raises(InputError, match="holds a pickle with more than numbers in it, which is not loaded"):
            plain_trainer(tmp_path, save_strategy="no").train(resume_from_checkpoint=str(checkpoint))
        assert not (tmp_path / "mark").exists(), name
        (checkpoint / name).write_bytes(kept)
    plain_trainer(tmp_path, save_strategy="no").train(resume_from_checkpoint=str(checkpoint))  # as it was


def make_teacher(folder):
    classes = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", **classes)
    ResNetForImageClassification(config).save_pretrained(folder)
    return folder


def test_a_teachers_pickle_with_code_is_refused_and_not_run(tmp_path):
    folder = make_teacher(tmp_path / "teacher")
    (folder / "model.safetensors").unlink()
    torch.save({"resnet.weight": Evil(tmp_path / "mark")}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickle with code in it"):
        teacher_in(folder, NAMES)
    assert not (tmp_path / "mark").exists()


# --- no code that comes with a model ----------------------------------------------------------------------------------


def poison(folder, kind: str, mark: Path):
    """Make a checkpoint bring its own code, which makes a file when it is imported."""
    code = f"import os\nos.mkdir({str(mark)!r})\nfrom transformers import PreTrainedConfig, PreTrainedModel\n"
    code += f"class C(PreTrainedConfig):\n    model_type = {kind!r}\nclass M(PreTrainedModel):\n    config_class = C\n"
    (folder / "evil.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoModelForImageClassification": "evil.M"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": kind, "auto_map": classes}))


def test_it_is_not_trusted_by_default():
    trust = {field.name: field.default for field in fields(ModelArguments)}["trust_remote_code"]
    assert trust is False


def test_a_student_is_loaded_by_our_own_class(tmp_path, tiny_model):
    tiny_model().save_pretrained(tmp_path / "student")
    for path in (tmp_path / "student").glob("*.py"):
        path.write_text(f"import os\nos.mkdir({str(tmp_path / 'mark')!r})\n" + path.read_text())
    poison(tmp_path / "student", "deit_distill", tmp_path / "mark")
    source = str(tmp_path / "student")
    assert type(build_model(load_checkpoint(source))) is DeiTDistillForImageClassification
    assert type(DeiTDistillForImageClassification.from_pretrained(source)) is DeiTDistillForImageClassification
    assert type(AutoModelForImageClassification.from_pretrained(source)) is DeiTDistillForImageClassification
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("kind", ["resnet", "unheard_of"])
def test_a_teachers_code_is_not_run(tmp_path, kind, monkeypatch):
    folder = make_teacher(tmp_path / "teacher")
    poison(folder, kind, tmp_path / "mark")
    if kind == "resnet":  # transformers has a class of its own
        assert teacher_in(folder, NAMES) is not None
    else:
        with pytest.raises(InputError, match="contains custom code"):
            teacher_in(folder, NAMES)
    assert not (tmp_path / "mark").exists()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    with contextlib.suppress(Exception):
        AutoConfig.from_pretrained(str(folder), trust_remote_code=True)
    assert (tmp_path / "mark").exists()  # the code would have been run, had it been trusted


# --- data sets --------------------------------------------------------------------------------------------------------


def picture(path: Path, level: int = 90):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (9, 9), (level, 0, 0)).save(path)
    return str(path)


@pytest.fixture
def secret(tmp_path):
    """A private picture beside the data set's folder."""
    return picture(tmp_path / "private" / "me.png")


def test_a_dataset_script_is_not_run(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "data.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'mark')!r})\n")
    with pytest.raises(InputError, match="scripts are no longer supported"):
        load_image_data(str(tmp_path / "data"))
    shutil.copy(tmp_path / "data" / "data.py", tmp_path / "data" / "train.py")
    picture(tmp_path / "data" / "train" / "a" / "0.png")
    with pytest.raises(InputError):
        load_image_data(str(tmp_path / "data"))
    assert not (tmp_path / "mark").exists()


def as_parquet(folder, paths):
    folder.mkdir(exist_ok=True)
    features = Features({"image": Image(decode=False), "label": ClassLabel(names=NAMES)})
    images = [{"bytes": None, "path": path} for path in paths]
    labels = [index % 2 for index in range(len(paths))]
    Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(folder / "train.parquet")
    return str(folder / "train.parquet")


def as_csv(folder, paths):
    folder.mkdir(exist_ok=True)
    lines = [f"{path},{NAMES[index % 2]}" for index, path in enumerate(paths)]
    (folder / "train.csv").write_text("\n".join(["image,label", *lines]))
    return str(folder)


@pytest.mark.parametrize("save", [as_parquet, as_csv])
def test_a_row_opens_no_file_out_of_its_folder(tmp_path, secret, monkeypatch, save):
    monkeypatch.chdir(tmp_path)
    inside = [picture(tmp_path / "data" / f"{index}.png", 10 * index) for index in range(16)]
    upwards = str(tmp_path / "data" / ".." / "private" / "me.png")
    beside = picture(tmp_path / "data-of-mine" / "me.png")  # begins with the folder's name
    outside = [secret, upwards, "private/me.png", beside]
    data = load_image_data(save(tmp_path / "data", [*inside, *outside]), image_column="image")
    seen = 0
    for rows in (data.train, data.validation):
        for index, row in enumerate(rows):
            if row["image"]["path"] in inside:
                assert decode_image(row["image"]).size == (9, 9)
                continue
            seen += 1
            for read in (decode_image, decode_pixels):
                with pytest.raises(BadImageError, match="leads out of the dataset's folder, so it was not opened"):
                    read(row["image"])
            assert "was not opened" in why_bad(rows, index)
            with pytest.raises(InputError, match="me.png.*was not opened"):
                EvaluationDataset(rows, lambda image: image)[index]
    assert seen == len(outside)


def test_a_stream_opens_none_either(tmp_path, secret):
    inside = [picture(tmp_path / "data" / f"{index}.png") for index in range(4)]
    as_parquet(tmp_path / "data", [*inside, secret])
    os.rename(tmp_path / "data" / "train.parquet", tmp_path / "data" / "validation.parquet")
    as_parquet(tmp_path / "data", [secret, *inside])
    data = load_image_data(str(tmp_path / "data"), streaming=True)
    for rows in (data.train, data.validation):
        bad = [row["image"]["path"] for row in rows if row["image"]["bytes"] == b"refused"]
        assert bad == [f"refused: {secret}"]


@pytest.mark.parametrize("way", ["folder", "train_dir", "relative", "linked", "metadata"])
def test_a_folders_own_images_are_opened(tmp_path, monkeypatch, way):
    for name in NAMES:
        for index in range(3):
            picture(tmp_path / "photos" / name / f"{index}.png")
    arguments = {"dataset_name": str(tmp_path / "photos")}
    if way == "train_dir":
        arguments = {"train_dir": str(tmp_path / "photos"), "validation_dir": str(tmp_path / "photos")}
    elif way == "relative":
        monkeypatch.chdir(tmp_path)
        arguments = {"train_dir": "photos"}
    elif way == "linked":
        (tmp_path / "link").symlink_to(tmp_path / "photos")
        arguments = {"train_dir": str(tmp_path / "link")}
    elif way == "metadata":
        lines = [{"file_name": f"{name}/{index}.png", "label": name} for name in NAMES for index in range(3)]
        (tmp_path / "photos" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = load_image_data(**arguments)
    rows = [*data.train, *data.validation]
    assert len(rows) >= 6
    assert all(decode_image(row["image"]).size == (9, 9) for row in rows)


def test_the_hubs_cache_is_the_root_of_what_comes_from_it(tmp_path, monkeypatch):
    from modeling_deit_distill.data import sources as data

    monkeypatch.setattr(data.hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    roots = data._roots("me/photos")
    assert data._is_inside(str(tmp_path / "hub" / "datasets--me--photos" / "snapshots" / "0" / "a.png"), roots)
    assert not data._is_inside(str(tmp_path / "a.png"), roots)
