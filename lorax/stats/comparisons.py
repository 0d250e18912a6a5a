"""From the evidence of two arms to a comparison with the reference, and to pairs of all other arms."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from lorax.stats import effects, power, refusals
from lorax.stats.best_rate import BestRate
from lorax.stats.pairing import Cells, Contrast, contrast
from lorax.stats.result import Comparison, Pair
from lorax.stats.rule import VERDICTS, Verdicts, decide


def against_reference(
    contrasts: Sequence[Contrast],
    reference: str,
    margin: float,
    alpha: float,
    family: int,
    claim: str = "difference",
    verdicts: Verdicts | None = None,
) -> tuple[Comparison, ...]:
    """Judge comparisons with the reference, by `rule.decide` and `refusals`.

    Args:
        contrasts: arm minus reference, one for each planned comparison.
        reference: its label.
        margin: of equivalence.
        alpha: chance of any false verdict in the family.
        family: comparisons planned.
        claim: name in `rule.CLAIMS`.
        verdicts: of the contrasts; None: by `rule.decide`.
    """
    if not contrasts:
        return ()
    found = verdicts or decide(stack([c.evidence for c in contrasts]), margin, alpha, family, claim)
    level = alpha / family
    return tuple(_comparison(at, c, reference, found, margin, level, claim) for at, c in enumerate(contrasts))


def all_pairs(
    cells: Cells,
    tasks: Sequence[str],
    arms: Sequence[str],
    comparisons: Sequence[Comparison],
    alpha: float,
    procedure: str,
) -> tuple[Pair, ...]:
    """Return every pair of arms in every task.

    Pairs with the reference are what their verdict says: separated if better or worse. All other pairs are tested,
    with Holm's procedure over these.
    """
    judged = {(c.task, c.arm): c for c in comparisons}
    reference = comparisons[0].reference if comparisons else None
    planned = [(task, i, j) for task in tasks for i, j in combinations(arms, 2)]
    others = [pair for pair in planned if reference not in pair[1:]]
    tested: dict[tuple[str, str, str], Pair] = {}
    if others:
        evidence = stack([contrast(cells, task, i, j, procedure).evidence for task, i, j in others])
        p = evidence.p_zero()
        adjusted = effects.holm(p)
        tested = {
            pair: Pair(*pair, float(evidence.estimate[at]), float(p[at]), float(adjusted[at]), adjusted[at] <= alpha)
            for at, pair in enumerate(others)
        }
    return tuple(tested.get(pair) or _with_reference(pair, judged) for pair in planned)


def _with_reference(pair: tuple[str, str, str], judged: dict[tuple[str, str], Comparison]) -> Pair:
    task, first, second = pair
    sign, c = (1, judged[task, first]) if (task, first) in judged else (-1, judged[task, second])
    estimate = sign * c.estimate if c.seeds else 0.0
    return Pair(task, first, second, estimate, c.p, c.p_adjusted, c.verdict in ("better", "worse"))


def stack(evidence: Sequence[BestRate]) -> BestRate:
    """Return the evidence of several comparisons as arrays; a smaller window's last rate is repeated."""
    return BestRate(
        np.array([float(e.estimate) for e in evidence]),
        _ragged([e.below for e in evidence]),
        _ragged([e.above for e in evidence]),
    )


def _ragged(parts: Sequence[effects.Effect]) -> effects.Effect:
    width = max(part.se.shape[-1] for part in parts)

    def column(rows: Sequence[effects.Array]) -> effects.Array:
        return np.array([np.append(row, [row[-1]] * (width - len(row))) for row in rows], dtype=float)

    return effects.Effect(
        column([part.estimate for part in parts]),
        column([part.se for part in parts]),
        column([part.df for part in parts]),
    )


def _comparison(
    at: int, c: Contrast, reference: str, v: Verdicts, margin: float, level: float, claim: str
) -> Comparison:
    verdict, n = VERDICTS[v.code[at]], len(c.seeds)
    refused = refused_equivalence(c, margin) if verdict in ("equivalent", "non_inferior") else ""
    spread = c.evidence.spread(1 - level, n)
    typical = float(power.typical_sd([spread / max(n, 1) ** 0.5], max(n, 1), [float(c.effect.df)]))
    return Comparison(
        task=c.task,
        arm=c.first,
        reference=reference,
        verdict="undecided" if refused else verdict,
        estimate=float(c.effect.estimate),
        low=float(v.low[at]),
        high=float(v.high[at]),
        confidence=float(v.confidence[at]),
        se=float(c.effect.se),
        df=float(c.effect.df),
        sd=float(c.differences.std(ddof=1)) if n > 1 else float("nan"),
        p=float(v.p[at]),
        p_adjusted=float(v.p_adjusted[at]),
        p_equivalence=float(v.p_equivalence[at]),
        p_equivalence_adjusted=float(v.p_equivalence_adjusted[at]),
        seeds=c.seeds,
        n_items=c.n_items,
        item_noise=c.item_noise,
        note="; ".join(part for part in (c.note, _edges(c, reference)) if part),
        spread=spread,
        mde=power.detectable(typical, n, level, margin, claim=claim),
        refused=refused,
        p_flip=c.p_flip(),
        p_non_inferior_adjusted=float(v.p_non_inferior_adjusted[at]) if claim == "non_inferior" else None,
    )


def _edges(c: Contrast, reference: str) -> str:
    """Say which side's best rate lies at the edge of what was run, so that its true best may lie beyond."""
    open_ends = {c.first: c.evidence.above, reference: c.evidence.below} if c.seeds else {}
    sides = [name for name, end in open_ends.items() if end.se.size > 1 and np.all(np.isinf(end.se))]
    return f"the best rate of {' and of '.join(sides)} is at the edge of what was run" if sides else ""


def refused_equivalence(c: Contrast, margin: float) -> str:
    """Return why the two arms may not be called equivalent (non-inferior) although the interval alone would say so."""
    if len(c.seeds) < refusals.LEAST_SEEDS:
        return f"{len(c.seeds)} seeds, fewer than the {refusals.LEAST_SEEDS} that equivalence needs"
    sides = list(zip(*c.at_best, strict=True))
    scores = [np.array([run.score for run in runs]) for runs in sides]
    floor = max(run.floor for runs in sides for run in runs)
    bound = int(refusals.at_bound(scores[0].mean(), scores[1].mean(), margin, floor))
    if bound:
        return f"both scores are within the margin of the {'floor' if bound < 0 else 'ceiling'}"
    for name, runs, of_side in zip(("the arm", "the reference"), sides, scores, strict=True):
        diverged = sum(run.diverged for run in runs)
        if diverged:
            return f"{diverged} of {len(runs)} runs of {name} diverged"
        below = int(refusals.in_groups(of_side, margin, 1 / c.n_items if c.n_items else 0.0))
        if below:
            return f"{below} of {len(runs)} runs of {name} lie in a group of their own, lower than the others"
    return ""
