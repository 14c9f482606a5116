"""The test server of the Hub, asked by the real client."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hub_server import ATTRIBUTES, HubServer, lfs_oid, skip_waits, use_hub
from huggingface_hub import (
    CommitOperationDelete,
    HfApi,
    ModelCard,
    create_repo,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
    whoami,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own call

KINDS = {"model": "models", "dataset": "datasets"}
CARD = "---\nlicense: mit\n---\n# Pixels\n"


@pytest.fixture
def server(monkeypatch, tmp_path):
    with HubServer() as server:
        use_hub(monkeypatch, server, tmp_path / "home")
        yield server


@pytest.fixture
def api(server):
    return HfApi(endpoint=server.endpoint, token=server.token)


@pytest.fixture
def folder(tmp_path):
    """A folder with small files, one of them in a folder, and an LFS file."""
    folder = tmp_path / "folder"
    (folder / "part one").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    (folder / "part one" / "labels.json").write_text("[0, 1]")
    (folder / "part one" / "pixels.npy").write_bytes(bytes(range(256)) * 20)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def push(api, folder, kind="model", **options):
    api.create_repo("me/store", repo_type=kind, exist_ok=True)
    return api.upload_folder(repo_id="me/store", repo_type=kind, folder_path=folder, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_pushed_folder_is_served_in_full(server, api, folder, tmp_path, kind):
    url = api.create_repo("me/store", repo_type=kind)
    assert (url.repo_id, url.repo_type) == ("me/store", kind)
    commit = push(api, folder, kind, commit_message="Pixels")
    expected = {".gitattributes": ATTRIBUTES, **contents(folder)}
    assert server.files(KINDS[kind], "me/store") == expected
    assert [commit.message for commit in server.commits(KINDS[kind], "me/store")] == ["initial commit", "Pixels"]
    assert commit.oid == server.commits(KINDS[kind], "me/store")[-1].sha
    assert sorted(api.list_repo_files("me/store", repo_type=kind)) == sorted(expected)
    given = {"endpoint": server.endpoint, "token": server.token, "repo_type": kind, "cache_dir": tmp_path / "cache"}
    one = hf_hub_download("me/store", "part one/pixels.npy", **given)
    assert Path(one).read_bytes() == expected["part one/pixels.npy"]
    whole = snapshot_download("me/store", **given)
    assert Path(whole).name == commit.oid
    assert contents(Path(whole)) == expected


def test_only_large_files_go_through_lfs(server, api, folder):
    push(api, folder)
    assert server.count("PUT", "^/lfs/models/me/store/") == 1
    assert server.count("POST", "verify$") == 1
    info = {file.rfilename: file for file in api.model_info("me/store", files_metadata=True).siblings}
    assert info["part one/pixels.npy"].lfs.size == info["part one/pixels.npy"].size == 5120
    assert info["README.md"].lfs is None and info["README.md"].size == len(CARD)


def test_files_from_the_threshold_on_are_large(tmp_path, monkeypatch):
    with HubServer(lfs_threshold=10) as server:
        use_hub(monkeypatch, server)
        api = HfApi()
        api.create_repo("store")
        for size in (9, 10):
            api.upload_file(path_or_fileobj=b"x" * size, path_in_repo=f"{size}.txt", repo_id="me/store")
        assert server.commits("models", "me/store")[-1].large == {"10.txt"}


def test_tree_lists_files_and_folders_with_their_last_commit(api, folder):
    first = push(api, folder)
    second = api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="me/store")
    top = {item.path: item for item in api.list_repo_tree("me/store", expand=True)}
    assert set(top) == {".gitattributes", "README.md", "config.json", "part one"}
    assert (top["part one"].last_commit.oid, top["config.json"].last_commit.oid) == (first.oid, second.oid)
    inside = api.list_repo_tree("me/store", "part one")
    assert [item.path for item in inside] == ["part one/labels.json", "part one/pixels.npy"]
    found = api.get_paths_info("me/store", ["part one", "README.md", "none"])
    assert [item.path for item in found] == ["part one", "README.md"]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("me/store", "none"))


def test_earlier_revision_keeps_its_files(server, api, folder):
    first = push(api, folder)
    (folder / "part one" / "pixels.npy").write_bytes(b"changed")
    second = push(api, folder)
    for commit, data in ((first, bytes(range(256)) * 20), (second, b"changed")):
        assert server.files("models", "me/store", commit.oid)["part one/pixels.npy"] == data
        one = hf_hub_download("me/store", "part one/pixels.npy", revision=commit.oid)
        assert Path(one).read_bytes() == data
        whole = snapshot_download("me/store", revision=commit.oid)
        assert contents(Path(whole))["part one/pixels.npy"] == data
    listed = api.list_repo_commits("me/store")
    assert [commit.commit_id for commit in listed[:2]] == [second.oid, first.oid]
    assert api.model_info("me/store", revision=first.oid).sha == first.oid


def test_branches_and_tags(server, api, folder):
    first = push(api, folder)
    api.create_branch("me/store", branch="try/one")
    api.create_tag("me/store", tag="v1")
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="me/store", revision="try/one")
    refs = api.list_repo_refs("me/store")
    assert {branch.name for branch in refs.branches} == {"main", "try/one"}
    assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("v1", first.oid)]
    assert "x.txt" in server.files("models", "me/store", "try/one")
    assert "x.txt" not in server.files("models", "me/store")
    assert api.file_exists("me/store", "x.txt", revision="try/one")
    assert not api.file_exists("me/store", "x.txt", revision="v1")


@pytest.mark.parametrize("kind", KINDS)
def test_same_push_again_uploads_and_commits_nothing(server, api, folder, kind):
    first = push(api, folder, kind)
    second = push(api, folder, kind)
    assert second.oid == first.oid
    assert len(server.commits(KINDS[kind], "me/store")) == 2
    assert server.count("PUT", "^/lfs/") == server.count("POST", "/commit/main$") == 1


def test_content_known_under_another_path_is_not_uploaded_again(server, api, folder):
    push(api, folder)
    push(api, folder, path_in_repo="copy")
    assert server.count("PUT", "^/lfs/") == 1
    assert server.commits("models", "me/store")[-1].large == {"part one/pixels.npy", "copy/part one/pixels.npy"}


def test_deleted_file_and_folder_are_gone(server, api, folder):
    push(api, folder)
    api.delete_file("README.md", repo_id="me/store")
    assert set(server.files("models", "me/store")) == {
        ".gitattributes",
        "part one/labels.json",
        "part one/pixels.npy",
    }
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("me/store", "README.md")
    api.delete_folder("part one", repo_id="me/store")
    assert set(server.files("models", "me/store")) == {".gitattributes"}
    with pytest.raises(EntryNotFoundError):
        api.delete_file("README.md", repo_id="me/store")
    assert len(server.commits("models", "me/store")) == 4


def test_commit_on_a_stale_parent_is_refused(server, api, folder):
    parent = push(api, folder).oid
    api.delete_file("README.md", repo_id="me/store", parent_commit=parent)
    operations = [CommitOperationDelete("part one/labels.json")]
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_commit("me/store", operations, commit_message="Late", parent_commit=parent)
    assert caught.value.response.status_code == 412
    assert len(server.commits("models", "me/store")) == 3


def test_commit_of_an_lfs_object_that_is_not_stored_is_refused(server, api, folder):
    push(api, folder)
    server.repositories["models", "me/store"].objects.clear()
    (folder / "part one" / "pixels.npy").write_bytes(b"changed")
    server.fail("PUT", "^/lfs/", status=200)
    server.fail("POST", "/verify$", status=200)
    with pytest.raises(BadRequestError, match="has not been uploaded"):
        push(api, folder)


def test_storage_takes_only_signed_addresses_and_the_content_promised(server, api, folder):
    push(api, folder)
    path = f"/lfs/models/me/store/{lfs_oid(b'content')}"
    signed = f"{server.endpoint}{path}?signature={server.sign(path)}"
    assert get_session().put(f"{server.endpoint}{path}", content=b"content").status_code == 403
    assert get_session().put(signed, content=b"other").status_code == 400
    assert get_session().put(signed, content=iter([b"con", b"tent"])).status_code == 200
    assert server.repositories["models", "me/store"].objects[lfs_oid(b"content")] == b"content"


def test_private_repository_does_not_exist_without_the_token(server, api, folder):
    api.create_repo("me/store", private=True)
    push(api, folder)
    assert api.model_info("me/store").private
    anonymous = HfApi(endpoint=server.endpoint, token=False)
    with pytest.raises(RepositoryNotFoundError) as caught:
        anonymous.model_info("me/store")
    assert caught.value.response.status_code == 401
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("me/store", "README.md", token=False)
    assert hf_hub_download("me/store", "README.md")


def test_public_repository_is_read_but_not_written_without_the_token(server, api, folder):
    push(api, folder)
    assert "README.md" in HfApi(token=False).list_repo_files("me/store")
    with pytest.raises(HfHubHTTPError) as caught:
        HfApi(token=False).upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="me/store")
    assert caught.value.response.status_code == 401
    assert len(server.commits("models", "me/store")) == 2


def test_wrong_token_is_refused_everywhere(server, api, folder):
    push(api, folder)
    wrong = HfApi(endpoint=server.endpoint, token="hf_wrong")
    for ask in (wrong.whoami, lambda: wrong.model_info("me/store"), lambda: wrong.create_repo("me/other")):
        with pytest.raises(HfHubHTTPError) as caught:
            ask()
        assert caught.value.response.status_code == 401
        assert not isinstance(caught.value, RepositoryNotFoundError)


def test_missing_things_raise_the_errors_of_the_client(server, api, folder):
    push(api, folder)
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("me/store", "none.json")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("me/store", "README.md", revision="none")
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="me/store", revision="none")
    with pytest.raises(RepositoryNotFoundError) as caught:
        snapshot_download("me/none")
    assert caught.value.response.status_code == 404
    with pytest.raises(RepositoryNotFoundError):
        api.dataset_info("me/store")
    assert api.repo_exists("me/store") and not api.repo_exists("gpt2")


def test_repository_is_created_once_and_in_the_namespace_of_the_user(api):
    first = api.create_repo("store")
    assert api.create_repo("me/store", exist_ok=True) == first
    for name, status in (("me/store", 409), ("other/store", 403)):
        with pytest.raises(HfHubHTTPError) as caught:
            api.create_repo(name)
        assert caught.value.response.status_code == status


def test_failed_lfs_upload_is_retried(server, api, folder, monkeypatch):
    waits = skip_waits(monkeypatch)
    server.fail("PUT", "^/lfs/", status=503, times=2)
    push(api, folder)
    assert waits == [1, 2]
    assert server.count("PUT", "^/lfs/") == 3
    assert server.files("models", "me/store")["part one/pixels.npy"] == bytes(range(256)) * 20


@pytest.mark.parametrize("applied", [False, True], ids=["commit fails", "answer is lost"])
def test_failed_commit_is_not_retried_but_pushing_again_succeeds(server, api, folder, monkeypatch, applied):
    waits = skip_waits(monkeypatch)
    server.fail("POST", "/commit/main$", status=503, applied=applied)
    with pytest.raises(HfHubHTTPError) as caught:
        push(api, folder)
    assert caught.value.response.status_code == 503
    assert waits == [] and server.count("POST", "/commit/main$") == 1
    assert len(server.commits("models", "me/store")) == (2 if applied else 1)
    push(api, folder)
    assert len(server.commits("models", "me/store")) == 2
    assert server.count("PUT", "^/lfs/") == 1
    assert contents(folder).items() <= server.files("models", "me/store").items()


def test_ranges_and_unchanged_content(server, api, folder):
    commit = push(api, folder)
    url = hf_hub_url("me/store", "part one/pixels.npy", endpoint=server.endpoint)
    data = contents(folder)["part one/pixels.npy"]
    for asked, start, end in (("0-9", 0, 10), ("5000-", 5000, 5120), ("-7", 5113, 5120), ("5100-9999", 5100, 5120)):
        answer = get_session().get(url, headers={"Range": f"bytes={asked}"})
        assert (answer.status_code, answer.content) == (206, data[start:end])
        assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/5120"
    answer = get_session().get(url, headers={"Range": "bytes=5120-"})
    assert (answer.status_code, answer.headers["Content-Range"]) == (416, "bytes */5120")
    head = get_session().head(url)
    assert (head.headers["Content-Length"], head.headers["X-Repo-Commit"]) == ("5120", commit.oid)
    assert head.headers["X-Linked-Etag"] == head.headers["ETag"]
    assert get_session().get(url, headers={"If-None-Match": head.headers["ETag"]}).status_code == 304


def test_process_without_endpoint_and_token_arguments_is_sent_to_the_server(server, folder):
    assert whoami()["name"] == "me"
    create_repo("me/store")
    HfApi().upload_folder(repo_id="me/store", folder_path=folder)
    assert ModelCard.load("me/store").data.license == "mit"
    assert HfApi().model_info("me/store", expand=["sha"]).sha == server.commits("models", "me/store")[-1].sha


def test_connections_end_with_the_server(monkeypatch):
    with HubServer() as server:
        use_hub(monkeypatch, server)
        endpoint = server.endpoint
        assert get_session().get(f"{endpoint}/api/whoami-v2").status_code == 401
    with pytest.raises(Exception, match="refused|disconnected|reset"):
        HfApi(endpoint=endpoint, token="hf_test").whoami()


@pytest.mark.slow
def test_model_is_pushed_and_loaded_in_a_new_process(tmp_path):
    script = """
        import torch
        from transformers import AutoModel, ViTConfig, ViTModel

        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        model = ViTModel(ViTConfig(image_size=8, patch_size=4, **sizes)).eval()
        model.push_to_hub("me/model")
        loaded = AutoModel.from_pretrained("me/model").eval()
        pixels = torch.ones(1, 3, 8, 8)
        assert torch.equal(loaded(pixels).last_hidden_state, model(pixels).last_hidden_state)
    """
    with HubServer() as server:
        environment = {**os.environ, **server.environment(tmp_path)}
        command = [sys.executable, "-c", textwrap.dedent(script)]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert {"README.md", "config.json", "model.safetensors"} < set(server.files("models", "me/model"))
        assert server.count("PUT", "^/lfs/") == server.count("GET", "/resolve/.*/model.safetensors$") == 1
        assert server.commits("models", "me/model")[-1].large == {"model.safetensors"}
    assert (tmp_path / "hub" / "models--me--model").is_dir()
