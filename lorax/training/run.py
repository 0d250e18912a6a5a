"""A run as the training loop takes it: adapters, data and optimisation; and how it ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorax.adapters.face import Trainable, TrainingRule
    from lorax.forward.heads import Head
    from lorax.models.modality import Row
    from lorax.training.objective import Rewarded


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """How a run is trained."""

    steps: int
    """Optimiser steps."""
    batch_size: int
    """Examples behind one optimiser step."""
    schedule: str = "cosine"
    """cosine | linear | constant, after the warm-up."""
    warmup: float = 0.1
    """Share of the steps over which the learning rate rises."""
    clip: float | None = 1.0
    """Bound on the run's gradient norm; None: no bound."""
    accumulation: int = 1
    """Micro-batches a step: the batch is split, not enlarged, and the result is the same."""
    max_tokens: int | None = None
    """Most tokens of a micro-batch, padding and all runs of the pack counted; what has more is split further. None: no
    bound."""
    checkpointing: bool = False
    """Keep of each block only its inputs, and compute it again in the backward pass (exact)."""
    autocast: str | None = None
    """dtype of the forward pass by autocast (`bfloat16`), or None."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0: none."""
    share_prefix: bool = True
    """Compute the beginning that all prompts of a batch share only once, where that saves time (exact; off under
    dropout)."""
    skip_padding: bool = True
    """Leave padded tokens out of the frozen products where there are many (exact: nothing reads them)."""
    compile: str = "auto"
    """How steps run: auto | eager | graph | inductor; see `lorax.training.compiling`."""
    progress: bool | None = None
    """Show a progress bar; None: if standard error is a terminal."""


@dataclass(kw_only=True)
class Run:
    """One run: adapters, data and optimisation."""

    adapters: Trainable
    data: Sequence[Row]
    lr: float
    seed: int = 0
    """Decides the data order and the dropout masks, in the same way for all methods."""
    weight_decay: float = 0.0
    rates: Mapping[str, float] = field(default_factory=dict)
    """{tensor's letter (B, M, A): its learning rate divided by `lr`}; 1 where a letter is not named."""
    rule: TrainingRule | None = None
    """What the method does around each step."""
    objective: Rewarded | None = None
    """What is trained for in place of the likelihood of reference answers. Runs of a pack agree in its settings."""
    task_group: str | None = None
    """The run's task group: runs that name the same one are trained as one. The weighted mean of their losses, one
    optimiser over all their parameters (tied ones once), one gradient norm, one end."""
    weight: float | None = None
    """Of the run's loss in that of its task group; None: the mean of all, 1 / T."""
    head: Head | None = None
    """The run's fresh classification head, if the model has one."""
    head_lr: float | None = None
    """Learning rate of the head; None: `lr`."""
    plan: TrainPlan | None = None
    """The run's plan; None: the one given to `train`. Runs of a pack share batch shape and autocast."""
    on_step: Callable[[dict[str, float]], None] | None = None
    """Called with step, loss, lr and grad_norm after each step; a resumed run repeats its earlier rows."""
    checkpoint: Path | None = None
    """The run's checkpoint file."""
    name: str = ""
    """What the checkpoint belongs to (a run id)."""


@dataclass
class Outcome:
    """How a run ended."""

    status: str
    """finished | diverged."""
    error: str | None = None
    curve: list[dict[str, float]] = field(default_factory=list)
    """step, loss, lr and grad_norm of each step; penalty too where the training rule has one; under rewards, score
    (the mean of the completions that were drawn) and tokens (in them)."""
    seconds: float = 0.0
    """Time in steps while the run was going, earlier attempts included."""
    step_ms: float | None = None
    """Median time of a step of the whole pack; the first is left out (allocations, caches)."""
    resumed: int = 0
    """The step that this attempt went on from."""
    compiled: str = "eager"
    """How steps ran: eager | graph."""
    rule_report: dict[str, Any] = field(default_factory=dict)
    """What the training rule reported at the end."""
