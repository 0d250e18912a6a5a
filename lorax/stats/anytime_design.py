"""What a design with seeds until decided can show: from which seed on, and which difference by the last one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize
from scipy import stats as sps

from lorax.stats.power import Design
from lorax.stats.sequential import FIRST, critical, earliest, log_e, needed


@dataclass(frozen=True)
class AnytimeDesign(Design):
    """A design whose `n_seeds` are those at the last look; its `mde` is found by then with probability 0.8 or more."""

    rates: int = 1
    """That a side has from the start."""
    earliest: int = FIRST
    """Seeds before which no verdict is possible."""

    def sentences(self, spread: str = "sd of paired differences") -> list[str]:
        """Return in words what the design can and cannot show; `spread` as in `Design`."""
        lines = [
            f"Seeds until decided: {self.family} comparisons, a look after every seed from {FIRST} to {self.n_seeds}; "
            f"none is ever called different by mistake with probability {1 - self.alpha:g}, however often one looks. "
            f"No verdict is possible before {self.earliest} seeds.",
            f"Minimum detectable effect after {self.n_seeds} seeds (80 % power at least, corrected, {spread} "
            f"{100 * self.sd:.2f} points): {100 * self.mde:.2f} points.",
            "Equivalence is not judged: it needs a number of seeds that was fixed before.",
        ]
        if not self.can_differ:
            lines.append("This design cannot show a difference: it would have to exceed what scores allow.")
        return lines


def anytime_design(
    *, family: int, most: int, n_items: int, sd: float, margin: float, alpha: float = 0.05, rates: int = 1,
    fewest: int = 1, room: float = 1.0,
) -> AnytimeDesign:  # fmt: skip
    """Compute what seeds until decided can show.

    Args:
        family: comparisons with the reference, K.
        most: seeds at the last look.
        n_items: test items; differences are not resolved below 1 / n_items.
        sd: of the per-seed differences (fraction).
        margin: of the study; nothing is called equivalent.
        alpha: of the family.
        rates: that a side has from the start.
        fewest: rates of the side that has the fewest.
        room: largest difference the scores allow (fraction).
    """
    sd = max(sd, 1 / n_items if n_items else 0.0)
    family = max(family, 1)
    reach = critical(needed(alpha, family) + math.log(rates), most)
    half = reach * sd / math.sqrt(most)
    most_evidence = float(log_e(room, max(sd, 1e-12) ** 2, most)) if np.isfinite(sd) else 0.0
    return AnytimeDesign(
        family=family,
        alpha=alpha,
        n_seeds=most,
        n_items=n_items,
        margin=margin,
        sd=sd,
        mde=_detectable(sd, most, reach),
        attainable_p=min(1.0, 2 * family * rates * math.exp(-most_evidence)),
        half_width=half,
        equivalence_power=0.0,
        room=room,
        rates=rates,
        earliest=earliest(alpha, family, fewest),
    )


def _detectable(sd: float, n: int, reach: float, power: float = 0.8) -> float:
    """Return the difference whose t reaches the bound at the last look with probability `power`."""
    if not (np.isfinite(sd) and np.isfinite(reach)):
        return math.inf

    def shortfall(size: float) -> float:
        return float(sps.nct.sf(reach, n - 1, size)) - power

    return float(optimize.brentq(shortfall, 0.0, 3 * reach + 10, xtol=1e-4)) * sd / math.sqrt(n)
