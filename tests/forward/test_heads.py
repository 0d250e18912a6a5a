"""Fresh heads: one replica for each run of a pack, drawn from its seed."""

import torch

from lorax.api import attach
from lorax.forward.heads import heads_active, install_heads, remove_heads


def test_a_run_s_head_depends_on_its_seed_alone(toy):
    three = install_heads(toy(labels=["a", "b", "c"]), [5, 6, 7])
    [alone] = install_heads(toy(labels=["a", "b", "c"]), [6])
    assert torch.equal(three[1].state_dict()["score.weight"], alone.state_dict()["score.weight"])
    assert not torch.equal(three[0].state_dict()["score.weight"], alone.state_dict()["score.weight"])
    assert alone.count_trainable() == 3 * 32


def test_each_block_of_rows_gets_its_own_head(toy):
    loaded = toy(labels=["a", "b"])
    heads = install_heads(loaded, [1, 2, 3])
    hidden = torch.randn(6, 4, 32)
    with heads_active([heads[2], heads[0]]):
        out = loaded.model.score(hidden)
    expected = [hidden[:3] @ heads[2].parameters()[0].T, hidden[3:] @ heads[0].parameters()[0].T]
    assert torch.allclose(out, torch.cat(expected))


def test_heads_are_wide_on_a_narrow_base_and_go_back_in_its_place(toy):
    loaded = toy(labels=["a", "b"], dtype="bfloat16")
    original = loaded.model.score
    [head] = install_heads(loaded, [1])
    assert head.parameters()[0].dtype == torch.float32
    assert loaded.model(torch.tensor([[3, 4]])).logits.isfinite().all()
    remove_heads(loaded)
    assert loaded.model.score is original


def test_states_come_back_bit_for_bit(toy):
    [head] = install_heads(toy(labels=["a", "b"]), [1])
    state = head.state_dict()
    with torch.no_grad():
        head.parameters()[0].add_(1)
    head.load_state_dict(state)
    assert torch.equal(head.parameters()[0], state["score.weight"])


def test_a_head_beside_adapters_trains(toy):
    loaded = toy(labels=["a", "b"])
    [head] = install_heads(loaded, [1])
    adapters = attach(loaded.model, "lora", rank=2)
    assert not any(name.startswith("score") for name in adapters.names())
    assert len(head.parameters()) == 1
