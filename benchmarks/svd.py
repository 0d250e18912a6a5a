"""How fast and how exact are the decompositions?

Both ends of every adapted weight's spectrum in one pass against gesdd, as many vectors as an initialisation keeps, and
whole spectra; the top 8 of larger matrices by block Krylov;
and the randomised principal subspace against PEFT's `pissa_niter_16`; each way to a square layer's triplets, those of
GPUs forced on this CPU. Angles are sines of the largest principal
angle to the exact subspaces, of U and V, the worse one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.decompositions import by_way
from benchmarks.harness import Plan, Row, Spread, interleave, say, single
from benchmarks.subjects import load
from lorax.adapters.install import find_targets
from lorax.adapters.kinds import effective
from lorax.probing import svd
from lorax.probing.parallel import side_by_side
from lorax.probing.probe import BLOCKS

R = 8
LARGE = ((2048, 8192), (4096, 4096))


def run(plan: Plan) -> list[Row]:
    """Measure every case that was asked for."""
    names = ("tiny",) if plan.quick else ("smollm2", "minilm")
    rows: list[Row] = []
    for name in names:
        rows += _model(name, plan) if plan.wants(name) else []
    for m, n in ((192, 256),) if plan.quick else LARGE:
        rows += _large(m, n, plan) if plan.wants(f"{m}x{n}") else []
    return rows + by_way(plan)


def _model(name: str, plan: Plan) -> list[Row]:
    loaded = load(name)
    targets = find_targets(loaded.model, head=loaded.head)
    weights = [effective(module).float() for module in targets.values()]
    case = f"{name}, {len(weights)} linears"

    def both(name: str) -> None:
        W = effective(targets[name]).float()
        svd.ends(W, BLOCKS[0]) if BLOCKS[0] <= svd.most_at_ends(min(W.shape)) else svd.full(W)

    def ours() -> None:
        side_by_side(targets, both)

    def whole() -> None:
        side_by_side(targets, lambda name: svd.full(effective(targets[name]).float()))

    def gesdd() -> None:
        for W in weights:
            torch.linalg.svd(W, full_matrices=False)

    say(f"{case} ", end="")
    timings = interleave({"gesdd": gesdd, "ours": ours, "whole": whole}, plan.times(2), warmup=0)
    rows = [
        timings.row(case, "both ends: gesdd / ours", "gesdd", "ours"),
        Row(case, "both ends: ours", "s", timings.seconds("ours"), timings.machine),
        timings.row(case, "whole spectrum: gesdd / ours", "gesdd", "whole"),
        Row(case, "whole spectrum: ours", "s", timings.seconds("whole"), timings.machine),
        Row(case, "both ends: gesdd fp32", "s", timings.seconds("gesdd"), timings.machine),
    ]
    return rows + _angles(case, weights[:: max(1, len(weights) // 24)])


def _angles(case: str, weights: list[Tensor]) -> list[Row]:
    """Sines of principal angles to gesdd's subspaces in fp64, on a sample of the layers."""
    sines: dict[str, list[float]] = {}
    for W in weights:
        exact = svd.Triplets(*torch.linalg.svd(W.double(), full_matrices=False))
        k = len(exact.S)
        plain = svd.Triplets(*torch.linalg.svd(W, full_matrices=False))
        both = svd.ends(W, R)
        ours = {"top 8": both.rows(slice(0, R)), "bottom 8": both.rows(slice(R, 2 * R))}
        randomised, bound = svd.randomised(W, R, torch.Generator().manual_seed(0))
        U, S, V = torch.svd_lowrank(W, q=R, niter=16)
        ends = {"top 8": slice(0, R), "bottom 8": slice(k - R, k)}
        for end, part in ends.items():
            sines.setdefault(f"sine, {end}: ours", []).append(sine(ours[end], exact.rows(part)))
            sines.setdefault(f"sine, {end}: gesdd fp32", []).append(sine(plain.rows(part), exact.rows(part)))
        top = exact.rows(ends["top 8"])
        sines.setdefault("sine, randomised top 8: ours", []).append(sine(randomised, top))
        sines.setdefault("bound on that sine, as printed", []).append(bound)
        sines.setdefault("sine, randomised top 8: pissa_niter_16", []).append(sine(svd.Triplets(U, S, V.mT), top))
    rows = []
    for measure, values in sines.items():
        rows.append(single(case, measure, "", values, note=f"worst {max(values):.1e}"))
    worst = max(max(sines["sine, top 8: ours"]), max(sines["sine, bottom 8: ours"]))
    worst_randomised = max(sines["sine, randomised top 8: ours"])
    return [
        *rows,
        single(case, "sine, both ends, worst layer: ours", "", worst),
        single(case, "sine, randomised top 8, worst layer: ours", "", worst_randomised),
    ]


def _large(m: int, n: int, plan: Plan) -> list[Row]:
    """The top 8 of a matrix made from known random singular vectors and a flat spectrum, such as weights have."""
    draw = torch.Generator().manual_seed(0)
    k = min(m, n)
    U = torch.linalg.qr(torch.randn(m, k, generator=draw)).Q
    V = torch.linalg.qr(torch.randn(n, k, generator=draw)).Q
    S = spectrum(k)
    W = (U * S) @ V.mT
    exact = svd.Triplets(U, S, V.mT).rows(slice(0, R))
    case, top = f"{m}x{n}, top {R}", {}

    def ours() -> None:
        top["triplets"] = svd.top(W, R)

    say(f"{case} ", end="")
    arms = {"gesdd": lambda: torch.linalg.svd(W, full_matrices=False), "ours": ours}
    timings = interleave(arms, 1 if k > 1024 else plan.times(2), warmup=0)
    return [
        Row(case, "gesdd / ours", "x", timings.ratio("gesdd", "ours"), timings.machine),
        Row(case, "ours", "s", timings.seconds("ours"), timings.machine),
        Row(case, "sine: ours", "", Spread.of([sine(top["triplets"], exact)]), timings.machine),
    ]


def spectrum(k: int) -> Tensor:
    """Return singular values like those of a pretrained projection: a few large ones, then a slow fall to near 0."""
    place = torch.linspace(0, 1, k)
    return 4 * (1 - place) ** 1.2 + 12 / (1 + torch.arange(k) / 4) + 1e-3


def sine(computed: svd.Triplets, exact: svd.Triplets) -> float:
    """Return the sine of the largest principal angle between the subspaces of U or of V, whichever is worse."""
    worst = 0.0
    for ours, true in ((computed.U, exact.U), (computed.Vh.mT, exact.Vh.mT)):
        ours, true = ours.double(), true.double()
        worst = max(worst, float(torch.linalg.matrix_norm(ours - true @ (true.mT @ ours), ord=2)))
    return worst
