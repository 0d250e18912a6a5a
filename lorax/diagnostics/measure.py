"""measure: all diagnostics of one arm after training, as the record keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lorax.adapters.factors import Factors
from lorax.adapters.kinds import linear_with
from lorax.diagnostics.alignment import STEP, first_step
from lorax.diagnostics.angles import Angle
from lorax.diagnostics.forgetting import WINDOW, forgetting
from lorax.diagnostics.layers import Row, report, sample
from lorax.diagnostics.spectrum import EPSILON, SUBSPACE, TOP_K, update_shape
from lorax.diagnostics.text import Text
from lorax.errors import UserError, near
from lorax.forward.active import active
from lorax.forward.encode import collate, encode, order
from lorax.forward.readout import Readout, autocast, device_of, run_batch
from lorax.probing.cache import Cache
from lorax.probing.gradient import layer_gradients
from lorax.probing.probe import Probe

if TYPE_CHECKING:
    from lorax.adapters.install import Adapters
    from lorax.models.registry import Loaded
    from lorax.tasks.base import Task

VERSION = 1  # raised when a metric changes its meaning
EXAMPLES = 64
BATCH = 8


def measure(
    loaded: Loaded,
    task: Task | None,
    adapters: Adapters,
    *,
    targets: Iterable[str] | None = None,
    seed: int = 0,
    place: Any = None,
    factors: Mapping[str, Factors] | None = None,
    gradients: Mapping[str, Tensor] | None = None,
    full_delta: Mapping[str, Tensor] | None = None,
    rank: int | None = None,
    lr: float = STEP,
    layers: int = 1,
    subspace: int = SUBSPACE,
    top_k: int = TOP_K,
    epsilon: float = EPSILON,
    text: Text | str | None = None,
    forgetting_tokens: int = 50_000,
    window: int = WINDOW,
    cache: Cache | None = None,
) -> dict[str, Any]:
    """Measure an arm: its first step, its final update, and what it forgot. The model is as before afterwards.

    Args:
        loaded: the model, with the arm's adapters on it.
        task: gives the examples for the gradient where none is given.
        adapters: the arm, trained; one lane of a pack is measured as if alone.
        targets: names of the layers to look at; None: all that the arm adapts. Give those of the other
            arms for full fine-tuning, which trains more.
        seed: chooses the examples of the gradient.
        place: where and in what precision the run computes; its `autocast` is used.
        factors: {layer: factors at step 0}; without them the first step is not measured, but for full
            fine-tuning, which needs none.
        gradients: {layer: (m, n)} of the loss at W0; None: taken here from 64 training examples, under
            `adapters.disabled()`. A model with a fresh head must be given them, taken at step 0: its head
            has trained since. {} leaves out all that needs one.
        full_delta: {layer: W' - W0} of full fine-tuning on the same task, read a layer at a time.
        rank: r of the captured energies; None takes each layer's own.
        lr: size of the first Adam step.
        layers: look at every `layers`-th layer of each kind.
        subspace: r of W0's top and bottom subspaces.
        top_k: singular vectors of W' looked at for intruder dimensions ...
        epsilon: ... and the threshold on their cosine (arXiv:2410.21228).
        text: for forgetting; see `text.load_text`.
        forgetting_tokens: at least so many are predicted; 0 leaves forgetting out.
        window: tokens a window.
        cache: keeps the decompositions of W0 and the base's losses on the text.

    Returns:
        `layers.report` of all metrics: those of `alignment.first_step`; cosine_final (with full
        fine-tuning's update) and cosine_final_gradient (with -G); those of `spectrum.update_shape`.
        Then forgetting (the change, nats a token), forgetting_text (its details) and about (the options).
        What could not be measured is null.

    Raises:
        UserError: a target the arm does not adapt, or one without a gradient.
    """
    names = sample(_known(targets, adapters), layers)
    mixed = getattr(place, "autocast", None)
    if gradients is None:
        gradients = base_gradients(loaded, task, adapters, names, seed, mixed)
    angles: dict[str, Angle] = {}
    rows = []
    for name in names:
        row = _first(name, adapters, factors, gradients, rank, lr, angles)
        delta = adapters.delta([name])[name]
        row |= _final(name, delta, gradients, full_delta or {}, angles)
        base = _start(name, adapters, delta, cache)
        rows.append(row | update_shape(base.weight, delta, base.full_svd(), subspace, top_k, epsilon))
    forgot = None
    if forgetting_tokens:
        forgot = forgetting(loaded, adapters, text, forgetting_tokens, window=window, autocast_dtype=mixed, cache=cache)
    headlines, details = report(names, rows, angles) if names else ({}, {})
    about = {"version": VERSION, "n_layers": len(adapters.names()), "n_measured": len(names), "every": layers}
    about |= {"rank": rank, "subspace": subspace, "top_k": top_k, "epsilon": epsilon, "adam_step": lr}
    return {
        **headlines,
        "forgetting": None if forgot is None else forgot["change"],
        **details,
        "forgetting_text": forgot,
        "about": about,
    }


def base_gradients(
    loaded: Loaded,
    task: Task | None,
    adapters: Adapters,
    names: Iterable[str],
    seed: int = 0,
    autocast_dtype: str | None = None,
    examples: int = EXAMPLES,
) -> dict[str, Tensor]:
    """Return the gradient of the task's loss at W0, with adapters installed but disabled.

    Args:
        loaded: the model; nothing is returned for one with a fresh head, which has trained since step 0.
        task: gives `examples` training examples, chosen by the seed; None gives nothing.
        adapters: what sits on the model.
        names: layers.
        seed: chooses the examples.
        autocast_dtype: dtype of the forward pass by autocast, or None.
        examples: how many, at most all.

    Returns:
        {layer: (m, n), float32 on the CPU}.
    """
    modules = {name: loaded.model.get_submodule(name) for name in names}
    if task is None or loaded.head or not modules or not task.train:
        return {}
    data = encode(task, loaded, "train")
    size = min(BATCH, len(data))
    batches = order(seed, len(data), size, max(1, min(examples, len(data)) // size))
    device = device_of(loaded.model)

    def loss(model: nn.Module, indices: list[int]) -> tuple[Tensor, int]:
        batch = collate([data[index] for index in indices], loaded).to(device)
        with autocast(device, autocast_dtype):
            _, losses = run_batch(readout, batch)
        return losses.mean(), len(losses)

    with Readout(loaded) as readout, active([adapters]), adapters.disabled():
        return layer_gradients(loaded.model, modules, loss, batches)


def _known(targets: Iterable[str] | None, adapters: Adapters) -> list[str]:
    adapted = adapters.names()
    if targets is None or not adapted:
        return adapted
    for name in (chosen := list(targets)):
        if name not in adapted:
            raise UserError(f"diagnostics: layer {name} is not adapted; {near(name, adapted)}")
    return chosen


def _first(
    name: str,
    adapters: Adapters,
    factors: Mapping[str, Factors] | None,
    gradients: Mapping[str, Tensor],
    rank: int | None,
    lr: float,
    angles: dict[str, Angle],
) -> Row:
    """The first step; nothing where factors or gradient are not known."""
    full = getattr(adapters, "kind", None) == "full"
    if not gradients or not (factors or full):
        return {}
    if name not in gradients:
        raise UserError(f"diagnostics: no gradient for layer {name}; {near(name, gradients)}")
    start = None if full else factors[name]
    with torch.no_grad():
        return first_step(start, gradients[name], rank or (start.rank if start else SUBSPACE), lr, angles)


def _final(
    name: str,
    delta: Tensor,
    gradients: Mapping[str, Tensor],
    full_delta: Mapping[str, Tensor],
    angles: dict[str, Angle],
) -> Row:
    """The final update against full fine-tuning's, and against the gradient it started from."""
    row: Row = {"cosine_final": None, "cosine_final_gradient": None}
    if name in full_delta:
        row["cosine_final"] = angles.setdefault("cosine_final", Angle()).add(delta, full_delta[name].to(delta))
    if name in gradients:
        angle = angles.setdefault("cosine_final_gradient", Angle())
        row["cosine_final_gradient"] = angle.add(delta, -gradients[name].to(delta))
    return row


def _start(name: str, adapters: Adapters, delta: Tensor, cache: Cache | None) -> Probe:
    """A probe of W0, whose decomposition the initialisers may have left in the cache."""
    W0 = adapters.linear(name).start() if hasattr(adapters, "linear") else adapters.frozen_weight(name)
    return Probe(name, linear_with(W0.to(delta.device)), cache=cache)
