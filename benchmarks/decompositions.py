"""How long does a layer's decomposition take, by each way to it, and how exact is it? Rows of `svd` and of `gpu`."""

from __future__ import annotations

import time
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.harness import Plan, Row, Spread, interleave, say, single
from lorax.errors import UserError
from lorax.initializers.registry import build
from lorax.probing import route, svd
from lorax.probing.probe import BLOCKS
from lorax.probing.probe_layers import probe_layers

SIDES = (1024, 2048, 4096)
METHODS = ("pissa", "milora", "lora_xs")
RANK = 8
LLAMA_3_8B = {(4096, 4096): 64, (1024, 4096): 64, (14336, 4096): 96}
"""{shape: how many of its 224 adapted layers}: q, o; k, v; gate, up, and down, which is measured as its transpose."""
AT_ONCE = {(4096, 4096): 4, (1024, 4096): 8, (14336, 4096): 3}
TINY = {(64, 64): 2, (96, 64): 1}


def by_way(plan: Plan) -> list[Row]:
    """Processor time of a square layer by each way, on this CPU; a GPU's ways are forced."""
    rows: list[Row] = []
    for k in (96,) if plan.quick else SIDES:
        case = f"ways, {k}x{k}"
        rows += _square(case, k, plan) if plan.wants(case) else []
    return rows


def _square(case: str, k: int, plan: Plan) -> list[Row]:
    from benchmarks.svd import sine

    W, exact = known(k, k)
    r, found = min(BLOCKS[0], k // 16), {}
    wanted = {
        f"lapack, both ends of {r}": ("lapack", ("ends", r)),
        f"gram, both ends of {r}": ("gram", ("ends", r)),
        f"krylov, top {r}": ("krylov", ("top", r)),
    }
    if k > svd.DENSE:  # up to it both ends are found at once
        wanted[f"lapack, top {r}"] = ("lapack", ("top", r))

    def find(name: str) -> None:
        way, kind = wanted[name]
        [found[name]] = route.decompose(way, kind, [lambda: W])

    say(f"{case} ", end="")
    arms = {name: partial(find, name) for name in wanted}
    timings = interleave(arms, plan.times(1 if k > SIDES[0] else 2), warmup=0)
    rows = []
    for name in wanted:
        cpu = Spread.of([trial.cpu for trial in timings.trials[name]])
        worst = sine(found[name].rows(slice(0, r)), exact.rows(slice(0, r)))
        rows += [
            Row(case, f"processor time: {name}", "s", cpu, timings.machine),
            single(case, f"sine, top {r}: {name}", "", worst),
        ]
    return rows


def known(m: int, n: int) -> tuple[Tensor, svd.Triplets]:
    """Return (W, its triplets): random singular vectors and the spectrum of a pretrained projection."""
    from benchmarks.svd import spectrum

    draw, k = torch.Generator().manual_seed(0), min(m, n)
    U, V = (torch.linalg.qr(torch.randn(side, k, generator=draw, dtype=torch.float64)).Q for side in (m, n))
    S = spectrum(k).double().sort(descending=True).values
    return ((U * S) @ V.mT).float(), svd.Triplets(U, S, V.mT)


def on_device(device: torch.device, quick: bool) -> list[Row]:
    """Time to start a method on layers of an 8B model's shapes, in bf16, and what that makes for all of them."""
    shapes = TINY if quick else LLAMA_3_8B
    rows, total = [], dict.fromkeys(METHODS, 0.0)
    forced = route.forced("gram") if device.type != "cuda" else nullcontext()
    with forced:
        way = route.way_for(device)
        for method in METHODS:  # solvers are loaded, code is imported
            _start(random_layers(32, 32, 1, device), method)
        for (m, n), count in shapes.items():
            model = random_layers(m, n, 2 if quick else AT_ONCE[m, n], device)
            case = f"{m}x{n} bf16, {len(model)} at once"
            for method in METHODS:
                seconds = _start(model, method) / len(model)
                total[method] += count * seconds
                rows.append(single(case, f"time to start a layer: {method}", "s", seconds, note=way))
            rows += _sines(case, model[0])
    whole = f"{sum(shapes.values())} layers of an 8B model"
    for method, seconds in total.items():
        say(f"{'':8}{whole}, {method}: {seconds:.1f} s by {way}")
        rows.append(single(whole, f"time to start, extrapolated: {method}", "s", seconds, note=way))
    return rows


def random_layers(m: int, n: int, count: int, device: torch.device) -> nn.ModuleList:
    """Return layers with random bf16 weights of one shape."""
    torch.manual_seed(0)
    kept = {"bias": False, "device": device, "dtype": torch.bfloat16}
    return nn.ModuleList([nn.Linear(n, m, **kept).requires_grad_(False) for _ in range(count)])


def _start(model: nn.ModuleList, method: str) -> float:
    """Return the seconds in which a method's factors are made, nothing cached."""
    init = build(method, shared={"rank": RANK}, own={})
    layers = dict(model.named_children())
    device = model[0].weight.device
    _wait(device)
    start = time.perf_counter()
    try:
        probe_layers(model, layers, init)
    except UserError as error:  # milora may decline a weight that rounding made singular: its triplets were found
        say(f"{method}: {error}")
    _wait(device)
    return time.perf_counter() - start


def _sines(case: str, layer: nn.Linear) -> list[Row]:
    """Sines of both ends of one layer to the device's own solver in float64."""
    from benchmarks.svd import sine

    W = layer.weight.float()
    k = min(W.shape)
    exact = svd.by_gesdd(W, [*range(RANK), *range(k - RANK, k)])
    rows = []
    for what, part in (("top", slice(0, RANK)), ("bottom", slice(RANK, 2 * RANK))):
        [found] = route.decompose(route.way_for(W.device, what), (what, RANK), [lambda: W])
        rows.append(single(case, f"sine, {what} {RANK}", "", sine(found, exact.rows(part))))
    return rows


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
