"""Batches for gradients at initialisation: joined and shared beginnings change no gradient."""

from dataclasses import replace
from types import SimpleNamespace

import torch
from torch import nn

from lorax.forward.batch import Encoded
from lorax.forward.blocks.checkpointing import checkpointed
from lorax.forward.modality import modality_of
from lorax.models.registry import load
from lorax.probing.gradient import layer_gradients
from lorax.running.gradient_batches import gradient_batches
from lorax.tasks.base import Example


def test_a_shared_beginning_and_joined_batches_leave_the_gradients_as_they_are():
    texts = [f"{a}+{b}=" for a in range(3) for b in range(8)]
    examples = [Example(text, text, text[0]) for text in texts]
    task = SimpleNamespace(
        name="sums", system="All of these begin alike.", shots=(), train=examples, max_length=None, scoring="generate"
    )
    config = SimpleNamespace(calibration="train", seed=0, batch_size=8, train={"calibration_batches": 3})
    loaded = load({"name": "toy", "hidden": 32}, dtype="float64")
    targets = {name: part for name, part in loaded.model.named_modules() if isinstance(part, nn.Linear)}
    targets = {name: part for name, part in targets.items() if "layers" in name}
    gradients, tokens, counts = [], [], []
    for share in (True, False):
        loss, batches = gradient_batches(task, loaded, config, share)
        counts.append(len(batches))
        tokens.append(sum(batch["inputs"]["input_ids"].numel() for batch in batches))
        gradients.append(layer_gradients(loaded.model, targets, loss, batches))
    assert tokens[0] < 0.5 * tokens[1] and counts[0] < counts[1] == 3
    config.train["max_tokens"] = 200
    loss, batches = gradient_batches(task, loaded, config, False)
    with checkpointed(loaded.model):
        pieces = layer_gradients(loaded.model, targets, loss, batches)
    assert len(batches) > 3
    assert all(torch.linalg.norm(pieces[name] - whole) < 1e-6 * whole.norm() for name, whole in gradients[1].items())
    for name, shared in gradients[0].items():
        whole = gradients[1][name]  # norms and positions are in fp32 whatever the model is in
        assert torch.linalg.norm(shared - whole) < 1e-6 * torch.linalg.norm(whole)


def test_batches_are_joined_only_where_that_takes_no_more_tokens():
    loaded = load({"name": "toy", "hidden": 32})
    causal = modality_of(loaded)
    long, short = Encoded([5] * 400, [1], None), Encoded([6] * 10, [1], None)
    different = [[Encoded([number] * 10, [1], None)] for number in range(8, 20)]
    apart = [[short], [long], [short]]
    assert causal.regroup(apart) == apart  # padding would outgrow the rest
    assert [len(part) for part in causal.regroup(different)] == [12]
    alike = [[Encoded([7] * 440 + [number], [1], None)] for number in range(8, 12)]
    assert causal.regroup(alike) == [sum(alike, [])] and causal.tokens(sum(alike, [])) == 444
    encoder = modality_of(replace(loaded, kind="classification"))  # it computes every row whole
    assert encoder.regroup(alike) == alike
