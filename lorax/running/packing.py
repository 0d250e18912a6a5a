"""Which jobs may share a frozen base, and how many at once. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from lorax.config import RunConfig
from lorax.records import canonical, knobs
from lorax.running.memory import MEASURED, Memory
from lorax.running.memory_plan import tokens_of

MOST_RUNS = 16
"""In a pack. More bring little more speed, since the products with the base's weights use all cores by then, and each
run keeps activations."""


def pack_key(config: RunConfig) -> str:
    """Return what jobs must agree on to run in one pack: jobs with equal keys may.

    Model, task, data, precision and batch shape decide what one forward pass computes. Method, rank,
    alpha, zeta, lr, seed, dropout and targets may differ; the objective may not. A run that changes the base's
    own weights (full fine-tuning, folded weights, modules trained whole) or adds nothing to them (the frozen base,
    the head alone) shares no base and gets a pack of its own; so does a run over several tasks, which has a lane
    for each. Diagnostics take one gradient of the untouched model for the whole pack, so its runs agree in what
    that gradient is taken from.
    """
    trains_base = config.recenter == "fold" or config.rules().modules_to_save
    shares_base = config.initializer().has_factors and not trains_base and not config.parts()
    gradient = [
        config.seed,
        config.targets,
        config.rules().given(),
        config.calibration,
        config.train["calibration_batches"],
    ]
    shared = [
        gradient if config.diagnostics else None,
        config.model, config.task, config.data_seed, config.dtype, config.device, config.steps,
        config.batch_size, config.evaluate, config.name, config.results_dir, config.base, config.diagnostics,
        {key: config.train[key] for key in ("accumulation", "eval_batch_size", "head_lr", "checkpoint_every")},
        [config.train.get(key) for key in ("compile", "shard", "checkpointing", "max_tokens")],
        *([config.objective, config.reinforce] if config.objective != knobs.LIKELIHOOD else []),
    ]  # fmt: skip
    return canonical([shared, None if shares_base else config.to_dict()])


def make_packs(
    configs: Sequence[RunConfig], lanes: int | None, free: int | None = None, cards: int = 1
) -> list[list[int]]:
    """Return packs as lists of positions in `configs`, in order of first appearance.

    Packs are filled one after another, and run in that order. So after a kill the unfinished packs are whole, the same
    command forms them again, and every run is packed with the same runs as without the kill.

    Args:
        configs: the jobs.
        lanes: most runs in a pack; None: `runs_that_fit` of each pack.
        free: bytes for a pack; None: what is free on the runs' device, as this process sees it.
        cards: that train side by side; where `lanes` is None, jobs are spread over all of them.
    """
    compatible: dict[str, list[int]] = {}
    for position, config in enumerate(configs):
        compatible.setdefault(pack_key(config), []).append(position)
    memory = MEASURED if free is None else Memory(lambda device: free, lambda config: None)
    packs = []
    for members in compatible.values():
        fit = lanes or (runs_that_fit(configs[members[0]], memory) if len(members) > 1 else 1)
        most = lanes or min(fit, -(-len(members) // cards))
        packs += [members[start : start + most] for start in range(0, len(members), most)]
    return packs


def runs_that_fit(config: RunConfig, memory: Memory = MEASURED) -> int:
    """Return how many runs fit into memory together.

    On a GPU one step of one run is measured; a pack holds the base once, and of the rest as much as that step for each
    run, in nine tenths of what is free. Elsewhere, of how many runs the activations fit into half of the free memory: a
    run keeps for its backward pass about `layers * (14 hidden + 6 intermediate)` numbers per token (inputs of the
    products, attention, norms and activation), plus four copies of its adapter; with checkpointing, `layers * hidden`
    and one layer's. The estimate is high on purpose: a pack that swaps is slower than two.

    Args:
        config: any job of the pack.
        memory: where figures come from.
    """
    from lorax.models.registry import skeleton
    from lorax.running.preflight import class_names, load_task

    free = memory.free(config.device)
    if (probe := memory.probe(config)) is not None:
        return _within(0.9 * free - probe.base, probe.step)
    task = load_task(config)
    size = skeleton(config.model, labels=class_names(task)).model.config
    hidden, layers = size.hidden_size, size.num_hidden_layers
    tokens = (config.batch_size or task.batch_size) / config.train["accumulation"] * tokens_of(task)
    layer = 14 * hidden + 6 * getattr(size, "intermediate_size", 4 * hidden)
    per_token = (layers * hidden + layer if config.train.get("checkpointing") else layers * layer) * 4
    adapter = 16 * 14 * config.rank * hidden * layers
    bound = config.train.get("max_tokens")
    if bound is not None and bound < MOST_RUNS * tokens:  # of all runs together, however many there are
        return max(_within(free / 2 - bound * per_token, adapter), _within(free / 2, tokens * per_token + adapter))
    return _within(free / 2, tokens * per_token + adapter)


def _within(room: float, each: float) -> int:
    """Return how many runs have room, at least one and at most `MOST_RUNS`."""
    return max(1, min(MOST_RUNS, int(room // max(1, each))))
