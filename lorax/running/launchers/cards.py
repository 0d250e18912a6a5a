"""A card for each worker: which are visible, which were asked for, and the variables that pin a process to one.

A process sees the cards that `CUDA_VISIBLE_DEVICES` names (`HIP_VISIBLE_DEVICES` under ROCm), read once, when CUDA is
initialised. So a worker gets the variable before it starts, and finds its card as `cuda:0`. Written for CUDA and ROCm,
and tested on stand-ins: it has not been run on a machine with two cards.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import takewhile
from typing import TYPE_CHECKING

from lorax.errors import UserError
from lorax.running.launchers.workers import environment_of_workers
from lorax.running.memory import free_bytes as free_here

if TYPE_CHECKING:
    from lorax.config import RunConfig

KEY = "hydra.launcher.gpus"
CUDA, HIP = "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"


def visible(environment: Mapping[str, str], count: int, rocm: bool = False) -> list[str]:
    """Return the cards that a process may use, as its variable names them.

    Args:
        environment: a variable that is set there limits the cards, and its names are kept: indices, UUIDs of cards
            (GPU-...) or of slices of one (MIG-...). As CUDA does, it is read up to the first word that is none of them.
        count: how many cards torch sees; they have these indices where no variable is set. Of several slices torch
            counts one, as a process can use no more.
        rocm: whether they are AMD's.
    """
    named = environment.get(HIP) if rocm else None
    named = environment.get(CUDA) if named is None else named
    if named is None:
        return [str(index) for index in range(count)]
    words = [word.strip() for word in named.split(",")]
    names = list(takewhile(lambda word: word.isdigit() or word.startswith(("GPU-", "MIG-")), words))
    return names if any(name.startswith("MIG-") for name in names) else names[:count]


def choose(wanted: str | int | Sequence[int | str], cards: Sequence[str]) -> list[str]:
    """Return the names of the cards that `hydra.launcher.gpus` asks for.

    Args:
        wanted: "auto": all; a number: as many, the first ones; a list: places in `cards`, as in `cuda:2`, or names.
        cards: those that are visible.

    Raises:
        UserError: in one line: it asks for a card that is not visible, for one twice, or for none.
    """
    there = f"{len(cards)} visible ({', '.join(cards)})" if cards else "none is visible"
    if wanted == "auto":
        return list(cards)
    if isinstance(wanted, str) and wanted in cards and not wanted.isdigit():
        return [wanted]
    if isinstance(wanted, bool) or not isinstance(wanted, int | list | tuple):
        raise UserError(f"{KEY}={wanted}: 'auto', a number of cards, or a list of them such as [0,2]")
    if isinstance(wanted, int):
        if not 1 <= wanted <= len(cards):
            raise UserError(f"{KEY}={wanted}: must be from 1 to the cards of this machine; {there}")
        return list(cards[:wanted])
    if not wanted:
        raise UserError(f"{KEY}=[]: names no card; 'auto' takes all")
    chosen = [_one(item, cards, there) for item in wanted]
    if len(set(chosen)) < len(chosen):
        raise UserError(f"{KEY}={list(wanted)}: names a card twice; processes= says how many workers share the cards")
    return chosen


def _one(item: int | str, cards: Sequence[str], there: str) -> str:
    if isinstance(item, str) and item in cards and not item.isdigit():
        return item
    place = int(item) if isinstance(item, int) or str(item).isdigit() else -1
    if isinstance(item, bool) or not 0 <= place < len(cards):
        raise UserError(f"{KEY}: no card {item}; {there}, counted from 0 among those")
    return cards[place]


def pinned(card: str, environment: Mapping[str, str], rocm: bool = False) -> dict[str, str]:
    """Return the variables with which a process sees one card alone, as `cuda:0`.

    Under ROCm it is HIP's; CUDA's too where it is set, since torch refuses two that differ.
    """
    if not rocm:
        return {CUDA: card}
    return {HIP: card, CUDA: card} if CUDA in environment else {HIP: card}


def check_devices(configs: Sequence[RunConfig]) -> None:
    """Refuse runs that ask for a card by its number: a pinned worker has only one, `cuda:0`."""
    for config in configs:
        if config.device not in ("auto", "cuda", "cuda:0"):
            raise UserError(f"device={config.device}: {KEY} gives each worker its card; leave out device or the other")


def shared_line(processes: int, cards: Sequence[str]) -> str | None:
    """Return the line that says that workers share cards, or None where each has its own."""
    if processes <= len(cards):
        return None
    return f"{processes} workers on {len(cards)} card(s) in turn: a card holds up to {-(-processes // len(cards))}"


def seen_by_torch() -> tuple[int, bool]:
    """Return how many cards torch sees, and whether they are AMD's. Initialises none of them."""
    import torch

    return torch.cuda.device_count(), torch.version.hip is not None


def free_bytes(pins: Sequence[Mapping[str, str]], workers: int) -> int:
    """Return the bytes that are free for a worker on the fullest card.

    Asked by short-lived processes: this one would keep memory on each card that it looks at.

    Args:
        pins: the variables of each card.
        workers: how many share a card.
    """
    pools, answers = [], []
    try:
        for pin in pins:
            pools.append(ProcessPoolExecutor(1, multiprocessing.get_context("spawn")))
            with environment_of_workers(pin):
                answers.append(pools[-1].submit(free_here, "cuda"))
        return min(answer.result() for answer in answers) // workers
    finally:
        for pool in pools:
            pool.shutdown()
