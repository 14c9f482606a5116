"""The test server of the Hub keeps the protocol, as the real client sees it."""

from pathlib import Path

import pytest
from helpers.hub_repositories import ATTRIBUTES, lfs_oid
from helpers.hub_server import HubServer, skip_waits, use_hub
from huggingface_hub import (
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
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


@pytest.mark.parametrize("kind", KINDS)
def test_same_push_again_uploads_and_commits_nothing(server, api, folder, kind):
    first = push(api, folder, kind)
    second = push(api, folder, kind)
    assert second.oid == first.oid
    assert len(server.commits(KINDS[kind], "me/store")) == 2
    assert server.count("PUT", "^/lfs/") == server.count("POST", "/commit/main$") == 1


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
