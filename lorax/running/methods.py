"""The table of methods, `python -m lorax.running.methods`: what each trains, looks at, and can be turned into.

Equation and source come from the method's docstring, numbers of values from its own formula; the rest is found by
putting the method on a small layer. It writes `results/tables/methods.md`.
"""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorax.config import conf_dir
from lorax.errors import UserError, one_line
from lorax.initializers.registry import build, get, names
from lorax.records import write_atomic
from lorax.reports.text import markdown

if TYPE_CHECKING:
    from torch import nn

    from lorax.adapters.handle import Adapters
    from lorax.initializers.base import Initializer

RANK = 8
SMOLLM2 = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)] * 30
"""(m, n) of the linear layers of SmolLM2-135M that "all-linear" adapts."""
SMOLLM2_WIDTH = 576
SMOLLM2_TOTAL = 134_515_008
"""All of its parameters."""
HEAD = ("method", "equation", "source", "trains", "values", "looks at", "in a pack", "merges", "PEFT", "step 0", "lr")
NOTES = (
    f"values: on SmolLM2-135M, all linear layers, rank {RANK} where the method has one, by closed formula.",
    "looks at: what the start needs besides shapes and random numbers.",
    "in a pack: fused = lanes share the layer's products; plain = lane after lane; alone = it has no lanes.",
    "PEFT: the rank of the plain LoRA that computes the same on the untouched base, r the method's own.",
    "step 0: whether a layer's output is the base's, bit for bit, under recenter=carry.",
    "lr: the prior, by which the task's base rate, a rate for LoRA, is multiplied; sources are in conf/init.",
)
_M, _N, _R = 12, 20, 4


def page() -> str:
    """Return the table of all registered methods as Markdown."""
    table = markdown.table(HEAD, [_row(name) for name in names()], left=len(HEAD))
    return f"# methods\n\n{table}\n\n{markdown.bullets(NOTES)}\n"


def equation_and_source(name: str) -> tuple[str, str]:
    """Return what a method computes, in a line, and the paper it is from (`arXiv:...`, or `-`)."""
    text = inspect.getdoc(get(name)) or ""
    first = text.partition("\n")[0].rstrip(".")
    source = re.search(r"arXiv:\d+\.\d+", text)
    return re.sub(r" ?\((?:arXiv:[\d.]+)\)", "", first), source[0] if source else "-"


def _row(name: str) -> list[str]:
    from omegaconf import OmegaConf

    method = build(name, shared={"rank": RANK})
    yaml = conf_dir() / "init" / f"{name}.yaml"
    prior = f"{OmegaConf.load(yaml)['lr_prior']:g}" if yaml.is_file() else "1"
    known = [name, *equation_and_source(name)]
    if method.takes_saved:
        found = _of_saved(method)
    else:
        found = _found(name) if method.has_factors else _without_factors(method)
    return [*known, found["trains"], _count(method), *(found[key] for key in HEAD[5:-1]), prior]


def _count(method: Initializer) -> str:
    if not method.trains:
        return "0"
    if method.takes_saved:
        return "as saved"
    if not method.has_factors:
        return f"{SMOLLM2_TOTAL:,}" if method.changes_layers else "the head's"
    if method.adapts == "module":
        return f"{len(_sites(method)) * method.count(SMOLLM2_WIDTH, SMOLLM2_WIDTH):,}"
    return f"{sum(method.count(m, n) for m, n in SMOLLM2):,}"


def _sites(method: Initializer) -> list[str]:
    """Return where a method that adapts modules stands in SmolLM2-135M."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=SMOLLM2_WIDTH, num_hidden_layers=30, num_attention_heads=9, vocab_size=8)
    with torch.device("meta"):
        return list(method.sites(LlamaForCausalLM(config))) if method.sites is not None else []


def _of_saved(method: Initializer) -> dict[str, str]:
    """Of a method that starts from adapters on disk: what these are decides the rest."""
    step = "base" if method.starts_at_base else "moved"
    return dict.fromkeys(HEAD, "as saved") | {"looks at": "saved adapters", "step 0": step}


def _without_factors(method: Initializer) -> dict[str, str]:
    trains = "-" if not method.trains else "all" if method.changes_layers else "head"
    return {"trains": trains, "looks at": "-", "in a pack": "alone", "merges": "-", "PEFT": "-", "step 0": "base"}


def _found(name: str) -> dict[str, str]:
    """Put the method on a small layer and see."""
    import torch

    torch.manual_seed(0)
    method = build(name, shared={"rank": _R})
    model, x = _small(method), torch.randn(32, _N if method.adapts == "linear" else _M)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapters = _attached(model, method, x)
    with torch.no_grad(), adapters.disabled():
        base = model(x)
    with torch.no_grad():
        stays = torch.equal(model(x), base)
    adapter = next(iter(adapters.layer_adapters().values()))
    letters = dict.fromkeys(key.removeprefix("d") or key for key in adapter.trained())
    return {
        "trains": ", ".join(letters),
        "looks at": _looks(method),
        "in a pack": "fused" if adapter.fusible else "plain",
        "PEFT": _export(adapters),
        "merges": _merges(adapters),
        "step 0": "base" if stays else "moved",
    }


def _small(method: Initializer) -> nn.Module:
    from torch import nn

    if method.adapts == "linear":
        return nn.Sequential(nn.Linear(_N, _M))
    return nn.Sequential(nn.Sequential(nn.Linear(_M, _M)))


def _attached(model: nn.Module, method: Initializer, x: Any) -> Adapters:
    from lorax.api import attach

    return attach(model, method, targets=["0"], loss=lambda model, batch: model(batch).square().mean(), batches=[x])


def _looks(method: Initializer) -> str:
    words = {"svd": "weights", "weight": "weights", "gradient": "gradients", "activations": "activations"}
    seen = dict.fromkeys(words[need] for need in sorted(method.needs, reverse=True))
    return ", ".join(seen) or "nothing"


def _export(adapters: Adapters) -> str:
    from lorax.adapters.files.export import adapted_model

    try:
        layer = next(iter(adapted_model(adapters).layers.values()))
    except UserError:
        return "no"
    if layer.lengths is not None:
        return "DoRA r"
    rank = layer.A.shape[0]
    said = {_R: "r", 2 * _R: "2 r", min(_M, _N): "min(m, n)"}
    return said.get(rank, f"{rank / _R:.2g} r")


def _merges(adapters: Adapters) -> str:
    try:
        adapters.merge().unmerge()
    except UserError:
        return "no"
    return "yes"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table; return the exit status: 0, or 2 after one clear line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if any(word in ("-h", "--help") for word in given):
            print("python -m lorax.running.methods [results_dir=<folder>]   writes tables/methods.md there")
            return 0
        root = Path("results")
        for word in given:
            key, equals, value = word.partition("=")
            if key != "results_dir" or not equals or not value:
                raise UserError(f"{word}: results_dir=<folder> is the only option")
            root = Path(value)
        path, text = root / "tables" / "methods.md", page()
        write_atomic(path, text)
        print(f"{text}wrote {path}")
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
