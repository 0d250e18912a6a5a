"""To the hub, through huggingface_hub: whatever it says comes back as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lorax.errors import UserError, hub_reason

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def signed_in() -> HfApi:
    """Return the hub's client, once the hub has taken the token: before a model is loaded for nothing.

    Raises:
        UserError: no token, one that is refused, or no network.
    """
    from huggingface_hub import HfApi, get_token

    token = get_token()
    if token is None:
        raise UserError(
            "no token for the hub: `hf auth login` or HF_TOKEN=<token>; --dry-run folder=<folder> needs none"
        )
    api = HfApi(token=token)
    with said_in_one_line("the token"):
        api.whoami()
    return api


def upload(api: HfApi, folder: Path, repo: str, private: bool, message: str) -> str:
    """Make the repository where there is none and commit the folder's files to it, in one commit.

    Args:
        api: signed in.
        folder: what to upload.
        repo: `owner/name`.
        private: of a new repository; one that is there must be private already.
        message: of the commit.

    Returns:
        The repository's address.

    Raises:
        UserError: the hub refuses or cannot be reached; a public repository under `private`.
    """
    with said_in_one_line(repo):
        made = api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(made.repo_id).private:
            raise UserError(f"{made.repo_id}: is there already and is public; private=true uploads nothing to it")
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message=message)
    return str(made)


@contextmanager
def said_in_one_line(what: str) -> Iterator[None]:
    """Turn whatever the hub or the network raises into one line about `what`."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except UserError:
        raise
    except HfHubHTTPError as error:
        raise UserError(f"{what}: the hub refuses: {hub_reason(error)}") from error
    except Exception as error:  # of the network, of many kinds
        raise UserError(f"{what}: the hub cannot be reached: {hub_reason(error)}") from error
