"""What is sent to the hub, by its own client to a stand-in; and what it says no to."""

import huggingface_hub
import pytest

from lorax.errors import UserError
from lorax.push.upload import signed_in, upload


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "README.md").write_text("---\nlibrary_name: peft\n---\n# card\n")
    (tmp_path / "adapter_model.safetensors").write_bytes(bytes(range(256)))
    return tmp_path


@pytest.mark.parametrize("private", [False, True])
def test_the_folder_is_one_commit_in_a_repository_made_for_it(hub, folder, private):
    address = upload(signed_in(), folder, "me/it", private, "Adapter")
    made = hub.repositories["me/it"]
    assert address == f"{hub.address}/me/it" and made["private"] is private and made["message"] == "Adapter"
    assert made["files"] == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert all(token == "Bearer hf_stand_in" for *_, token in hub.asked)
    assert sum(path.endswith("/commit/main") for _, path, _ in hub.asked) == 1


def test_a_public_repository_gets_nothing_that_was_to_be_private(hub, folder):
    hub.repositories["me/it"] = {"private": False, "files": {}}
    with pytest.raises(UserError, match="me/it: is there already and is public; private=true uploads nothing"):
        upload(signed_in(), folder, "me/it", True, "Adapter")
    assert hub.repositories["me/it"]["files"] == {}
    upload(signed_in(), folder, "me/it", False, "Adapter")
    assert hub.repositories["me/it"]["files"]


@pytest.mark.parametrize(
    "path, answer, line",
    [
        ("/api/whoami-v2", (401, "", "Invalid user token."), "the token: the hub refuses: .*nvalid"),
        ("/api/repos/create", (403, "", "You may not create a model."), "me/it: the hub refuses: .*You may not create"),
        ("/api/models/me/it/commit/main", (403, "", "Out of order."), "me/it: the hub refuses: .*Out of order"),
    ],
)  # fmt: skip
def test_what_the_hub_refuses_is_one_line(hub, folder, path, answer, line):
    hub.refuse[path] = answer
    with pytest.raises(UserError, match=line) as caught:
        upload(signed_in(), folder, "me/it", False, "Adapter")
    assert "\n" not in str(caught.value)


def test_without_a_token_or_a_network_nothing_is_tried(monkeypatch, hub):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="the token: the hub cannot be reached: "):
        signed_in()
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="no token for the hub: `hf auth login` or HF_TOKEN=<token>; --dry-run"):
        signed_in()
    assert not hub.asked
