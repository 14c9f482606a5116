"""Tries again where that helps, one line where it does not."""

import logging
import math
import re
import time
from types import SimpleNamespace

import pytest
from helpers.hub_server import CUT, HANG, skip_waits
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from modeling_deit_distill import InputError, hub
from modeling_deit_distill.arguments import ModelArguments
from modeling_deit_distill.data.sources import load_image_data
from modeling_deit_distill.hub import (
    NUM_TRIES,
    HubUnavailable,
    check_license,
    hub_client,
    may_pass,
    offline_remedy,
    with_retries,
)
from modeling_deit_distill.teachers.teacher import find_config


def test_the_clients_lines_about_retries_are_one_of_ours(caplog, monkeypatch):
    client = logging.getLogger("huggingface_hub.utils._http")
    monkeypatch.setattr(client, "filters", [])
    monkeypatch.setattr(client, "propagate", True)
    for _ in range(2):
        hub.tell_retries_once()
    assert len(client.filters) == 1
    with caplog.at_level(logging.WARNING):
        for number in range(1, 6):
            client.warning("'no such name' thrown while requesting HEAD https://hub.example/me/x/config.json")
            client.warning(f"Retrying in {number}s [Retry {number}/5].")
        client.warning("HTTP Error 503 thrown while requesting GET https://other.example/me/x")
        client.warning("something else")
    assert [record.getMessage() for record in caplog.records] == [
        "hub.example does not answer (no such name); it is asked up to 5 times more, for about half a minute",
        "other.example does not answer (HTTP Error 503); it is asked up to 5 times more, for about half a minute",
        "something else",
    ]


@pytest.fixture
def waits(monkeypatch):
    """The seconds between tries, which no test waits."""
    waited = []
    monkeypatch.setattr(hub, "time", SimpleNamespace(sleep=waited.append, monotonic=time.monotonic, time=time.time))
    skip_waits(monkeypatch)
    return waited


def http_error(status):
    return HfHubHTTPError(f"status {status}", response=SimpleNamespace(status_code=status, headers={}, request=None))


def failing(*errors):
    """A request that meets these errors, one after the other, and then succeeds."""
    remaining = list(errors)

    def request():
        if remaining:
            raise remaining.pop(0)
        return "done"

    return request


def test_passing_faults_are_tried_again_with_growing_waits(waits):
    errors = [http_error(503), http_error(429), HTTPError("no connection"), http_error(500)]
    assert with_retries(failing(*errors), "push") == "done"
    assert waits == [1, 2, 4, 8]


def test_the_fifth_failure_is_the_last(waits):
    with pytest.raises(InputError, match=r"^push to me/model failed \(status 503\); run it again$"):
        with_retries(failing(*[http_error(503)] * 5), "push to me/model")
    assert len(waits) == 4


def test_what_the_hub_refuses_is_not_tried_again(waits):
    for status in (400, 401, 403, 404, 412):
        with pytest.raises(InputError, match=f"status {status}"):
            with_retries(failing(http_error(status)), "push")
    assert waits == []


def test_a_fault_of_ours_keeps_its_traceback(waits):
    with pytest.raises(KeyError):
        with_retries(failing(KeyError("name")), "push")
    assert waits == []


def test_the_cause_decides_where_the_client_wraps_it():
    wrapped = RuntimeError("Error while uploading")
    wrapped.__cause__ = http_error(502)
    assert may_pass(wrapped)
    wrapped.__cause__ = http_error(403)
    assert not may_pass(wrapped)


def test_offline_by_choice_does_not_pass(waits):
    with pytest.raises(InputError, match="unset HF_HUB_OFFLINE"):
        with_retries(failing(OfflineModeIsEnabled("offline")), "push")
    assert waits == []


def test_the_real_client_creates_a_repository_in_the_third_try(server, waits):
    server.fail("POST", "/api/repos/create", times=2)
    url = with_retries(lambda: HfApi().create_repo("me/model", exist_ok=True), "creation of 'me/model'")
    assert url.repo_id == "me/model"
    assert waits == [1, 2]


def test_a_wrong_token_says_so(server, waits):
    with pytest.raises(InputError, match=r"Invalid credentials.*hf auth login"):
        with_retries(lambda: HfApi(token="hf_wrong").create_repo("me/model"), "creation of 'me/model'")


def test_a_licence_is_called_as_on_the_hub():
    for name in (None, "mit", "apache-2.0", "cc-by-nc-sa-4.0", "other", "bsl-1.0", "lgpl-lr"):
        check_license(name)
    for name in ("MIT", "Apache License 2.0", "none", "", "mit\nother: x"):
        with pytest.raises(InputError, match="license is .*; give the Hub's identifier .* or leave it out for none"):
            check_license(name)


@pytest.fixture
def folder(tmp_path):
    """A folder with weights, to be pushed."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.safetensors").write_bytes(b"weights")
    return tmp_path / "folder"


def push(folder, **settings):
    """Push a folder as a run does."""
    api = hub_client("hf_test")
    with_retries(lambda: api.create_repo("me/model", exist_ok=True), "creation")
    return with_retries(lambda: api.upload_folder(repo_id="me/model", folder_path=folder), "push", **settings)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *[("POST", path, 503) for path in ("/preupload/", "/objects/batch", "/commit/")],
        *[("PUT", "/lfs/", status) for status in (429, 500, CUT)],
    ],
)
def test_the_client_itself_tries_nothing_again(server, waits, folder, method, path, status):
    server.fail(method, path, status, times=math.inf)
    with pytest.raises(HubUnavailable, match="push failed .*; run it again$"):
        push(folder)
    assert server.count(method, path) == NUM_TRIES
    assert waits == [1, 2, 4, 8]


def test_requests_of_others_are_tried_again_by_their_own_client(server, waits, folder):
    push(folder)
    server.fail("POST", "/preupload/", 503, times=2)
    (folder / "config.json").write_text("{}")
    HfApi().upload_folder(repo_id="me/model", folder_path=folder)
    assert "config.json" in server.files("models", "me/model")
    assert server.count("POST", "/preupload/") > 3 and waits == []


@pytest.mark.parametrize(
    ("headers", "waited"),
    [
        ({"Retry-After": "7"}, 7),
        ({"ratelimit": '"api";r=0;t=40', "Retry-After": "7"}, 40),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 1),
        ({"Retry-After": "soon"}, 1),
    ],
)
def test_the_hub_is_asked_again_after_the_time_that_it_names(server, waits, folder, headers, waited):
    server.fail("POST", "/preupload/", 429, **headers)
    push(folder)
    assert waits == [waited]


def test_a_time_that_is_too_long_is_not_waited(server, waits, folder):
    server.fail("POST", "/preupload/", 429, times=math.inf, Retry_After="3600")
    with pytest.raises(HubUnavailable, match="the Hub asks to wait 3600 s: run it again then"):
        push(folder, until=hub.time.monotonic() + 600)
    assert waits == [] and server.count("POST", "/preupload/") == 1


def test_a_request_without_an_answer_ends_with_the_time_that_there_is(server, waits, folder):
    server.fail("POST", "/preupload/", HANG, times=math.inf)
    with pytest.raises(HubUnavailable, match="push failed .*run it again"):
        push(folder, until=hub.time.monotonic() + 0.2)


def test_what_could_not_be_read_for_want_of_a_network_names_the_offline_way(monkeypatch):
    hidden = OSError("We couldn't connect")
    hidden.__cause__ = LocalEntryNotFoundError("nothing cached")
    for offline, words in ((False, "or set HF_HUB_OFFLINE=1"), (True, "HF_HUB_OFFLINE is set, .*or unset it")):
        monkeypatch.setattr(hub, "is_offline_mode", lambda offline=offline: offline)
        for error in (ConnectionError("no route"), hidden):
            assert re.match(f"; .*give a local folder, {words}" if not offline else f"; {words}", offline_remedy(error))
    for error in (http_error(404), http_error(503), ValueError("no JSON")):
        assert offline_remedy(error) == ""


def test_a_teacher_and_data_of_the_hub_name_the_offline_way():
    arguments = ModelArguments(teacher_name_or_path="me/teacher")
    for read in (lambda: find_config(arguments), lambda: load_image_data("me/photos")):
        with pytest.raises(InputError, match="; HF_HUB_OFFLINE is set, .*: give a local folder, or unset it$"):
            read()
