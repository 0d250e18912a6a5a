"""What the hub answers, raised by huggingface_hub itself from made-up responses: one line that says what to do."""

from __future__ import annotations

import huggingface_hub
import pytest
from huggingface_hub.utils import _http, hf_raise_for_status

from lorax.errors import UserError
from lorax.models import hf
from lorax.models.registry import load

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


def test_the_commit_of_a_branch_is_where_the_weights_are_from(monkeypatch, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    toy, folder = load({"name": "toy"}), tmp_path / "models--org--x" / "snapshots" / commit
    toy.model.save_pretrained(folder)
    toy.tokenizer.save_pretrained(folder)
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda path, **more: asked.append((path, more["revision"])) or folder
    )
    hf._fetched.cache_clear()
    loaded = load({"name": "hf", "path": "org/x", "revision": "v2"})
    assert loaded.origin == {"hub": "org/x", "commit": commit} and set(asked) == {("org/x", "v2")}
    assert load({"name": "hf", "path": str(folder.parent / commit)}).origin == toy.origin == {}
    with pytest.raises(UserError, match="model.revision=v2: model.path=.* lies here; only a model on the hub"):
        load({"name": "hf", "path": str(folder), "revision": "v2"})
    hf._fetched.cache_clear()
