"""Runs of the script that push to a Hub on the loopback, and a run's folder for its card."""

import contextlib
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from helpers.cards import DECISIONS, NAMES, PROCESSOR, RECORD, RESULTS, STATE, classes
from helpers.hub_server import HubServer, use_hub
from helpers.pictures import draw_blank_pictures
from helpers.published import COLOURS, RECIPE, STRATEGIES, TOKEN
from transformers import ResNetConfig, ResNetForImageClassification

import train_deit
from modeling_deit_distill.data.evaluation import evaluation_processor


@pytest.fixture(scope="module")
def blank_pictures():
    """Pictures of one colour: drawing them takes longer than a run here."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        draw_blank_pictures(monkeypatch)
        yield


@pytest.fixture(scope="module")
def photos(save_photos):
    """Eight noisy pictures of each of two colours, wider than high."""
    return save_photos(COLOURS, 8)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A small convnet that knows the two colours' names."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teacher")
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=2)
    config.id2label, config.label2id = dict(enumerate(COLOURS)), {name: index for index, name in enumerate(COLOURS)}
    ResNetForImageClassification(config).save_pretrained(folder)
    evaluation_processor(32).save_pretrained(folder)
    return folder


@pytest.fixture
def server(monkeypatch, tmp_path):
    with HubServer(token=TOKEN) as server:
        use_hub(monkeypatch, server, tmp_path / "home")
        monkeypatch.setenv("HF_TOKEN", "hf_not_the_one")  # the argument's must be used
        yield server


@pytest.fixture(scope="module")
def train_into(photos, teacher):
    """`train_into(folder, **changes)`: run the script, the command line in the log included."""

    def run(folder: Path, **changes):
        given = {"train_dir": photos, "teacher_name_or_path": teacher, "output_dir": folder}
        words = {**RECIPE, **given, "hub_model_id": "me/colours", **changes}
        words = {key: value for key, value in words.items() if value is not None}
        train_deit.main([word for key, value in words.items() for word in (f"--{key}", str(value))])

    return run


@pytest.fixture
def train(train_into, tmp_path):
    """`train(**changes)`: run the script; the run's folder."""

    def run(**changes) -> Path:
        train_into(tmp_path / "colours", **changes)
        return tmp_path / "colours"

    return run


@pytest.fixture(scope="module")
def without_push(train_into, tmp_path_factory):
    """The folder of a finished run that was not pushed; to be copied."""
    folder = tmp_path_factory.mktemp("without_push") / "colours"
    train_into(folder, push_to_hub="false", hub_model_id=None)
    return folder


@pytest.fixture
def train_again(without_push, train, tmp_path):
    """`train_again(**changes)`: the script on a finished run, which it does not train again; the run's folder."""
    shutil.copytree(without_push, tmp_path / "colours")
    return train


@pytest.fixture(scope="module")
def pushed(train_into, tmp_path_factory):
    """`pushed(strategy)`: the Hub and the folder after a run with this `hub_strategy`, which no test changes."""
    runs = {}
    with contextlib.ExitStack() as servers:

        def get(strategy: str) -> tuple[HubServer, Path]:
            if strategy not in runs:
                folder = tmp_path_factory.mktemp(strategy)
                server = servers.enter_context(HubServer(token=TOKEN))
                with pytest.MonkeyPatch.context() as monkeypatch:
                    use_hub(monkeypatch, server, folder / "home")
                    monkeypatch.setenv("HF_TOKEN", "hf_not_the_one")
                    always = {"hub_strategy": strategy, "hub_always_push": "true"}
                    train_into(folder / "colours", **always, **STRATEGIES[strategy])
                runs[strategy] = server, folder / "colours"
            return runs[strategy]

        yield get


@pytest.fixture
def finished(tiny_model, tmp_path):
    """A folder with a model, its processor and things that are nobody's business."""
    folder = tmp_path / "run"
    tiny_model().save_pretrained(folder)
    evaluation_processor(32).save_pretrained(folder)
    state = {"global_step": 1, "log_history": [], "best_model_checkpoint": "/home/me/run/checkpoint-1"}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    (folder / "training_args.bin").write_bytes(pickle.dumps("anything"))
    (folder / "diary.txt").write_text("private")
    (folder / "teacher").mkdir()
    return folder


@pytest.fixture
def run(tmp_path, tiny_config):
    """`run(file=content, ..., config={...})`: the folder of a finished run; a file given as None is not there."""

    def make(config=None, **contents):
        output_dir = tmp_path / "a-folder"
        tiny_config(**{**classes(NAMES), **(config or {})}).save_pretrained(output_dir)
        complete = {
            "all_results": RESULTS,
            "predictions": DECISIONS,
            "run": RECORD,
            "trainer_state": STATE,
            "preprocessor_config": PROCESSOR,
        }
        for name, content in {**complete, **contents}.items():
            if content is not None:
                (output_dir / f"{name}.json").write_text(json.dumps(content))
        return output_dir

    return make


@pytest.fixture
def bare(run):
    """`bare(**contents)`: a run that left a configuration and what is given, as older ones did."""
    nothing = dict.fromkeys(("all_results", "predictions", "run", "trainer_state", "preprocessor_config"))
    return lambda config=None, **contents: run(config, **{**nothing, **contents})
