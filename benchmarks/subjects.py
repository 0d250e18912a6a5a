"""What is measured: models, batches, and the arms on the same weights: lorax, PEFT and the lower bound."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.harness import Stopwatch, Trial, interleave, say
from lorax.adapters.install import find_targets, install
from lorax.api import make_factors
from lorax.forward.batch import Encoded
from lorax.forward.heads import install_heads
from lorax.forward.modality import modality_of
from lorax.forward.readout import autocast, device_of
from lorax.forward.recorders import Recorder
from lorax.initializers.registry import build
from lorax.models import registry
from lorax.models.attention import choose, register
from lorax.models.registry import Loaded
from lorax.models.toy import tokenizer
from lorax.probing.cache import Cache
from lorax.tasks.base import Example
from lorax.training.loop import Run, TrainPlan, train

CLASSES = 77
SPECS = {
    "tiny": {"name": "toy"},
    "toy": {"name": "toy", "hidden": 128, "layers": 4},
    "minilm": {"name": "minilm"},
    "smollm2": {"name": "smollm2"},
}
Arm = Callable[[], Trial]


@dataclass(frozen=True)
class Shape:
    """A model and the batch it is given."""

    model: str
    rows: int
    tokens: int
    dtype: str = "fp32"
    """fp32, or bf16 for autocast."""
    labelled: float = 1.0
    """Share of the tokens that belong to the answer (generation)."""

    def __str__(self) -> str:
        part = "" if self.labelled == 1 else f", {self.labelled:.0%} labelled"
        return f"{self.model} {self.rows}x{self.tokens} {self.dtype}{part}"

    @property
    def autocast(self) -> str | None:
        """The autocast dtype by name."""
        return "bfloat16" if self.dtype == "bf16" else None


def load(name: str, attention: str | None = None) -> Loaded:
    """Load a model; an encoder gets a head of 77 classes."""
    spec = SPECS[name] | ({} if attention is None else {"attention": attention})
    return registry.load(spec, labels=[str(k) for k in range(CLASSES)] if name == "minilm" else None)


def random_model(quick: bool, device: str) -> Loaded:
    """Return a model of SmolLM2-135M's shape, or a tiny one: random fp32 weights, made from a configuration."""
    from transformers import LlamaConfig, LlamaForCausalLM

    size = (64, 128, 2, 4, 2, 300) if quick else (576, 1536, 30, 9, 3, 49152)
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
             "vocab_size")  # fmt: skip
    attention = choose(None, device)
    torch.manual_seed(0)
    with torch.device(device):
        config = LlamaConfig(**dict(zip(names, size, strict=True)), tie_word_embeddings=True, pad_token_id=0,
                             attn_implementation=attention)  # fmt: skip
        model = LlamaForCausalLM(config).eval().requires_grad_(False)
    return Loaded(model, tokenizer(), "causal", "random", "random", [], attention)


def sharing_copy(loaded: Loaded, attention: str | None = None) -> Loaded:
    """Return a copy of a model that shares its weights, so that all arms compute with the same ones.

    Args:
        loaded: a model that nothing is attached to.
        attention: another attention kernel.
    """
    tensors = [*loaded.model.parameters(), *loaded.model.buffers()]
    model = copy.deepcopy(loaded.model, {id(tensor): tensor for tensor in tensors})
    if attention is not None:
        register()
        model.set_attn_implementation(attention)
    named = attention or loaded.attention
    return Loaded(model, loaded.tokenizer, loaded.kind, loaded.name, loaded.digest, loaded.head, named)


def rows_of(loaded: Loaded, shape: Shape, count: int, seed: int = 0) -> list[Encoded]:
    """Return examples of random tokens, all of one length."""
    draw = random.Random(f"benchmark {seed}")
    top = min(loaded.model.get_input_embeddings().num_embeddings, 20000)
    example = Example("0", "", "")
    rows = []
    for _ in range(count):
        tokens = [draw.randrange(10, top) for _ in range(shape.tokens + 1)]
        if loaded.kind == "classification":
            rows.append(Encoded(tokens[:-1], [draw.randrange(CLASSES)], example))
        else:
            prompt = shape.tokens + 1 - max(1, round(shape.labelled * shape.tokens))
            rows.append(Encoded(tokens[:prompt], tokens[prompt:], example))
    return rows


def batches_of(loaded: Loaded, shape: Shape, count: int) -> list[dict[str, torch.Tensor]]:
    """Return such examples as keywords of the model's own forward, with labels."""
    rows, device = rows_of(loaded, shape, count * shape.rows), device_of(loaded.model)
    batches = []
    for start in range(0, len(rows), shape.rows):
        part = rows[start : start + shape.rows]
        batch = dict(modality_of(loaded).collate(part, share=False).inputs)
        if loaded.kind == "classification":
            batch["labels"] = torch.tensor([row.labels[0] for row in part], device=device)
        else:
            labels = [[-100] * len(row.ids) + row.labels[:-1] for row in part]
            batch |= {"labels": torch.tensor(labels, device=device), "use_cache": False}
        batches.append(batch)
    return batches


def lorax_arm(
    loaded: Loaded,
    shape: Shape,
    inits: Sequence[dict[str, Any]] = ({"name": "lora"},),
    steps: int = 4,
    dropout: float = 0.0,
    recorder: Callable[[], Recorder] | None = None,
    cache: Cache | None = None,
    compile: str = "eager",
    **more: Any,
) -> Arm:
    """Return a call that trains K runs in one pack by lorax's loop, and times a step of one; the first does not count.

    Args:
        loaded: a model that no other arm uses (`sharing_copy`).
        shape: batch of one run.
        inits: name and fields of each run's initialiser.
        steps: timed steps of one call.
        dropout: of every run.
        recorder: makes what records steps; None: they run as `compile` says.
        cache: of decompositions; None: the user's own for a model of some size.
        compile: eager | graph | inductor.
        more: further fields of the `TrainPlan`.
    """
    runs = lorax_runs(loaded, shape, inits, dropout, cache)
    skip = 1 if recorder is None and compile == "eager" else 3  # a step as it comes, one that is recorded, and one more
    plan = TrainPlan(
        steps=steps + skip, batch_size=shape.rows, schedule="constant", warmup=0.0, autocast=shape.autocast,
        progress=False, compile=compile, **more,
    )  # fmt: skip

    def call() -> Trial:
        watch = Stopwatch()
        runs[-1].on_step = watch.mark
        outcomes = train(loaded, runs, plan, None if recorder is None else recorder())
        assert all(outcome.status == "finished" for outcome in outcomes)
        return watch.trial(len(runs), skip)

    return call


def lorax_runs(
    loaded: Loaded,
    shape: Shape,
    inits: Sequence[dict[str, Any]],
    dropout: float = 0.0,
    cache: Cache | None = None,
) -> list[Run]:
    """Attach K initialisers and return their runs, each with data of its own; see `lorax_arm`."""
    targets = find_targets(loaded.model, head=loaded.head)
    batches = batches_of(loaded, shape, 1)
    if cache is None and shape.model not in ("tiny", "toy"):
        cache = Cache.default()
    factors = [
        make_factors(loaded.model, initializer(init), targets, batches=batches, seed=k, cache=cache)
        for k, init in enumerate(inits)
    ]
    adapters = install(loaded.model, factors, dropout=[dropout] * len(inits))
    heads = install_heads(loaded, range(len(inits)))
    return [
        Run(adapters=adapters[k], data=rows_of(loaded, shape, 4 * shape.rows, k), lr=1e-4, seed=k,
             head=heads[k] if heads else None)
        for k in range(len(inits))
    ]  # fmt: skip


def initializer(init: dict[str, Any]) -> Any:
    """Build an initialiser from a mapping with its name."""
    fields = {key: value for key, value in init.items() if key != "name"}
    rank = fields.pop("rank", 8)
    return build(init["name"], shared={"rank": rank}, own=fields)


def peft_model(loaded: Loaded, **config: Any) -> nn.Module:
    """Put PEFT's LoRA on the layers that lorax adapts; a head is trained too."""
    import peft

    settings = {"r": 8, "lora_alpha": 16} | config
    names = list(find_targets(loaded.model, head=loaded.head))
    saved = {"modules_to_save": list(loaded.head)} if loaded.head else {}
    return peft.get_peft_model(loaded.model, peft.LoraConfig(target_modules=names, **saved, **settings))


def peft_arm(loaded: Loaded, shape: Shape, steps: int = 4, compiled: bool = False, **config: Any) -> Arm:
    """Return a call that trains PEFT's LoRA and times a step: forward, loss, backward, clipping, AdamW.

    The base is in eval mode, as in lorax's loop; only the adapters' dropout is on.
    """
    model, device = peft_model(loaded, **config).eval(), device_of(loaded.model)
    for name, module in model.named_modules():
        module.training = module.training or "lora_dropout" in name
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    batches = batches_of(loaded, shape, 4)
    called = torch.compile(model) if compiled else model

    def call() -> Trial:
        watch = Stopwatch()
        optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
        for step in range(steps + 1):
            with autocast(device, shape.autocast):
                loss = called(**batches[step % len(batches)]).loss
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
            watch.mark()
        return watch.trial()

    return call


def lower_bound(loaded: Loaded, shape: Shape, steps: int = 4) -> Arm:
    """Return forward and backward to the inputs with everything frozen: no adapter, no optimiser.

    Args:
        loaded: a model that no other arm uses.
        shape: the batch.
        steps: passes of one call.
    """
    loaded.model.get_input_embeddings().register_forward_hook(lambda module, args, out: out.requires_grad_())
    batches = batches_of(loaded, shape, 4)

    def call() -> Trial:
        loaded.model.requires_grad_(False)  # copies share weights, and another arm may have set the flag
        watch = Stopwatch()
        for step in range(steps + 1):
            with autocast(device_of(loaded.model), shape.autocast):
                loss = loaded.model(**batches[step % len(batches)]).loss
            loss.backward()
            watch.mark()
        return watch.trial()

    return call


def tuned_attention(loaded: Loaded, shape: Shape, quick: bool = False) -> str:
    """Return PEFT's fastest attention kernel on this machine; the default, sdpa, unless another gains over 5 %.

    Args:
        loaded: a model that nothing is attached to.
        shape: the batch.
        quick: do not measure.
    """
    if quick:
        return "sdpa"
    kernels = ("sdpa", "eager") if shape.dtype == "fp32" else ("sdpa", "eager", "sdpa_fp32")
    say(f"{shape}: PEFT's attention ", end="")
    timings = interleave({name: peft_arm(sharing_copy(loaded, name), shape, steps=2) for name in kernels}, rounds=3)
    best = min(kernels, key=lambda name: timings.seconds(name).median)
    return best if timings.ratio("sdpa", best).median > 1.05 else "sdpa"


def fresh_lorax(shape: Shape, inits: Sequence[dict[str, Any]], steps: int = 2) -> Arm:
    """Load a model and build `lorax_arm`, in a separate process."""
    return lorax_arm(load(shape.model), shape, inits, steps)


def fresh_peft(shape: Shape, attention: str = "sdpa", steps: int = 2) -> Arm:
    """Load a model and build `peft_arm`, in a separate process."""
    return peft_arm(load(shape.model, attention), shape, steps)
