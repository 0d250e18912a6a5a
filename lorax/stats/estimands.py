"""What a study's verdicts are about, and the function that judges it.

rate     the difference of expected scores over training seeds at the selected learning rates
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lorax.stats.judge import judge
from lorax.stats.result import StudyResult

ESTIMANDS: Mapping[str, Callable[..., StudyResult]] = {"rate": judge}
"""Name of an estimand -> what turns final runs into verdicts about it; arguments as `judge` takes them."""
