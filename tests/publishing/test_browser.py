"""What a run pushes for browsers: a branch for transformers.js and a Space, each a whole commit; the card says so."""

import json
import shutil

import pytest
from helpers.published import TOKEN
from huggingface_hub import RepoCard

from modeling_deit_distill import DistillationTrainingArguments, InputError
from modeling_deit_distill.export import onnx
from modeling_deit_distill.hub import hub_client
from modeling_deit_distill.publishing import browser
from modeling_deit_distill.publishing.browser import browser_export_of, export_for_browsers, write_space_card
from modeling_deit_distill.publishing.folder import say_pushed
from modeling_deit_distill.publishing.places import PLACES
from modeling_deit_distill.publishing.record import note_repository
from modeling_deit_distill.publishing.repository import Commit, open_repository, push_all

PUSHED = {"push_onnx": "true", "push_demo": "true"}


@pytest.mark.slow
def test_a_run_pushes_a_branch_and_a_space(server, train, waits):
    folder = train(**PUSHED)
    branch = server.files("models", "me/colours", "browser")
    assert {"config.json", "preprocessor_config.json", "README.md", "onnx/model.onnx"} < branch.keys()
    assert not any("safetensors" in path or path.endswith(".py") for path in branch)
    assert json.loads(branch["config.json"])["model_type"] == "deit"
    assert b'{ revision: "browser" }' in branch["README.md"] or b'revision: "browser", dtype' in branch["README.md"]
    assert "config.json" in server.files("models", "me/colours")  # the main branch is as ever
    assert json.loads(server.files("models", "me/colours")["config.json"])["model_type"] == "deit_distill"

    space = server.files("spaces", "me/colours-demo")
    card = RepoCard(space["README.md"].decode())
    assert card.data.sdk == "static" and card.data.models == ["me/colours"]
    assert card.data.custom_headers["cross-origin-embedder-policy"] == "require-corp"
    assert space["onnx/model.onnx"] == branch["onnx/model.onnx"]
    assert {"index.html", "demo.js", "demo.css", "examples/1.jpg"} < space.keys()
    assert not {"index.html", "demo.json", "examples/1.jpg"} & branch.keys()

    text = server.files("models", "me/colours")["README.md"].decode()
    assert "https://huggingface.co/spaces/me/colours-demo" in text and 'revision: "browser"' in text
    agreement = json.loads(branch["export.json"])["files"][0]["agreement"]
    assert agreement["images"] == agreement["equal"] > 0
    assert f"{agreement['images']} held-out images the exports decide as PyTorch does" in text

    made = (folder / "browser" / "export.json").stat().st_mtime_ns
    for place, name in (("models", "me/colours"), ("spaces", "me/colours-demo")):
        del server.repositories[place, name]
    train(**PUSHED)  # the same command again: nothing is trained or exported, all is pushed
    assert (folder / "browser" / "export.json").stat().st_mtime_ns == made
    assert server.files("models", "me/colours", "browser")["onnx/model.onnx"] == branch["onnx/model.onnx"]
    assert "onnx/model.onnx" in server.files("spaces", "me/colours-demo")


@pytest.mark.slow
def test_a_finished_run_is_exported_when_it_is_pushed_with_it(server, train, waits):
    folder = train()
    assert not (folder / "browser").exists()
    train(push_onnx="true")
    assert "onnx/model.onnx" in server.files("models", "me/colours", "browser")
    assert b'revision: "browser"' in server.files("models", "me/colours")["README.md"]


@pytest.mark.slow
def test_the_space_of_a_private_model_is_private(server, train, waits, written):
    train(push_demo="true", hub_private_repo="true")
    assert server.repositories["models", "me/colours"].private
    assert server.repositories["spaces", "me/colours-demo"].private


@pytest.fixture
def written(monkeypatch):
    """Exports that are written without a model; how often."""
    calls = []

    def write(source, folder, name, leave_out):
        calls.append(name)
        (folder / "export.json").write_text('{"files": []}')

    monkeypatch.setattr(browser, "write_browser", write)
    monkeypatch.setattr(browser, "write_demo", lambda source, folder, name, exported: None)
    return calls


def test_an_export_is_of_the_model_that_is_there(finished, written):
    assert browser_export_of(finished) == finished / "browser"
    browser_export_of(finished)
    assert len(written) == 1
    path = finished / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b"pt", b"PT"))
    shutil.copy(path, finished / "model-00001-of-00001.safetensors")
    browser_export_of(finished)
    assert len(written) == 2
    config = json.loads((finished / "config.json").read_text())
    (finished / "config.json").write_text(json.dumps({**config, "fusion": "cls"}))
    browser_export_of(finished)  # it answers otherwise by now
    assert len(written) == 3


def test_missing_packages_are_named_before_training(server, train, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    for name in PUSHED:
        with pytest.raises(InputError, match=r"exporting needs onnxscript .*pip install -e '\.\[onnx\]'"):
            train(**{name: "true"})
    with pytest.raises(InputError, match="exporting needs onnxscript"):
        export_for_browsers(tmp_path)
    assert not (tmp_path / "colours" / "checkpoint-2").exists()


@pytest.mark.parametrize("name", PUSHED)
def test_copies_need_a_push_and_a_branch_of_their_own(tmp_path, name):
    with pytest.raises(InputError, match=f"^{name} is true but push_to_hub is not"):
        DistillationTrainingArguments(output_dir=str(tmp_path), **{name: True})
    given = {"output_dir": str(tmp_path), "push_to_hub": True, "hub_token": TOKEN, "hub_revision": "browser"}
    if name == "push_onnx":
        with pytest.raises(InputError, match="hub_revision is 'browser', where push_onnx puts its copy"):
            DistillationTrainingArguments(**given, **{name: True})
    else:
        assert DistillationTrainingArguments(**given, **{name: True}).copies == ("demo",)


@pytest.mark.parametrize("was_there", [False, True])
def test_a_public_space_of_a_private_model_is_a_warning(server, tmp_path, caplog, was_there):
    destination = open_repository("me/colours", TOKEN, private=True)
    if was_there:
        hub_client(TOKEN).create_repo("me/colours-demo", repo_type="space", space_sdk="static", private=False)
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / "index.html").write_text("the page")
    push_all([Commit(tmp_path / "stage", "Demo", ("*",), is_demo=True)], destination)
    assert server.repositories["spaces", "me/colours-demo"].private is not was_there
    assert ("the Space me/colours-demo is public and its model is private" in caplog.text) is was_there


def test_places_promise_no_runtime_that_refuses_the_files():
    """WebGPU has no `Resize` with `antialias`."""
    assert not any("WebGPU" in words for words in PLACES.values())


def test_where_a_run_was_pushed_is_printed_and_what_a_page_shows(tmp_path, capsys):
    settings = {"output_dir": str(tmp_path), "push_to_hub": True, "hub_token": TOKEN, "use_cpu": True}
    note_repository(tmp_path, "me/colours")
    say_pushed(DistillationTrainingArguments(**settings))
    assert capsys.readouterr().out == "pushed to me/colours\n"
    args = DistillationTrainingArguments(**settings, push_native=True, push_onnx=True, push_demo=True)
    say_pushed(args)
    said = "pushed to me/colours, its branch native, its branch browser, the Space me/colours-demo"
    assert capsys.readouterr().out == f"{said}\n"
    (tmp_path / "browser" / "examples").mkdir(parents=True)
    for number in (1, 2):
        (tmp_path / "browser" / "examples" / f"{number}.jpg").touch()
    say_pushed(args)
    assert capsys.readouterr().out == f"{said}, which shows 2 of the held-out images\n"


def test_the_space_card_is_what_the_hub_reads(tmp_path):
    write_space_card(tmp_path, "me/colours")
    data = RepoCard.load(tmp_path / "README.md").data
    assert (data.title, data.sdk, data.app_file, data.models) == ("colours", "static", "index.html", ["me/colours"])
    assert data.custom_headers["cross-origin-opener-policy"] == "same-origin"
    assert "held out" not in (tmp_path / "README.md").read_text()
    (tmp_path / "examples").mkdir()
    write_space_card(tmp_path, "me/colours")
    assert "The examples are images of the data that me/colours was measured on" in (tmp_path / "README.md").read_text()


def test_a_refused_precision_is_a_warning(caplog):
    browser._warn(InputError("model_quantized.onnx: only 90 of 100"))
    assert "made without this file: model_quantized.onnx: only 90 of 100" in caplog.text
    assert onnx.PRECISIONS[0] == "fp32"
