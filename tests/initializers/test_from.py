"""init=from: step 0 is the adapter on disk, PEFT's or one's own; it trains on from there."""

import json
from pathlib import Path

import peft
import pytest
import torch
from torch import nn
from zoo import ZOO

import lorax
from lorax.errors import UserError
from lorax.initializers.registry import build, consumed

pytestmark = pytest.mark.filterwarnings("ignore")
QV = ["q_proj", "v_proj"]


def llama():
    torch.manual_seed(0)
    model, batch = ZOO["qwen3"]()
    return model.eval(), batch


@pytest.fixture
def theirs(tmp_path):
    """A LoRA of PEFT's that is not at its start, and its logits."""
    model, batch = llama()
    model = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules=QV, init_lora_weights=False, rank_pattern={"q_proj": 2})
    )
    model.eval().save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs", model(**batch).logits.detach()


def test_attach_starts_where_peft_stopped(theirs):
    folder, expected = theirs
    model, batch = llama()
    adapters = lorax.attach(model, "from", path=str(folder))
    torch.testing.assert_close(model(**batch).logits, expected, rtol=0, atol=1e-6)
    assert len(adapters.names()) == 4 and {f.rank for f in adapters.factors().values()} == {2, 4}
    model(**batch).loss.backward()
    assert all(p.grad is not None for p in adapters.parameters())
    part = lorax.attach(llama()[0], "from", path=str(folder), targets=["0.self_attn.q_proj"])
    assert part.names() == ["model.layers.0.self_attn.q_proj"]


@pytest.mark.parametrize("init", ["lora", "lora_xs", "adalora", pytest.param("svft", marks=pytest.mark.slow)])
def test_attach_starts_where_lorax_stopped(init, tmp_path):
    model, batch = llama()
    adapters = lorax.attach(model, init, rank=3, targets=QV)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    expected = model(**batch).logits.detach()
    adapters.save(tmp_path, quiet=True)
    model, _ = llama()
    again = lorax.attach(model, "from", path=str(tmp_path))
    torch.testing.assert_close(model(**batch).logits, expected, rtol=0, atol=1e-6)
    assert again.count_trainable() == adapters.count_trainable()
    again.save(tmp_path / "again", quiet=True)
    again.detach()
    lorax.load(model, tmp_path / "again")
    torch.testing.assert_close(model(**batch).logits, expected, rtol=0, atol=1e-6)


def test_the_content_stands_in_the_run_id_and_not_the_place(theirs, tmp_path):
    folder, _ = theirs
    other = tmp_path / "moved"
    one = consumed(build("from", own={"path": str(folder)}))
    folder.rename(other)
    assert consumed(build("from", own={"path": str(other)})) == one and "path" not in one and len(one["digest"]) == 16
    (other / "adapter_config.json").write_text((other / "adapter_config.json").read_text() + " ")
    assert consumed(build("from", own={"path": str(other)})) != one
    with pytest.raises(UserError, match="has digest .*, asked for is"):
        build("from", own={"path": str(other), "digest": one["digest"]})


def test_what_is_no_start_is_one_line(theirs, tmp_path):
    folder, _ = theirs
    model, _ = llama()
    for fields, line in [
        ({}, "give path=<folder of an adapter>"),
        ({"path": str(tmp_path / "nothing")}, "is no folder"),
        ({"path": str(tmp_path)}, "holds no adapter"),
        ({"path": 3}, "texts are needed"),
        ({"path": str(folder), "targets": ["o_proj"]}, "has none there"),
    ]:
        with pytest.raises(UserError, match=line) as caught:
            lorax.attach(model, "from", **fields)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="is for .*, the weight is"):
        build("from", own={"path": str(folder)}).check("model.layers.0.self_attn.q_proj", 3, 5)
    small = nn.Sequential(nn.Linear(6, 5))
    lorax.attach(small, "pissa", rank=2).save(tmp_path / "pissa", quiet=True)
    with pytest.raises(UserError, match="0 was recentred"):
        lorax.attach(nn.Sequential(nn.Linear(6, 5)), "from", path=str(tmp_path / "pissa"))
    lorax.attach(nn.Sequential(nn.Linear(6, 5)), "full").save(tmp_path / "full", quiet=True)
    with pytest.raises(UserError, match="holds no factors .kind full"):
        lorax.attach(nn.Sequential(nn.Linear(6, 5)), "from", path=str(tmp_path / "full"))


@pytest.mark.slow
def test_a_run_starts_from_an_adapter(lorax, capsys):
    assert lorax("init=lora", "rank=2", "targets=[q_proj]", "save=saved", "base=false", "steps=2") == 0
    [folder] = Path("saved").iterdir()
    assert lorax("init=from", f"init.path={folder}", "base=false", "steps=2", "save=again") == 0
    records = [json.loads(path.read_text()) for path in Path("results/records/small").glob("*.json")]
    [record] = [record for record in records if record["identity"]["init"]["name"] == "from"]
    assert record["init_report"]["n_layers"] == 2 and record["init_report"]["step0_error"] > 0
    assert record["identity"]["init"].keys() == {"name", "version", "digest"}
    capsys.readouterr()
    assert lorax("init=from") == 2
    assert "init=from: give path=" in capsys.readouterr().err
