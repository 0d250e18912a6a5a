"""The conclusion in sentences: the verdicts, what is undecided, and what would decide it."""

from __future__ import annotations

import math
import statistics

import pandas as pd

from lorax.reports import until_decided
from lorax.reports.frames.learning_rates import stretches
from lorax.reports.frames.study import selections
from lorax.reports.text import numbers
from lorax.reports.text.verdicts import bound_of
from lorax.stats.best_rate import hidden
from lorax.stats.judge import would_need
from lorax.stats.result import Comparison, StudyResult
from lorax.studies.study import Study

MANY = 12
"""A task with more undecided rows than this gets one sentence for all of them."""

_SAYS = {
    "better": "scores higher than {} by at least {} points",
    "worse": "scores lower than {} by at least {} points",
    "equivalent": "is equivalent to {} within {} points",
    "non_inferior": "is not worse than {} by {} points (non-inferior)",
}


def verdicts(result: StudyResult) -> list[str]:
    """Return a sentence for every comparison that reached a verdict, and one on the pairs."""
    ends = {task: end for task in result.tasks if (end := extreme(result, task))}
    lines = [f"Nothing can be found: every run of {task} is at the {end} of the metric." for task, end in ends.items()]
    lines += [
        f"{c.task}: {c.arm} {_SAYS[c.verdict].format(c.reference, bound_of(c, result.margin))}: {_effect(c)}."
        for c in result.comparisons
        if c.verdict in _SAYS and c.task not in ends
    ]
    if not lines:
        aim = "non-inferiority" if result.claim == "non_inferior" else "equivalence"
        lines = [f"No difference from {result.reference} was found, and no {aim} shown."]
        if result.courses is not None:
            lines = [f"No difference from {result.reference} was found; equivalence is not judged."]
    for task in result.tasks:
        pairs = [pair for pair in result.pairs if pair.task == task]
        apart = sum(pair.separated for pair in pairs)
        if pairs and task not in ends:
            lines.append(
                f"{task}: {apart} of {len(pairs)} pairs of arms are separated (letters: pairs with {result.reference} "
                "as their verdict, the others by Holm's procedure over these)."
            )
    return lines + _unseen(result)


def _unseen(result: StudyResult) -> list[str]:
    """Say what no equivalence can speak about: a kind of run that the seeds at hand did not show."""
    seeds = [len(c.seeds) for c in result.comparisons if c.verdict == "equivalent"]
    if not seeds:
        return []
    share = 1 - 0.05 ** (1 / min(seeds))
    return [
        f"Equivalent speaks of runs like those seen: with {min(seeds)} seeds a kind of run that makes up "
        f"{100 * share:.0f} % of all, a collapse for one, can have gone unseen (95 % bound)."
    ]


def extreme(result: StudyResult, task: str) -> str:
    """Return `floor` where every final run of a task scored 0, `ceiling` where every one scored 1, else nothing.

    Nothing can be told apart there: no advice on seeds, items or rates would help.
    """
    means = [row.mean for row in result.arms if row.task == task]
    if means and max(means) <= 0:
        return "floor"
    return "ceiling" if means and min(means) >= 1 else ""


def undecided(result: StudyResult) -> list[str]:
    """Return a sentence for each undecided comparison; where a task has more than `MANY`, one sentence for all.

    Each says how wide the interval is and what would decide it.
    """
    lines: list[str] = []
    if result.courses is not None:
        return [
            until_decided.undecided(result, c, result.design.n_seeds)
            for c in result.comparisons
            if c.verdict == "undecided"
        ]
    if any(c.verdict == "undecided" and would_need(result, c).verdict for c in result.comparisons):
        lines.append(
            "Numbers of seeds below are for a new study: seeds added to this one after looking at it break the "
            f"promised {100 * result.alpha:g} %."
        )
    for task in result.tasks:
        of_task = [c for c in result.comparisons if c.task == task and c.verdict == "undecided"]
        if end := extreme(result, task):
            per_cent, other = (0, "easier") if end == "floor" else (100, "harder")
            lines.append(
                f"{task}: every run scored {per_cent} %, at the {end} of the metric: no seeds and no items would tell "
                f"arms apart; a task that is {other}, or other training, may."
            )
            continue
        known = [c for c in of_task if math.isfinite(c.se)]
        lines += [
            f"{task}: {c.arm} against {c.reference} cannot be judged ({c.note or 'one seed'})."
            for c in of_task
            if not math.isfinite(c.se)
        ]
        if len(known) > MANY:
            lines.append(_all_in_one(result, task, known))
        else:
            lines += [
                f"{task}: {c.arm} against {c.reference} is undecided: {_effect(c)}. {_needed(result, c)}" for c in known
            ]
    return lines


def _all_in_one(result: StudyResult, task: str, known: list[Comparison]) -> str:
    """Return one sentence for many undecided comparisons of a task."""
    estimates, reaches = [c.estimate for c in known], [(c.high - c.low) / 2 for c in known]
    seeds = [need.seeds for c in known if (need := would_need(result, c)).seeds is not None]
    line = (
        f"{task}: {len(known)} rows against {known[0].reference} are undecided; their estimates lie between "
        f"{numbers.points(min(estimates), True)} and {numbers.points(max(estimates), True)} points, "
        f"their intervals reach {numbers.points(min(reaches))} to {numbers.points(max(reaches))} points to either side."
    )
    if not seeds:
        return line + " 200 seeds would decide none of them at the present estimates."
    now = min(len(c.seeds) for c in known)
    return line + (
        f" If estimates and spreads stay, a new study with {min(seeds)} to {max(seeds)} seeds (this one: {now}) would "
        f"decide {len(seeds)} of them, half of these with {statistics.median_high(seeds)}."
    )


def fixed_rate(frame: pd.DataFrame, reference: str, margin: float = 0.0) -> list[str]:
    """Return what papers that fix one learning rate for all arms would have reported.

    Args:
        frame: tuning runs, from `frames.study.tuning_frame`.
        reference: named where it never leads.
        margin: an arm that leads by less, wherever it leads, is not named as a winner.
    """
    parts = stretches(frame)
    lines = []
    for task in dict.fromkeys(part.task for part in parts):
        of_task = [part for part in parts if part.task == task]
        leading = [part for part in of_task if part.gap >= margin]
        winners = list(dict.fromkeys(part.winner for part in leading))
        near = f"the best two arms are within the margin of {numbers.points(margin)} points"
        if not leading:
            lines.append(f"{task}: at every shared learning rate {near}: no winner (validation means, no test).")
            continue
        if len(winners) == 1 and leading == of_task:
            lines.append(f"{task}: {winners[0]} leads at every shared learning rate (validation means, no test).")
            continue
        spans = "; ".join(
            f"{part.winner} from {numbers.rate(part.low)} to {numbers.rate(part.high)} (up to "
            f"{numbers.points(part.gap)} points over {part.runner_up})"
            for part in leading
        )
        elsewhere = "" if leading == of_task else f" Elsewhere {near}."
        never = "" if reference in winners else f" {reference} leads nowhere."
        lines.append(
            f"{task}: the winner depends on the rate given to all arms: {spans}.{elsewhere}{never} Validation means, "
            "no test."
        )
    return lines


def tuning(study: Study) -> list[str]:
    """Return how firm the selected rates are: which stand at an edge, how often resampling selects another."""
    if study.spec.tuning is None:
        return ["No tuning: every arm ran at one learning rate. This is not a tuned comparison."]
    plan = study.spec.tuning
    more = " and more where any arm's best was at its edge" if plan.extend * plan.rounds else ""
    lines = [
        f"Every arm: {plan.points} learning rates{more}, {plan.per_decade} a decade, {len(plan.seeds)} tuning seeds "
        f"({', '.join(map(str, plan.seeds))}), selected on validation {study.spec.metric}, ties by validation loss."
    ]
    for (task, arm), drawn in selections(study).items():
        choice = study.choices[task, arm]
        if choice.edge and (task, arm) not in study.windows:  # of a window, `windows` says it
            lines.append(
                f"{task}: the best rate of {arm}, {numbers.rate(choice.lr)}, is still at the {choice.edge} end of its "
                "grid: a better one may lie beyond."
            )
        if drawn.stability < 0.5:
            lines.append(
                f"{task}: resampling selects {numbers.rate(drawn.chosen)} for {arm} in only "
                f"{100 * drawn.stability:.0f} % of draws (mean regret {numbers.points(drawn.regret)} points on "
                "validation)."
            )
    if plan.halving is not None:
        lines.append(
            f"Successive halving, alike for all: all rates at {plan.halving.steps} steps, then the best "
            f"{100 * plan.halving.keep:g} % at full length."
        )
    for (task, arm, lr), runs in study.runners_up.items():
        scores = [score for run in runs.values() if (score := run.score("test", study.spec.metric)) is not None]
        if scores:
            mean = numbers.points(statistics.fmean(scores))
            lines.append(
                f"{task}: {arm} at the runner-up rate {numbers.rate(lr)} scores {mean} on test over {len(scores)} "
                "seeds (description only)."
            )
    return lines


def windows(study: Study) -> list[str]:
    """Return, for each arm, the rates that its seeds ran, the one that is the best, and what the lattice may hide."""
    lines = []
    for (task, arm), rates in study.windows.items():
        choice, row = study.choices[task, arm], study.result.arm(task, arm) if study.result else None
        span = f"{len(rates)} rates from {numbers.rate(choice.window[0])} to {numbers.rate(choice.window[-1])}"
        if row is None or row.lr is None or len(row.rates) < len(rates):
            lines.append(f"{task}: {arm} runs {span}; runs are missing.")
            continue
        best = f"{task}: {arm} ran {span} and is best at {numbers.rate(row.lr)} (tuning: {numbers.rate(choice.pilot)})"
        if row.at_edge:
            lines.append(
                f"{best}, at the edge of what was run: its true best may lie beyond; it is never called worse."
            )
            continue
        estimate, most = hidden(list(row.rates.values()), list(row.rates).index(row.lr))
        lines.append(
            f"{best}; between two rates of the lattice it may score {numbers.points(estimate)} points more (parabola "
            f"through three rates; {numbers.points(most)} at most if the curve only bends downwards)."
        )
    return lines


def _effect(c: Comparison) -> str:
    ends = f"[{numbers.points(c.low, True)}, {numbers.points(c.high, True)}]"
    says = f"{numbers.points(c.estimate, True)} points, interval {ends} at {100 * c.confidence:.3g} %"
    return says + until_decided.after(c)


def _needed(result: StudyResult, c: Comparison) -> str:
    if c.refused:
        return f"Not called {'non-inferior' if result.claim == 'non_inferior' else 'equivalent'}: {c.refused}."
    if math.isinf(c.low) or math.isinf(c.high):
        return f"{c.note[:1].upper()}{c.note[1:]}: further rates would tell."
    need = would_need(result, c)
    ways = []
    if need.seeds is not None:
        ways.append(f"{need.seeds} seeds (this one: {len(c.seeds)})")
    if need.items is not None:
        ways.append(f"{need.items:,} test items (this one: {c.n_items:,})")
    if not ways:
        return "Neither 200 seeds nor more items would decide it at the present estimate."
    return f"If estimate and spread stay, a new study with {' or '.join(ways)} would find it {need.verdict}."
