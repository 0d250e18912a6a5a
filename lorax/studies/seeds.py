"""The final seeds of a study: a list that is fixed before, or until every arm is decided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorax.errors import UserError, near
from lorax.stats.sequential import earliest
from lorax.studies.spec import StudySpec, UntilDecided
from lorax.studies.windows import fewest_rates

MOST_SEEDS, MOST_LOOKS = 10_000, 1000
_WORD = "until_decided"


def read_seeds(value: Any, where: str) -> tuple[int, ...]:
    """Read a list of seeds, or one.

    Raises:
        UserError: no whole numbers from 0, too many, or one twice.
    """
    seeds = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not seeds or any(isinstance(seed, bool) or not isinstance(seed, int) or seed < 0 for seed in seeds):
        raise UserError(f"{where}={value}: a list of whole numbers from 0 is needed")
    if len(seeds) > MOST_SEEDS or max(seeds) >= 2**63:
        raise UserError(f"{where}: at most {MOST_SEEDS:,} seeds below 2^63")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{where}={list(seeds)}: a seed occurs twice")
    return seeds


def read_until_decided(value: Any, where: str) -> UntilDecided | None:
    """Read `until_decided`, or `{until_decided: {max: 30}}`; None where the seeds are a list.

    Raises:
        UserError: another word or mapping, or no whole number.
    """
    if isinstance(value, str):
        if value != _WORD:
            raise UserError(f"{where}={value}: a list of whole numbers from 0, or {_WORD}, is needed")
        return UntilDecided()
    if not isinstance(value, Mapping):
        return None
    if set(value) != {_WORD}:
        raise UserError(f"{where}={dict(value)}: a list, {_WORD}, or {{{_WORD}: {{max: 30}}}} is needed")
    given, where = value[_WORD], f"{where}.{_WORD}"
    if given is None:
        return UntilDecided()
    if not isinstance(given, Mapping):
        raise UserError(f"{where}={given}: a mapping is needed, {{max: 30}}")
    for key in given:
        if key != "max":
            raise UserError(f"{where}: no key {key!r}; {near(str(key), ['max'])}")
    most = given.get("max", UntilDecided().max)
    if isinstance(most, bool) or not isinstance(most, int):
        raise UserError(f"{where}.max={most}: a whole number is needed")
    return UntilDecided(most)


def check_until_decided(spec: StudySpec, given: UntilDecided, where: str) -> None:
    """Refuse what seeds until decided cannot be joined with.

    Args:
        spec: the study.
        given: its `until_decided`.
        where: its name in error lines.

    Raises:
        UserError: so few seeds that no verdict is possible, or something that needs a fixed number.
    """
    if not spec.family:
        raise UserError(f"{where}: there is no arm but the reference, and so nothing to decide")
    least = earliest(spec.alpha, spec.family, fewest_rates(spec))
    if not least <= given.max <= MOST_LOOKS:
        raise UserError(
            f"{where}.max={given.max}: from {least} to {MOST_LOOKS}; with {spec.family} comparisons at "
            f"{100 * spec.alpha:g} % no verdict is possible before {least} seeds"
        )
    if spec.procedure != "paired_t":
        raise UserError(f"{where}: procedure={spec.procedure} needs a fixed number of seeds; use paired_t")
    if spec.claim != "difference":
        raise UserError(f"{where}: claim={spec.claim} needs a fixed number of seeds; give a list of seeds")
    if spec.tuning and spec.tuning.runners_up:
        raise UserError(f"{where}: tuning.runners_up={spec.tuning.runners_up} needs a fixed number of seeds")
