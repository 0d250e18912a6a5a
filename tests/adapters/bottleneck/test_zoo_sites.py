"""Many architectures: a bottleneck method finds its sites and starts at the base, or says in one line why not."""

import warnings

import pytest
import torch
from zoo import ZOO

import lorax
from lorax.errors import UserError

NO_BLOCK = {"mamba", "mamba2", "xlnet_cls"}
EXPERTS = {"mixtral", "qwen3moe", "qwen2moe", "gptoss", "llama4", "phimoe",
           "jetmoe", "granitemoehybrid", "lfm2moe", "mixtral_cls", "qwen3next", "jamba"}  # fmt: skip
PARTLY = {"deepseekv3", "glm4moe", "deepseekv2"}
"""The first block is dense, the other has experts."""
APART = {"bloom", "bart", "mbart", "opt", "albert_cls", "bert_cls", "bert_mlm", "bert_tokens", "roberta_cls",
         "debertav3_cls", "deberta_cls", "whisper", "whisper_cls", "electra"}  # fmt: skip
"""Their feed-forward part is no module with one tensor in."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_every_architecture(name):
    model, batch = ZOO[name]()
    model.eval()
    with torch.no_grad():
        base = model(**batch)
    for method in ("houlsby", "pfeiffer", "parallel_adapter"):
        lacking = NO_BLOCK | EXPERTS | (APART if method == "parallel_adapter" else set())
        if name in lacking:
            with pytest.raises(UserError, match=f"init={method}: .* that is known; name submodules in targets"):
                lorax.attach(model, init=method, rank=3)
            continue
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            adapters = lorax.attach(model, init=method, rank=3, train_head=False)
        assert any("1 of 2 blocks have no" in str(each.message) for each in said) == (name in PARTLY)
        with torch.no_grad():
            start = model(**batch)
        assert all(torch.equal(a, b) for a, b in zip(tensors(base), tensors(start), strict=True))
        loss = start_loss(model(**batch))
        loss.backward()
        assert all(p.grad is not None for p in adapters.parameters())
        assert any(bool(p.grad.abs().sum()) for p in adapters.parameters())
        adapters.detach()


def tensors(output):
    return [value for value in output.values() if isinstance(value, torch.Tensor)]


def start_loss(output):
    """The loss where the model gives one, else a number that depends on what it gives."""
    made = [tensor for tensor in tensors(output) if tensor.requires_grad]
    return output.loss if "loss" in output else sum(tensor.float().square().sum() for tensor in made)
