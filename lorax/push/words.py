"""The words of `lorax push`: a run, a repository, options. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorax.errors import UserError, near

FLAGS = ("dry_run", "private")
OPTIONS = (*FLAGS, "folder", "rank", "results_dir", "message")


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be pushed where."""

    run: str
    """A run id, its first digits, `<name>/<run id>`, or the folder of a saved adapter."""
    repo: str | None
    """`owner/name` on the hub, or a name in the user's own space; None in a dry run that names none."""
    dry_run: bool = False
    """Write the folder and stop."""
    private: bool = False
    folder: Path | None = None
    """Where the folder stays; None: it goes once it is uploaded."""
    rank: int | None = None
    """No layer gets more than this; None: exact."""
    results_dir: str = "results"
    message: str | None = None
    """Of the commit."""


def parse(words: Sequence[str]) -> Order:
    """Return the order.

    Raises:
        UserError: a missing run, repository or folder; an unknown option or value; a name that the hub does not take.
    """
    places: list[str] = []
    given: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        name = key.lstrip("-").replace("-", "_")
        if word.startswith("-") and not equals:
            value = "true"
        elif not equals or Path(word).is_dir():
            places.append(word)
            continue
        if name not in OPTIONS:
            raise UserError(f"{key}: no such option of push; {near(name, OPTIONS)}")
        if not value or (name not in FLAGS and not equals):
            raise UserError(f"{key}: a value is missing; {name}=<{name}>")
        given[name] = value
    dry_run, private = (_flag(given, name) for name in FLAGS)
    if not places:
        raise UserError("which run? lorax push <run id or folder of a saved adapter> <owner>/<name>")
    if len(places) > 2:
        raise UserError(f"{places[2]}: one run and one repository, got {len(places)} words")
    repo = places[1] if len(places) == 2 else None
    if repo is None and not dry_run:
        raise UserError(f"where to? lorax push {places[0]} <owner>/<name>; or --dry-run folder=<folder>")
    if dry_run and "folder" not in given:
        raise UserError("--dry-run: a dry run writes a folder and nothing else; folder=<folder>")
    if repo is not None:
        _check_repo(repo)
    return Order(
        run=places[0],
        repo=repo,
        dry_run=dry_run,
        private=private,
        folder=Path(given["folder"]).expanduser() if "folder" in given else None,
        rank=_rank(given["rank"]) if "rank" in given else None,
        results_dir=given.get("results_dir", "results"),
        message=given.get("message"),
    )


def _flag(given: dict[str, str], name: str) -> bool:
    value = given.get(name, "false")
    if value not in ("true", "false"):
        raise UserError(f"{name}={value}: must be true or false")
    return value == "true"


def _rank(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise UserError(f"rank={value}: a whole number of at least 1 is needed")
    return int(value)


def _check_repo(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{repo}: no name of a repository: {' '.join(str(error).split())}") from None
