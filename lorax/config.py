"""The typed configuration of one run: schema, resolution, static validation. Torch-free.

`RunConfig` holds every key with its type and default, and is what a run gets. `Schema` is the same list as Hydra
takes it. `resolve` turns what Hydra composed into a `RunConfig` and refuses what cannot run, in one line, before
anything is loaded.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_type_hints

from lorax.adapters.selection.rules import Rules
from lorax.errors import UserError, near
from lorax.records import check_name, knobs
from lorax.training.objective import OBJECTIVES, Reinforce, reinforce_of

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from lorax.initializers.base import Initializer

# Bounds of values, by key; those of a method's own fields are in its dataclass.
AT_LEAST = {
    "rank": 1, "steps": 1, "batch_size": 1, "seed": 0, "data_seed": 0, "weight_decay": 0, "dropout": 0,
    "diagnostics_every": 1, "forgetting_tokens": 1, "train.accumulation": 1, "train.warmup": 0,
    "train.checkpoint_every": 0, "train.eval_batch_size": 1, "train.calibration_batches": 1, "train.max_tokens": 1,
}  # fmt: skip
ABOVE = {"alpha": 0, "zeta": 0, "gamma": 0, "lr": 0, "train.clip": 0, "train.head_lr": 0}
AT_MOST = {
    "steps": 10**6, "batch_size": 10**5, "rank": 10**6, "train.accumulation": 10**5, "train.eval_batch_size": 10**5,
    "train.calibration_batches": 1000, "forgetting_tokens": 10**9,
}  # fmt: skip
"""What is kept in memory for each step, batch or token would fill it before anything is trained."""
BELOW = {"dropout": 1, "train.warmup": 1, "seed": 2**63, "data_seed": 2**63}
CHOICES = {
    "scaling": ("standard", "rslora"),
    "zeta_rule": ("forward", "backward", "absolute", "weight_svd"),
    "recenter": ("carry", "fold"),
    "objective": OBJECTIVES,
    "share": ("none", "A", "common"),
    "dtype": ("auto", "float32", "bf16-autocast", "bfloat16", "float16", "float64"),
    "track": ("offline", "online", "none"),
    "evaluate": ("test", "validation", "both"),
    "calibration": ("train", "heldout"),
    "cache": ("on", "off"),
    "train.schedule": ("cosine", "linear", "constant"),
    "train.compile": ("auto", "eager", "graph", "inductor"),
    "train.shard": ("none", "fsdp"),
}


def conf_dir() -> Path:
    """Return the folder of YAML files: beside the package in a wheel, above it in a checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if (inside / "config.yaml").is_file() else Path(__file__).parents[1] / "conf"


@dataclass
class Train:
    """How every arm is trained, alike for all methods."""

    schedule: str = "cosine"
    """cosine | linear | constant, after the warm-up."""
    warmup: float = 0.1
    """Share of the steps over which the learning rate rises from 0."""
    clip: float | None = 1.0
    """Bound on the gradient norm of one run's trained parameters; null: none."""
    accumulation: int = 1
    """Micro-batches per step; the batch is split, not enlarged."""
    max_tokens: int | None = None
    """Most tokens of a micro-batch, padding and all runs of a pack counted. A batch that has more is split further,
    into parts of equally many rows, with the same result up to rounding; null: no bound."""
    checkpointing: bool = False
    """Keep of each transformer block only what goes in, and compute the rest again in the backward pass: a third more
    time, a fraction of the memory, the same result."""
    head_lr: float | None = None
    """Learning rate of a fresh classification head, the same for every method; null: the task's."""
    compile: str = "auto"
    """How steps run, with the same result up to rounding: eager | graph (CUDA graphs: one of forward and backward
    pass for each shape of batch, one of clipping and update for all; heads, and methods that are computed in plain
    operations, are updated after the replay) | inductor (torch.compile of what lies between adapted layers, which takes
    minutes, then as graph; on a CPU nothing is recorded); auto: graph on a GPU if the run is long, else eager."""
    shard: str = "none"
    """none | fsdp: spread the frozen base over the processes of torchrun, each of which trains its part of a pack, for
    a base that is larger than a card. Tested on two CPU processes, not run on GPUs."""
    checkpoint_every: int = 0
    """Steps between checkpoints that a killed run resumes from; 0: none."""
    eval_batch_size: int = 32
    """Items evaluated at once."""
    calibration_batches: int = 8
    """Batches on which a method looks at gradients or activations before it starts."""


@dataclass(frozen=True)
class RunConfig:
    """One run, resolved and checked: every key of the command line, with its type and default.

    `lorax.records.knobs` says who reads which key, and hence what enters the run's id.
    """

    init: dict[str, Any] = field(default_factory=dict)
    """The method's name and own fields, as conf/init has them."""
    task: dict[str, Any] = field(default_factory=dict)
    """As conf/task has it."""
    model: dict[str, Any] = field(default_factory=dict)
    """As conf/model has it."""
    train: dict[str, Any] = field(default_factory=lambda: asdict(Train()))
    """The fields of `Train`."""
    objective: str = "likelihood"
    """likelihood (of the reference answers) | reinforce (rewards from the task's scorer)."""
    reinforce: dict[str, Any] = field(default_factory=lambda: asdict(Reinforce()))
    """The fields of `lorax.training.objective.Reinforce`."""
    rank: int = 8
    alpha: float | None = None
    scaling: str | None = None
    zeta: float | None = None
    zeta_rule: str | None = None
    gamma: float | None = None
    lr: float | None = None
    steps: int | None = None
    batch_size: int | None = None
    weight_decay: float = 0.0
    dropout: float = 0.0
    seed: int = 0
    data_seed: int = 0
    targets: str | list[str] = "all-linear"
    exclude_modules: str | list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    modules_to_save: list[str] | None = None
    recenter: str = "carry"
    share: str = "none"
    """What the tasks of a group train as one: none | A | common (a term B A of its own, beside each task's)."""
    calibration: str = "train"
    dtype: str = "auto"
    device: str = "auto"
    evaluate: str = "test"
    base: bool = True
    """Score the frozen base too, once for each task, model and name."""
    diagnostics: bool = False
    """Measure alignment, spectra and forgetting of the trained adapter (minutes on a CPU)."""
    diagnostics_every: int = 1
    """Of each kind of layer, measure one in this many."""
    forgetting_tokens: int = 50_000
    """Tokens of natural text on which forgetting is measured."""
    cache: str = "on"
    track: str = "offline"
    name: str = "adhoc"
    results_dir: str = "results"
    label: str | None = None
    """How tables call this run's row; null: the method and what sets it apart."""
    tag: str | None = None
    """What the run is for (a study's round); goes into the record, not into the run's id."""
    plan: bool = False
    """Print what the run would take in memory, from the configuration alone, and do not run it."""
    save: str | None = None
    """Folder under which the trained adapter is saved, `<save>/<run_id>`; null: not saved."""
    save_rank: int | None = None
    """Save the first components alone, as an adapter of this rank: of methods that train several; null: all."""

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain nested mappings."""
        return asdict(self)

    def initializer(self) -> Initializer:
        """Build the run's initialiser from the keys that all methods share and from the method's own fields."""
        from lorax.initializers.registry import build

        return build(self.init["name"], shared={key: getattr(self, key) for key in knobs.METHOD}, own=self.init)

    def parts(self) -> dict[str, RunConfig]:
        """Return, by name, each task of a group as a run on that task alone; nothing for a run on a single task."""
        from lorax.tasks.group import parts_of

        return {name: replace(self, task=spec, share="none") for name, spec in parts_of(self.task).items()}

    def rules(self) -> Rules:
        """Return what is set beside the targets: layers left out, ranks and alphas by layer, modules trained whole."""
        return Rules(**{key: getattr(self, key) for key in knobs.RULES})


NESTED = {"train": Train, "reinforce": Reinforce}
"""Keys whose value is the fields of a class."""


def _schema() -> type:
    """Return what Hydra checks types against: the fields of `RunConfig`, nested ones as classes, and `study`."""
    types = get_type_hints(RunConfig)  # OmegaConf knows no `str | list[str]`
    types |= dict.fromkeys(("targets", *knobs.RULES), Any)
    keys: dict[str, tuple[Any, Any]] = {
        item.name: (types[item.name], field(default=item.default, default_factory=item.default_factory))
        for item in fields(RunConfig)
    }  # fmt: skip
    keys |= {key: (nested, field(default_factory=nested)) for key, nested in NESTED.items()}
    keys["study"] = (dict[str, Any] | None, field(default=None))
    made = make_dataclass("Schema", [(name, *typed) for name, typed in keys.items()])
    made.__module__ = __name__  # composed configurations can then be pickled
    return made


Schema = _schema()
"""Types of everything that can be set from the command line."""


def register_schema() -> None:
    """Make the schema known to Hydra under the name that config.yaml lists first, and the methods without a YAML.

    Another package's initialiser needs no file in conf/init: `init=<its name>` takes its fields' defaults.
    """
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name="run_schema", node=Schema)
    for name in methods_without_yaml():
        store.store(group="init", name=name, node={"name": name, **_own_defaults(name)})


def methods_without_yaml() -> list[str]:
    """Return the registered initialisers that have no file in conf/init, sorted."""
    from lorax.initializers.registry import names

    return [name for name in names() if not (conf_dir() / "init" / f"{name}.yaml").is_file()]


def _own_defaults(method: str) -> dict[str, Any]:
    """Return what a method's YAML would hold: its fields' defaults, but for those that all methods share."""
    from lorax.initializers.registry import get

    own = [item for item in fields(get(method)) if item.name not in knobs.METHOD and item.default is not MISSING]
    return {item.name: item.default for item in own}


def resolve(cfg: DictConfig | Mapping[str, Any]) -> RunConfig:
    """Turn a composed configuration into a checked `RunConfig`.

    Args:
        cfg: what Hydra composed (a DictConfig) or a plain mapping.

    Raises:
        UserError: the first value out of bounds, with the bound or the near misses.
    """
    from omegaconf import DictConfig, OmegaConf

    data: Any = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else dict(cfg)
    known = {item.name for item in fields(RunConfig)}
    _refuse_unknown(data)
    try:
        config = RunConfig(**{key: data[key] for key in known})
        check(config)
        config = replace(config, results_dir=_expanded(config.results_dir), save=config.save and _expanded(config.save))
    except KeyError as error:
        raise UserError(f"{error.args[0]}: every run needs it; it cannot be taken out with ~") from None
    return config


def _expanded(path: str) -> str:
    """Return a path with `~` as the home folder; shells leave it as it is after a `=`."""
    return str(Path(path).expanduser()) if path.startswith("~") else path


def _refuse_unknown(data: Mapping[str, Any]) -> None:
    """Refuse keys that nothing reads: Hydra adds any key that is written with a +."""
    known = [item.name for item in fields(Schema)]
    nested = {outer: [f"{outer}.{item.name}" for item in fields(cls)] for outer, cls in NESTED.items()}
    every = [*known, *(key for keys in nested.values() for key in keys)]
    given = {outer: data.get(outer) for outer in nested}
    keys = [str(key) for key in data if key != "hydra"]
    keys += [f"{outer}.{key}" for outer, value in given.items() if isinstance(value, Mapping) for key in value]
    for key in keys:
        if key not in every:
            raise UserError(f"{key}: no such key; {near(key, nested.get(key.partition('.')[0], every))}")


def check(config: RunConfig) -> None:
    """Refuse what no run can use; names, types and ranges only, no file is read."""
    _check_values(config)
    _check_targets(config.targets)
    if not re.fullmatch(r"(auto|cpu|mps|cuda(:\d+)?)", config.device):
        raise UserError(f"device={config.device}: choose from auto, cpu, cuda, mps (cuda:1 for the second GPU)")
    if config.zeta is not None and config.gamma is not None:
        raise UserError(f"zeta={config.zeta:g} and gamma={config.gamma:g}: give one, not both (zeta = eta^2 r / gamma)")
    check_name(config.name)
    accumulation, batch = config.train["accumulation"], config.batch_size
    if batch is not None and batch % accumulation:
        raise UserError(f"batch_size={batch}: not a multiple of train.accumulation={accumulation}")
    for group in ("init", "task", "model"):
        given = getattr(config, group)
        if not isinstance(given, Mapping) or "name" not in given:
            raise UserError(f"{group}: the configuration names none; set {group}=<name>")
        if not isinstance(given["name"], str) or not given["name"]:
            raise UserError(f"{group}.name={given['name']}: must be a text; set {group}=<name>")
    prior = config.init.get("lr_prior")
    if prior is not None and (isinstance(prior, bool) or not isinstance(prior, int | float) or not 0 < prior < 1e9):
        raise UserError(f"init.lr_prior={prior}: must be a number above 0")
    config.rules().check_method(config.initializer())
    _check_objective(config)
    _check_save_rank(config)
    _check_tasks(config)
    _check_sources(config)


def _check_objective(config: RunConfig) -> None:
    """Refuse settings of rewards that cannot be, and what else is set and would mean another thing under rewards."""
    reinforce_of(config.reinforce)
    method = config.initializer()
    if config.objective == knobs.LIKELIHOOD or not method.trains:
        return
    said = f"objective={config.objective}"
    if config.dropout:
        raise UserError(f"dropout={config.dropout:g}: {said} draws completions without it; set dropout=0")
    if config.train["compile"] in ("graph", "inductor"):
        raise UserError(
            f"train.compile={config.train['compile']}: {said} has other shapes in every step; it runs eager"
        )
    if config.diagnostics:
        raise UserError(f"diagnostics=true: measures against the gradient of the likelihood, which {said} leaves")
    if "gradient" in method.needs:
        raise UserError(f"init={config.init['name']}: starts from the gradient of the likelihood, which {said} leaves")


def _check_save_rank(config: RunConfig) -> None:
    """Refuse to save a rank that the method does not train."""
    rank = config.save_rank
    if rank is None:
        return
    if config.save is None:
        raise UserError(f"save_rank={rank}: nothing is saved; set save=<folder>")
    rule = config.initializer().rule()
    ranks = rule.truncations() if rule is not None else ()
    if not ranks:
        raise UserError(f"save_rank={rank}: init={config.init['name']} trains one rank, its own")
    if rank not in ranks and rank != config.rank:
        raise UserError(f"save_rank={rank}: init={config.init['name']} at rank={config.rank} has 1 to {config.rank}")


def _check_sources(config: RunConfig) -> None:
    """Refuse fields that the chosen model or task does not have; nothing is loaded."""
    from lorax.models import registry as models
    from lorax.tasks import registry as tasks

    models.build(config.model)
    tasks.build(config.task)


def _check_tasks(config: RunConfig) -> None:
    """Refuse what a run over several tasks cannot do, and `share` where there is one task."""
    from lorax.tasks import registry as tasks
    from lorax.tasks.group import EXAMPLE, is_group

    method, share = config.initializer(), config.share
    if not is_group(config.task):
        family = tasks.get(config.task.get("family") or config.task["name"])
        if "parts" in config.task and not any(item.name == "parts" for item in fields(cast(Any, family))):
            raise UserError(f"task.parts: task={config.task['name']} is one task; several are {EXAMPLE}")
        if share != "none":
            raise UserError(f"share={share}: one task shares nothing; several are {EXAMPLE}")
        return
    ways = {
        f"init={method.name}": method.trains and not method.has_factors,
        "recenter=fold": config.recenter == "fold",
        f"modules_to_save={config.modules_to_save}": bool(config.modules_to_save),
    }
    for what in (way for way, writes in ways.items() if writes):
        raise UserError(f"{what} writes to the base, which the tasks of a group share")
    if config.diagnostics:
        raise UserError("diagnostics=true looks at one task's adapter; the run is over a group of tasks")
    if config.objective != knobs.LIKELIHOOD:
        raise UserError(f"objective={config.objective} draws completions of one task; the run is over a group of tasks")
    if share != "none" and not method.shared_by_tasks and method.rule() is not None:
        raise UserError(f"share={share}: init={method.name} acts on each task's tensors while it trains; share=none")


def _check_values(config: RunConfig) -> None:
    """Refuse a value outside `AT_LEAST`, `ABOVE`, `BELOW` or `CHOICES`; null has no value to check."""
    values = asdict(config) | {f"train.{key}": value for key, value in config.train.items()}
    values = {key: value for key, value in values.items() if value is not None}
    for key in (*AT_LEAST, *ABOVE):
        value = values.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{key}={value}: must be a finite number")
    for word, bounds, within in (
        ("at least", AT_LEAST, operator.ge), ("above", ABOVE, operator.gt), ("below", BELOW, operator.lt),
        ("at most", AT_MOST, operator.le),
    ):  # fmt: skip
        for key, bound in bounds.items():
            if key in values and not within(values[key], bound):
                raise UserError(f"{key}={values[key]}: must be {word} {bound:,}")
    for key, options in CHOICES.items():
        if key in values and values[key] not in options:
            raise UserError(f"{key}={values[key]}: {near(values[key], options)}")


def _check_targets(targets: Any) -> None:
    if isinstance(targets, list) and targets and all(isinstance(item, str) and item for item in targets):
        return
    if not isinstance(targets, str) or not targets:
        raise UserError(f"targets={targets!r}: 'all-linear', a list of name suffixes, or a regular expression")
    if targets != "all-linear":
        try:
            re.compile(targets)
        except re.error as error:
            raise UserError(f"targets={targets!r}: not a regular expression ({error})") from None
