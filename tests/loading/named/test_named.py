"""Named adapters: switched without a weight written, mixed in one batch, added and taken off."""

import copy

import peft
import pytest
import torch
from zoo import ZOO

import lorax
from lorax.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")
METHODS = {
    "lora": {"rank": 2},
    "pissa": {"rank": 3, "targets": ["q_proj", "down_proj"]},
    "svft": {"targets": ["v_proj"]},
    "adalora": {"rank": 4},
}


def llama(dtype=torch.float64, architecture="qwen3"):
    torch.manual_seed(0)
    model, batch = ZOO[architecture]()
    return model.to(dtype).eval(), batch


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{name: a folder of a trained adapter}, one of them PEFT's, and {name: its logits alone}."""
    root, logits = tmp_path_factory.mktemp("named"), {}
    for seed, (name, fields) in enumerate(METHODS.items()):
        model, batch = llama()
        adapters = lorax.attach(model, name, seed=seed, **fields)
        shake(adapters.parameters(), seed)
        adapters.save(root / name, quiet=True)
        logits[name] = model(**batch).logits.detach()
    model, batch = llama()
    logits[None] = model(**batch).logits.detach()
    config = peft.LoraConfig(r=5, target_modules=["k_proj", "up_proj"], init_lora_weights=False)
    theirs = peft.get_peft_model(model.float(), config).eval()
    theirs.save_pretrained(root / "theirs")
    model, batch = llama()
    lorax.load(model, root / "theirs")
    logits["theirs"] = model(**batch).logits.detach()
    return {name: root / name for name in [*METHODS, "theirs"]}, logits


def shake(parameters, seed):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in parameters:
            p.add_(0.2 * torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.dtype))


def all_on(folders):
    model, batch = llama()
    before = {key: (value.data_ptr(), value.clone()) for key, value in model.state_dict().items()}
    for name, folder in folders.items():
        adapters = lorax.load(model, folder, name=name)
    return model, batch, adapters, before


def unwritten(model, before):
    state = model.state_dict()
    return all(
        state[key].data_ptr() == where and torch.equal(state[key], value) for key, (where, value) in before.items()
    )


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_each_computes_as_if_alone_and_no_weight_is_written(folders):
    folders, logits = folders
    model, batch, adapters, before = all_on(folders)
    assert adapters.names() == list(folders) and adapters.active == "theirs" and len(adapters) == 5
    for name in ["lora", None, "pissa", "theirs", "svft", None, "adalora"]:
        adapters.use(name)
        close(model(**batch).logits, logits[name])
        assert unwritten(model, before)
    with adapters.use("lora") as same:
        assert same is adapters and adapters.active == "lora"
        close(model(**batch).logits, logits["lora"])
    assert adapters.active == "adalora" and "in use: 'adalora'" in repr(adapters)
    close(model(**batch).logits, logits["adalora"])
    for name in folders:
        assert adapters[name].names() == lorax.load(llama()[0], folders[name]).names()
    adapters.detach()
    assert not [m for m in model.modules() if type(m).__module__.startswith("lorax")] and unwritten(model, before)
    assert not any(key.startswith("_lorax") for key in vars(model))


@pytest.mark.parametrize("grad", [True, False], ids=["one by one", "gathered"])
@pytest.mark.parametrize("rows", [["lora", None, "pissa", "theirs"], ["adalora", "theirs", "lora", "adalora"],
                                  ["svft", "pissa", None, "svft"], [None] * 4, ["lora"] * 4])  # fmt: skip
def test_rows_of_one_batch_use_different_adapters(folders, rows, grad):
    folders, logits = folders
    model, batch, adapters, before = all_on(folders)
    with torch.set_grad_enabled(grad), adapters.use(rows=rows):
        said = model(**batch).logits
        again = model(input_ids=batch["input_ids"][:, :1]).logits
        assert adapters.active is None
    for row, name in enumerate(rows):
        close(said[row], logits[name][row])
        close(again[row], logits[name][row, :1])
    assert adapters.active == "theirs" and unwritten(model, before)


def test_gathered_rows_follow_values_that_change(folders):
    folders, _ = folders
    model, batch, adapters, _ = all_on({key: folders[key] for key in ("lora", "theirs")})
    adapters.use(rows=["lora", "theirs", None, "lora"])
    with torch.no_grad():
        first = model(**batch).logits
        shake(adapters["lora"].parameters(), 9)
        second = model(**batch).logits
        expected = torch.stack([first[1], first[2]])
    close(second[1:3], expected)
    adapters.use("lora")
    close(second[0], model(**batch).logits[0].detach())
    assert not torch.allclose(first[0], second[0])


def test_gradients_reach_the_rows_adapters_only(folders):
    folders, _ = folders
    model, batch, adapters, _ = all_on(folders)
    adapters.use(rows=["lora", "lora", None, "pissa"])
    model(**batch).logits.sum().backward()
    reached = [
        name for name in adapters if any(p.grad is not None and p.grad.abs().sum() for p in adapters[name].parameters())
    ]
    assert reached == ["lora", "pissa"]


GREEDY, BEAMS, TWO = {}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}
LLAMA, T5 = ("qwen3", ["q_proj", "up_proj"]), ("t5", ["q", "wo"])


@pytest.mark.parametrize(
    "model, how",
    [(LLAMA, TWO), (T5, BEAMS)]
    + [
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [(LLAMA, GREEDY), (LLAMA, BEAMS), (T5, GREEDY), (T5, TWO)]
    ],
    ids=["llama two", "t5 beams", "llama greedy", "llama beams", "t5 greedy", "t5 two"],
)
def test_generation_keeps_each_row_s_adapter(model, how, tmp_path):
    architecture, targets = model
    model, batch = llama(architecture=architecture)
    for seed in range(2):
        adapters = lorax.attach(model, rank=2, targets=targets, seed=seed)
        shake(adapters.parameters(), seed)
        adapters.save(tmp_path / f"{seed}", quiet=True)
        adapters.detach()
    ids, more = batch["input_ids"], {"max_new_tokens": 6, "pad_token_id": 0, "min_new_tokens": 6, "do_sample": False}
    named = [lorax.load(model, tmp_path / f"{seed}", name=f"{seed}") for seed in range(2)][-1]
    rows = ["1", None, "0", "1"]
    alone = {}
    for name in ("0", "1", None):
        named.use(name)
        alone[name] = model.generate(ids, **more, **how)
    times = how.get("num_return_sequences", 1)
    expected = torch.stack([alone[name][row * times + k] for row, name in enumerate(rows) for k in range(times)])
    before = {key: vars(model).get(key) for key in ("generate", "_expand_inputs_for_generation")}
    with named.use(rows=rows):
        for _ in range(2):  # the second one starts from the rows as given again
            assert torch.equal(model.generate(ids, **more, **how), expected)
    assert {key: vars(model).get(key) for key in before} == before
    assert not torch.equal(alone["0"], alone["1"])


def test_taking_one_off_leaves_the_others_and_the_last_one_leaves_the_model(folders):
    folders, logits = folders
    model, batch, adapters, before = all_on(folders)
    adapters.delete("theirs")  # in use
    assert adapters.active is None and "theirs" not in adapters
    close(model(**batch).logits, logits[None])
    adapters.use(rows=["lora", "pissa", None, "lora"])
    adapters.delete("pissa")
    close(model(**batch).logits, logits[None])
    adapters.use("lora")
    adapters["svft"].detach()  # by its own handle
    close(model(**batch).logits, logits["lora"])
    assert adapters.names() == ["lora", "adalora"]
    lorax.load(model, folders["pissa"], name="again")
    close(model(**batch).logits, logits["pissa"])
    with adapters.use("lora"):
        adapters.delete("again")
    assert adapters.active is None
    adapters["lora"].detach()
    assert adapters.names() == ["adalora"]
    close(model(**batch).logits, logits[None])
    adapters.delete("adalora")
    assert unwritten(model, before) and lorax.attach(model, rank=2).detach() is model


def test_one_is_saved_exported_and_trained_while_others_are_there(folders, tmp_path):
    folders, logits = folders
    model, batch, adapters, _ = all_on(folders)
    adapters.use("svft")
    adapters["lora"].save(tmp_path / "lora", quiet=True)
    adapters["lora"].export_peft(tmp_path / "peft")
    plain = peft.PeftModel.from_pretrained(llama()[0], tmp_path / "peft").eval()
    torch.testing.assert_close(plain(**batch).logits, logits["lora"], rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="5 runs share this base"):
        model.save_pretrained(tmp_path / "whole")
    with pytest.raises(UserError, match="cannot merge: 5 lanes share this base"):
        adapters["lora"].merge()
    adapters.use("lora")
    optimiser = torch.optim.SGD(adapters["lora"].parameters(), lr=0.1)
    model(**batch).loss.backward()
    optimiser.step()
    moved = model(**batch).logits.detach()
    assert not torch.allclose(moved, logits["lora"])
    for name in ("pissa", "theirs"):
        adapters.use(name)
        close(model(**batch).logits, logits[name])
    fresh, _ = llama()
    lorax.load(fresh, tmp_path / "lora")
    close(fresh(**batch).logits, logits["lora"])


def test_a_copy_of_the_model_has_a_collection_of_its_own(folders):
    folders, logits = folders
    model, batch, adapters, _ = all_on({key: folders[key] for key in ("lora", "pissa")})
    other = copy.deepcopy(model)
    beside = lorax.load(other, folders["svft"], name="svft")
    assert beside.names() == ["lora", "pissa", "svft"] and adapters.names() == ["lora", "pissa"]
    beside.use("lora")
    close(other(**batch).logits, logits["lora"])
    close(model(**batch).logits, logits["pissa"])


def test_experts_switch_and_refuse_mixed_rows(tmp_path):
    model, batch = llama(torch.float32, "mixtral")  # torch groups the experts' products in no other dtype
    expected = {None: model(**batch).logits.detach()}
    for seed, targets in enumerate((["experts.down_proj", "q_proj"], ["experts.gate_up_proj", "experts.down_proj"])):
        adapters = lorax.attach(model, rank=2, targets=targets, seed=seed)
        shake(adapters.parameters(), seed)
        expected[f"{seed}"] = model(**batch).logits.detach()
        adapters.save(tmp_path / f"{seed}", quiet=True)
        adapters.detach()
    named = [lorax.load(model, tmp_path / f"{seed}", name=f"{seed}") for seed in range(2)][-1]
    for name in ("0", None, "1", "0"):
        named.use(name)
        torch.testing.assert_close(model(**batch).logits, expected[name], rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="experts take rows in equal blocks"), named.use(rows=["0", "1", None, "0"]):
        model(**batch)
    named.detach()
    torch.testing.assert_close(model(**batch).logits, expected[None], rtol=0, atol=0)


def test_what_cannot_be_is_one_line_and_changes_nothing(folders, tmp_path):
    folders, logits = folders
    model, batch, adapters, _ = all_on({key: folders[key] for key in ("lora", "pissa")})

    def refused(line, call):
        with pytest.raises(UserError, match=line) as caught:
            call()
        assert "\n" not in str(caught.value) and adapters.names() == ["lora", "pissa"] and adapters.active == "pissa"
        close(model(**batch).logits, logits["pissa"])

    refused("no adapter 'loar'; did you mean 'lora'", lambda: adapters.use("loar"))
    refused("no adapter 'x'", lambda: adapters.use(rows=["lora", "x", None, None]))
    refused("no adapter 'x'", lambda: adapters.delete("x"))
    refused("a name, or a list of names", lambda: adapters.use("lora", rows=["lora"]))
    refused("a name, or a list of names", lambda: adapters.use(rows="lora"))
    refused("a name, or a list of names", lambda: adapters.use(rows=[]))
    refused("name='lora' is taken", lambda: lorax.load(model, folders["svft"], name="lora"))
    refused("name='': a text", lambda: lorax.load(model, folders["svft"], name=""))
    refused("no such folder", lambda: lorax.load(model, tmp_path / "x", name="x"))
    refused("this model has adapters already", lambda: lorax.load(model, folders["svft"]))
    for init, fields, line in [
        ("lora", {"modules_to_save": ["norm"]}, "a weight of the base that it trained"),
        ("pissa", {"recenter": "fold", "rank": 2}, "recenter=fold, which writes into the base"),
        ("full", {"targets": ["q_proj"]}, "holds a model trained as full"),
    ]:
        other, _ = llama()
        lorax.attach(other, init, **fields).save(tmp_path / init, quiet=True)
        refused(line, lambda init=init: lorax.load(model, tmp_path / init, name="other"))
    other, _ = llama()
    with torch.no_grad():
        other.model.layers[0].self_attn.q_proj.weight.add_(1)
    lorax.attach(other, rank=2).save(tmp_path / "else", quiet=True)
    refused("other weights", lambda: lorax.load(model, tmp_path / "else", name="other"))
    with adapters.use(rows=["lora", None]), pytest.raises(UserError, match="4 rows, but 2 are routed"):
        model(**batch)
    adapters.delete("lora")
    adapters["pissa"].merge()
    for call in (lambda: adapters.use(None), lambda: adapters.use(rows=["pissa"] * 4),
                 lambda: lorax.load(model, folders["svft"], name="svft")):  # fmt: skip
        with pytest.raises(UserError, match="merged into the weights"):
            call()


def test_dropout_of_a_loaded_adapter_follows_the_model(tmp_path):
    model, batch = llama()
    adapters = lorax.attach(model, rank=2, dropout=0.5)
    shake(adapters.parameters(), 0)
    adapters.save(tmp_path, quiet=True)
    adapters.detach()
    named = lorax.load(model, tmp_path, name="a")
    assert torch.equal(model(**batch).logits, model(**batch).logits)
    model.train()
    assert not torch.equal(model(**batch).logits, model(**batch).logits)
    with torch.no_grad(), named.use(rows=["a", None, "a", None]):
        first, second = model(**batch).logits, model(**batch).logits
    assert torch.equal(first[1], second[1]) and not torch.equal(first[0], second[0])
