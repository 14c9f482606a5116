"""Tries again where that helps, one line where it does not."""

from types import SimpleNamespace

import pytest
from helpers.hub_server import skip_waits
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

from modeling_deit_distill import InputError, hub
from modeling_deit_distill.hub import check_license, may_pass, with_retries


@pytest.fixture
def waits(monkeypatch):
    """The seconds between tries, which no test waits."""
    waited = []
    monkeypatch.setattr(hub, "time", SimpleNamespace(sleep=waited.append))
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
