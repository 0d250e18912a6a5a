"""What a study's verdicts are about.

method   the difference of the best expected scores on the rates that were run: method against method (`best_rate`)
rate     the difference of expected scores over training seeds at the selected learning rates, taken as given
"""

from __future__ import annotations

from collections.abc import Mapping

ESTIMANDS: Mapping[str, str] = {
    "method": "each method at its best learning rate",
    "rate": "at the selected rates",
}
"""Name of an estimand -> what a table's title says of it."""

SPREAD: Mapping[str, str] = {
    "method": "sd of paired differences that would give intervals as wide",
    "rate": "sd of paired differences",
}
"""Name of an estimand -> what the spread is that a design is judged by."""

_SENTENCES = {
    "method": "Verdicts compare methods, each at its best learning rate on the printed lattice: every seed ran every "
    "rate of an arm's window, validation picked one, test selected nothing, and each end of an interval covers "
    "whichever rate is the best.",
    "rate": "Verdicts hold at the selected rates: they compare arms at the rates that tuning chose, not methods each "
    "at its best rate; tuned again with other seeds, an arm may get another rate and the rows another order.",
    "given": "Verdicts hold at the selected rates, one an arm and not tuned: they do not compare methods each at its "
    "best rate.",
}


def sentence(estimand: str, tuned: bool = True) -> str:
    """Return the sentence that a table carries about what its verdicts hold for.

    Args:
        estimand: name in `ESTIMANDS`.
        tuned: whether rates were searched.
    """
    return _SENTENCES[estimand if tuned else "given"]
