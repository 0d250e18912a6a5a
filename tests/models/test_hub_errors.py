"""What the hub answers, raised by huggingface_hub itself from made-up responses: one line that says what to do."""

from __future__ import annotations

import huggingface_hub
import pytest
from huggingface_hub.utils import _http, hf_raise_for_status

from lorax.errors import UserError
from lorax.models import hf

RESTRICTED = "Access to model org/x is restricted. You must have access to it and be authenticated to access it."


def refused(status, headers):
    """Raise what huggingface_hub raises for such a response."""
    url = "https://huggingface.co/org/x/resolve/main/config.json"
    client = _http.httpx2
    hf_raise_for_status(client.Response(status, headers=headers, request=client.Request("GET", url)))


@pytest.mark.parametrize(
    ("status", "headers", "parts"),
    [
        (401, {"X-Error-Code": "GatedRepo", "X-Error-Message": RESTRICTED}, ["gated", "org/x"]),
        (403, {"X-Error-Code": "GatedRepo", "X-Error-Message": RESTRICTED}, ["gated", "org/x"]),
        (401, {"X-Error-Code": "RepoNotFound"}, ["Repository Not Found", "org/x"]),
        (404, {"X-Error-Code": "RevisionNotFound"}, ["Revision Not Found"]),
        (404, {"X-Error-Code": "EntryNotFound"}, ["Entry Not Found"]),
        (403, {}, ["403", "Forbidden"]),
        (500, {}, ["500"]),
    ],
)
def test_the_first_paragraph_is_said_whole(monkeypatch, status, headers, parts):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *words, **options: refused(status, headers))
    hf._fetched.cache_clear()
    with pytest.raises(UserError) as caught:
        hf.resolve("org/x")
    line = str(caught.value)
    assert line.startswith("model.path=org/x: ") and "\n" not in line and len(line) < 500, line
    assert all(part.lower() in line.lower() for part in parts) and "Client Error. (Request" not in line, line


def test_no_network_is_said_whole(monkeypatch):
    words = "We cannot find the appropriate snapshot folder on the local disk.\nPlease check your internet connection."

    def offline(*words_, **options):
        raise huggingface_hub.errors.LocalEntryNotFoundError(words)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    hf._fetched.cache_clear()
    with pytest.raises(UserError, match="local disk. Please check your internet connection"):
        hf.resolve("org/x")
