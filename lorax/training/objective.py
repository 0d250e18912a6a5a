"""What a run is trained for: the likelihood of reference answers, or rewards from the task's scorer. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from lorax.errors import UserError, near

if TYPE_CHECKING:
    from lorax.tasks.base import Task

OBJECTIVES = ("likelihood", "reinforce")
VERSION = 1
"""Of reinforce: raised when the same settings give another run."""
CHOICES = {"reward": ("sign", "score"), "baseline": ("none", "mean")}
BOUNDS: dict[str, tuple[float, float]] = {"samples": (1, 1024), "temperature": (0.0, 100.0), "kl": (0.0, 1e6)}


@dataclass
class Reinforce:
    """REINFORCE on the task's own scorer, `objective=reinforce`; no reference answer is read.

        loss = 1 / (b S) sum_j [-(r_j - baseline_j) sum_t log p(y_jt) + kl sum_t KL(p_t, p0_t)]

    j: completions, S for each of the step's b prompts; p: the distribution that the tokens were drawn from; p0: that of
    the base; KL(p, q) = sum_v p_v log(p_v / q_v).
    Transformer-squared's (arXiv:2501.06252, its code): samples=1 temperature=0 reward=sign baseline=none kl=0, with
    lr=2e-3 batch_size=256 train.clip=1e-3. Its code decodes greedily, which is no sample of p: the gradient is then
    none of the expected reward. Its KL, where asked for, is KL(p0, p); here it is the paper's KL(p, p0).
    """

    samples: int = 4
    """Completions of a prompt, S."""
    temperature: float = 1.0
    """p = softmax(logits / temperature); 0: greedy, as the reference, with the probabilities of temperature 1."""
    reward: str = "sign"
    """sign: 1 for a full score, else -1 | score: the task's score itself."""
    baseline: str = "none"
    """none | mean: of the rewards of the prompt's other completions."""
    kl: float = 0.0
    """Weight of the divergence from the base, the adapters switched off, at each token of a completion; the tokens are
    taken as given."""

    def check(self) -> None:
        """Refuse values outside their bounds, in one line.

        Raises:
            UserError: names the key, the value and the bound.
        """
        for key, options in CHOICES.items():
            if (value := getattr(self, key)) not in options:
                raise UserError(f"reinforce.{key}={value}: {near(str(value), options)}")
        for key, (low, high) in BOUNDS.items():
            value, whole = getattr(self, key), key == "samples"
            fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
            if not fits or not math.isfinite(value):
                raise UserError(f"reinforce.{key}={value}: must be a {'whole' if whole else 'finite'} number")
            if not low <= value <= high:
                raise UserError(f"reinforce.{key}={value:g}: must be between {low:g} and {high:,.0f}")
        if self.baseline == "mean" and self.samples < 2:
            raise UserError("reinforce.baseline=mean: needs other completions of a prompt, reinforce.samples=2 or more")
        if self.temperature == 0 and self.samples > 1:
            raise UserError(
                f"reinforce.temperature=0: the {self.samples} completions of a prompt would be one; reinforce.samples=1"
            )

    def rewards(self, scores: Iterable[float]) -> list[float]:
        """Return the rewards of scores between 0 and 1.

        Examples:
            >>> Reinforce(reward="sign").rewards([1, 0, 0.5]), Reinforce(reward="score").rewards([1, 0.5])
            ([1.0, -1.0, -1.0], [1.0, 0.5])
        """
        if self.reward == "score":
            return [float(score) for score in scores]
        return [1.0 if score >= 1 else -1.0 for score in scores]

    def advantages(self, rewards: list[float]) -> list[float]:
        """Return r_j - baseline_j for the completions of one prompt.

        The mean is over the others, so that it does not depend on the completion and leaves the expected gradient.

        Examples:
            >>> Reinforce(baseline="mean").advantages([1.0, -1.0, -1.0])
            [2.0, -1.0, -1.0]
        """
        if self.baseline == "none":
            return list(rewards)
        others = len(rewards) - 1
        return [reward - (sum(rewards) - reward) / others for reward in rewards]


@dataclass(frozen=True)
class Rewarded:
    """A run's objective in the training loop, where it is not the likelihood."""

    task: Task
    """Scores completions and says where they end."""
    settings: Reinforce


def reinforce_of(settings: Mapping[str, object]) -> Reinforce:
    """Return the checked settings.

    Raises:
        UserError: a key that there is none of, or a value out of bounds.
    """
    known = [item.name for item in fields(Reinforce)]
    for key in settings:
        if key not in known:
            raise UserError(f"reinforce.{key}: no such key; {near(key, known)}")
    made = Reinforce(**settings)  # type: ignore[arg-type]
    made.check()
    return made
