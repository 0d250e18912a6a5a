"""What a run takes in memory, from its configuration alone: no weight is read, nothing is loaded.

The parts are those of a training step; a method's decompositions come before it, when there is no activation yet.
Scores are computed in batches that fit (`TextModality.fits`) and are not counted. What a token leaves behind for the
backward pass is a model of a transformer block (`Geometry.per_token`), held against what is counted on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorax.config import RunConfig
from lorax.errors import UserError
from lorax.records import canonical
from lorax.records.knobs import LIKELIHOOD
from lorax.running.device import resolve_placement
from lorax.running.memory import total_bytes
from lorax.running.preflight import class_names, layer_shapes, load_task, site_plans
from lorax.tasks.group import is_group

if TYPE_CHECKING:
    from torch import nn

    from lorax.tasks import Task

ITEM = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
GB = 1e9


@dataclass(frozen=True)
class Geometry:
    """The sizes of a model that decide what a step keeps."""

    base: int
    """Values of the base; tied ones count once."""
    blocks: int
    hidden: int
    attention: int
    """Numbers a token has in queries, keys and values, and in what attention gives, in one block."""
    inner: int
    """Numbers a token has in a feed-forward part."""
    gated: bool
    """Whether that part has two first layers (SwiGLU)."""
    vocabulary: int
    """Logits of a label."""

    def per_token(self, item: int) -> int:
        """Return the bytes that a token leaves behind in one block, adapters left out.

        Two norms (their input in fp32, their output), queries, keys, values, the output of attention twice, the parts
        of the feed-forward's activation.

        Args:
            item: bytes of a number in the products.
        """
        norms = 2 * self.hidden * (item + (4 if item < 4 else item))
        return norms + item * (self.attention + self.hidden + (4 if self.gated else 2) * self.inner)


@dataclass(frozen=True)
class MemoryPlan:
    """The parts of a run's memory, in bytes."""

    parts: Mapping[str, int]
    """What a training step holds at once."""
    before: int
    """Most that a method takes before training, beside the base: a layer decomposed, or its pass for gradients."""
    host: int
    """In main memory: the sums of all layers' gradients, for a method that looks at them."""
    advice: tuple[str, ...]
    """What takes less, a line each, with how much."""
    device: str
    available: int | None
    """Of the card; None: a CPU."""

    @property
    def total(self) -> int:
        """Return the most that is held at once."""
        base = self.parts["base"]
        return max(sum(self.parts.values()), base + self.before)

    @property
    def fits(self) -> bool:
        """Return whether the card has as much; true on a CPU, which swaps."""
        return self.available is None or self.total <= self.available

    def lines(self) -> list[str]:
        """Return the plan as text."""
        rows = [*self.parts.items(), ("training step, in all", sum(self.parts.values()))]
        if self.before:
            rows.append(("before it, with gradients or decompositions", self.parts["base"] + self.before))
        if self.host:
            rows.append(("main memory: gradients of all layers", self.host))
        if self.available is not None:
            rows.append((f"the card has ({'fits' if self.fits else 'does not fit'})", self.available))
        lines = [f"memory on {self.device}, estimated from the configuration:"]
        lines += [f"  {name:<44}{_size(size):>10}" for name, size in rows]
        return [*lines, *(f"  less: {line}" for line in self.advice)]

    def refusal(self, description: str) -> str:
        """Return why the run cannot be started, in one line."""
        advice = f"; {self.advice[0]}" if self.advice else ""
        return (
            f"{description}: about {self.total / GB:.1f} GB on {self.device}, which has "
            f"{(self.available or 0) / GB:.1f} GB{advice} (plan=true shows all)"
        )


def memory_plan(config: RunConfig, rows: int | None = None, tokens: int | None = None) -> MemoryPlan:
    """Return what a run takes.

    Args:
        config: resolved.
        rows: of a batch; None: those of the run.
        tokens: of a row; None: as the task's long examples have, about.

    Raises:
        UserError: the model's configuration cannot be read, or the targets match nothing.
    """
    from lorax.models.registry import skeleton

    task, placement = load_task(config), resolve_placement(config.dtype, config.device)
    size = geometry(skeleton(config.model, labels=class_names(task)).model)
    weights = ITEM[placement.weights]
    item = ITEM.get(placement.autocast or placement.weights, weights)
    method = config.initializer()
    values, layers, largest = _trained(config, task, size)
    rows = rows or -(-(config.batch_size or task.batch_size) // config.train["accumulation"])
    several = len(task.parts) if is_group(config.task) else 1
    values *= several  # what tasks share is counted with each
    rows *= several * (config.reinforce["samples"] if config.objective != LIKELIHOOD and method.trains else 1)
    asked = tokens is not None
    tokens = tokens or int(tokens_of(task))
    together = rows * tokens
    if (bound := config.train["max_tokens"]) is not None:
        together = min(together, bound)
    labels = together if asked else int(together * _labelled(task))
    checkpointing = config.train["checkpointing"]
    trains = method.trains

    def activations(count: int, again: bool) -> int:
        block = size.per_token(item)
        return count * (size.hidden * item * size.blocks + block if again else block * size.blocks)

    copies = 0 if item == weights else item * layers
    base, logits = {"base": size.base * weights}, f"logits of {labels:,} labels"
    step = {
        "casts of the adapted weights": copies,
        "trained values and what they start from": 8 * values if method.has_factors else 0,
        "gradients": 4 * values,
        "optimiser (two moments)": 8 * values,
        f"activations, {together:,} tokens{' checkpointed' if checkpointing else ''}": activations(
            together, checkpointing
        ),
        logits: logits_bytes(labels, size, item, task.kind),
    }
    parts = base | {name: number for name, number in step.items() if number and trains}
    before = 5 * 8 * largest if method.needs else 0
    if "gradient" in method.needs:
        batch = (config.batch_size or task.batch_size) * tokens if config.train["max_tokens"] is None else together
        before = max(before, activations(max(batch, together), checkpointing) + weights * largest + step[logits])
    advice = []
    if trains:
        now = activations(together, checkpointing)
        saved = now - activations(together, True)
        if saved > 0:
            advice.append(f"train.checkpointing=true saves about {_size(saved)}")
        if together > tokens:
            saved = now - activations(tokens, checkpointing)
            advice.append(f"train.max_tokens={tokens} saves about {_size(saved)}")
    if weights > 2:
        advice.append(f"dtype=bfloat16 saves about {_size(size.base * (weights - 2) + copies)}")
    return MemoryPlan(
        parts, before=before, host=4 * layers if "gradient" in method.needs else 0,
        advice=tuple(advice), device=placement.device, available=total_bytes(placement.device),
    )  # fmt: skip


def check_memory(configs: Sequence[RunConfig]) -> None:
    """Refuse runs that a GPU cannot hold, before anything is loaded; one that is only to be planned is let through.

    Raises:
        UserError: how much a run takes, how much there is, and what takes less.
    """
    distinct = {
        canonical([config.model, config.task, config.init, config.rank, config.targets, config.batch_size, config.dtype,
                   config.device, config.train, config.objective, config.reinforce]): config
        for config in configs if not config.plan
    }  # fmt: skip
    for config in distinct.values():
        if total_bytes(resolve_placement(config.dtype, config.device).device) is not None:
            plan = memory_plan(config)
            if not plan.fits:
                raise UserError(plan.refusal(f"init={config.init['name']} model={config.model['name']}"))


def geometry(model: nn.Module) -> Geometry:
    """Return the sizes of a model, on the meta device too."""
    from lorax.adapters.kinds import is_linear, shape_of
    from lorax.architecture.blocks import block_names
    from lorax.architecture.heads import output_embeddings

    modules = dict(model.named_modules())
    linear = {name: shape_of(module) for name, module in modules.items() if name and is_linear(module)}
    blocks = block_names(modules, linear)
    named: Any = getattr(model, "config", None)
    hidden = int(getattr(named, "hidden_size", None) or max((n for _, n in linear.values()), default=1))
    inside = [{name: shape for name, shape in linear.items() if name.startswith(f"{block}.")} for block in blocks]
    widest = max(inside, key=lambda layers: sum(m * n for m, n in layers.values()), default={})
    attends = {name: shape for name, shape in widest.items() if "att" in name.lower()}
    rest = [shape for name, shape in widest.items() if name not in attends]
    # The last layer of attention reads what attention gives: once from its kernel, once as that layer's input.
    gives = list(attends.values())[-1][1] if attends else 0
    reads = sum(m for m, _ in list(attends.values())[:-1])
    inner = max((n for _, n in rest), default=0)
    head = output_embeddings(model)
    return Geometry(
        base=sum(value.numel() for value in model.parameters()), blocks=len(blocks), hidden=hidden,
        attention=reads + 2 * gives, inner=inner, gated=sum(m == inner for m, _ in rest) > 1,
        vocabulary=int(head.weight.shape[0]) if head is not None and hasattr(head, "weight") else 1,
    )  # fmt: skip


def logits_bytes(labels: int, size: Geometry, item: int, kind: str) -> int:
    """Return what logits, their fp32 copy, softmax and gradient take; of many a chunk alone."""
    from lorax.forward.logits.chunked_loss import CHUNK, FROM

    if kind == "classification":
        return 0
    numbers = labels * size.vocabulary
    if numbers >= FROM:
        return CHUNK * (item + 4 + 4) + labels * size.hidden * item * 2
    return numbers * (2 * item + 4 + (4 if item < 4 else 0))


def tokens_of(task: Task) -> float:
    """Return about how many tokens a long example has: its characters / 3.5, and 50 of the chat template."""
    lengths = sorted(len(example.prompt) + len(example.answer) for example in task.train)
    return lengths[int(0.95 * (len(lengths) - 1))] / 3.5 + 50


def _labelled(task: Task) -> float:
    """Return the share of tokens that are predicted, about."""
    whole = sum(len(example.prompt) + len(example.answer) for example in task.train)
    return max(0.02, sum(len(example.answer) for example in task.train) / max(1, whole))


def _trained(config: RunConfig, task: Task, size: Geometry) -> tuple[int, int, int]:
    """Return how many values train, the adapted layers' values in all, and those of the largest."""
    method = config.initializer()
    if not method.has_factors:
        return (size.base if method.changes_layers else 0), 0, 0
    if method.adapts == "module":
        return sum(plan.count_trainable() for plan in site_plans(config, task).values()), 0, 0
    shapes = layer_shapes(config, task)
    rules = config.rules()
    values = sum(rules.at(name, method).count(m, n) for name, (m, n) in shapes.items())
    sizes = [m * n for m, n in shapes.values()]
    return values, sum(sizes), max(sizes)


def _size(number: int) -> str:
    """Return bytes as text.

    Examples:
        >>> _size(16_060_000_000), _size(2_400_000)
        ('16.06 GB', '2.4 MB')
    """
    return f"{number / GB:.2f} GB" if number >= GB / 10 else f"{number / 1e6:.1f} MB"
