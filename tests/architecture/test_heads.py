"""Heads of classifiers: what PEFT's SEQ_CLS trains, trains here, is counted, saved, restored and exported."""

from __future__ import annotations

import copy
import warnings

import peft
import pytest
import torch
import transformers as T  # noqa: N812
from torch import nn

import lorax
from lorax.architecture.heads import fresh_heads

SIZES = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
ENCODER = SIZES | {"num_labels": 3, "pad_token_id": 0}
IDS = torch.arange(12).reshape(2, 6) % 20
BATCH = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": torch.tensor([0, 2])}


def bert():
    torch.manual_seed(0)
    return T.BertForSequenceClassification(T.BertConfig(**ENCODER)).eval()


def distilbert():
    return T.DistilBertForSequenceClassification(
        T.DistilBertConfig(vocab_size=20, dim=8, hidden_dim=12, n_layers=1, n_heads=2, num_labels=3)
    )


def vit():
    sizes = {key: value for key, value in SIZES.items() if key != "vocab_size"}
    return T.ViTForImageClassification(T.ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=3))


HEADS = {
    "bert": (bert, ["classifier"]),
    "tokens": (lambda: T.BertForTokenClassification(T.BertConfig(**ENCODER)), ["classifier"]),
    "questions": (lambda: T.BertForQuestionAnswering(T.BertConfig(**ENCODER)), ["qa_outputs"]),
    "choices": (lambda: T.BertForMultipleChoice(T.BertConfig(**ENCODER)), ["classifier"]),
    "roberta": (
        lambda: T.RobertaForSequenceClassification(T.RobertaConfig(**ENCODER)),
        ["classifier.dense", "classifier.out_proj"],
    ),
    "distilbert": (distilbert, ["classifier", "pre_classifier"]),
    "llama": (lambda: T.LlamaForSequenceClassification(T.LlamaConfig(**ENCODER)), ["score"]),
    "vit": (vit, ["classifier"]),
    "causal": (lambda: T.LlamaForCausalLM(T.LlamaConfig(**SIZES)), []),
    "masked": (lambda: T.BertForMaskedLM(T.BertConfig(**SIZES)), []),
    "encoder": (lambda: T.BertModel(T.BertConfig(**SIZES)), []),
}


@pytest.mark.parametrize("name", HEADS)
def test_which_heads_train(name):
    make, heads = HEADS[name]
    with torch.device("meta"):
        assert fresh_heads(make()) == (heads, None)


def test_the_loop_of_the_readme_trains_the_head_as_peft_does():
    """lora_B starts at zero, so one step of SGD moves the head by the same gradient in both."""
    model, other = bert(), peft.get_peft_model(
        bert(), peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    )  # fmt: skip
    with pytest.warns(UserWarning, match="classifier may be fresh and trains whole .*; train_head=False keeps"):
        adapters = lorax.attach(model, rank=2, targets=["query", "value"])
    assert adapters.count_trainable() == 2 * 2 * 16 + 27
    assert adapters.count_trainable() == sum(p.numel() for p in other.parameters() if p.requires_grad)
    assert {id(p) for p in adapters.parameters()} == {id(p) for p in model.parameters() if p.requires_grad}
    for each, parameters in ((model, adapters.parameters()), (other.eval(), other.parameters())):
        optimiser = torch.optim.SGD([p for p in parameters if p.requires_grad], lr=0.5)
        each(**BATCH).loss.backward()
        optimiser.step()
    theirs = other.base_model.model.classifier.modules_to_save["default"].weight
    torch.testing.assert_close(model.classifier.weight, theirs)
    assert not torch.equal(model.classifier.weight, bert().classifier.weight)


@pytest.mark.filterwarnings("ignore:classifier may be fresh")
def test_the_head_is_saved_restored_exported_and_taken_off(tmp_path):
    model, x = bert(), {key: BATCH[key] for key in ("input_ids", "attention_mask")}
    base = model(**x).logits.detach()
    adapters = lorax.attach(model, rank=2)
    assert adapters.coverage.trained_whole == {"classifier": 27}
    assert "classifier" not in adapters.names() and "bert.pooler.dense" in adapters.names()
    assert [group["lr"] for group in adapters.parameter_groups(0.1)] == [0.1]
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    want = model(**x).logits.detach()
    with adapters.disabled():
        assert torch.equal(model(**x).logits, base)
    assert torch.equal(model(**x).logits, want)
    state = copy.deepcopy(adapters.state_dict())
    adapters.save(tmp_path / "a", quiet=True)
    again = lorax.load(other := bert(), tmp_path / "a")
    assert torch.equal(other(**x).logits, want) and again.count_trainable() == adapters.count_trainable()
    assert again.coverage.trained_whole == {"classifier": 27}
    torch.testing.assert_close(other.classifier.weight, again.named_parameters()["classifier.weight"])
    assert torch.equal(again.detach()(**x).logits, base)
    adapters.export_peft(tmp_path / "p")
    stock = peft.PeftModel.from_pretrained(bert(), tmp_path / "p")
    torch.testing.assert_close(stock.eval()(**x).logits, want, rtol=1e-4, atol=1e-5)
    adapters.export_merged(tmp_path / "m")
    whole = T.BertForSequenceClassification.from_pretrained(tmp_path / "m").eval()
    torch.testing.assert_close(whole(**x).logits, want, rtol=1e-4, atol=1e-5)
    assert torch.equal(adapters.detach()(**x).logits, base) and all(p.requires_grad for p in model.parameters())
    lorax.attach(model, rank=2).load_state_dict(state)
    assert torch.equal(model(**x).logits, want)


def test_what_a_checkpoint_lacks_is_known_to_be_fresh(tmp_path):
    T.BertModel(T.BertConfig(**SIZES), add_pooling_layer=False).save_pretrained(tmp_path / "body")
    fresh = T.BertForSequenceClassification.from_pretrained(tmp_path / "body", num_labels=3)
    assert fresh_heads(fresh) == (["bert.pooler.dense", "classifier"], True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # nothing to say: that it trains is what everyone expects
        adapters = lorax.attach(fresh, rank=2)
    assert set(adapters.coverage.trained_whole) == {"bert.pooler.dense", "classifier"}
    assert "bert.pooler.dense" not in adapters.names()
    bert().save_pretrained(tmp_path / "whole")
    loaded = T.BertForSequenceClassification.from_pretrained(tmp_path / "whole")
    assert fresh_heads(loaded) == (["classifier"], False)
    with pytest.warns(UserWarning, match="classifier came with the checkpoint and trains whole"):
        lorax.attach(loaded, rank=2)


@pytest.mark.filterwarnings("ignore")
def test_what_is_asked_for_wins():
    assert lorax.attach(bert(), rank=2, train_head=False).coverage.trained_whole == {}
    assert set(lorax.attach(bert(), rank=2, train_head=["pooler"]).coverage.trained_whole) == {"bert.pooler"}
    adapters = lorax.attach(bert(), rank=2, targets=["classifier"])
    assert adapters.names() == ["classifier"] and adapters.coverage.trained_whole == {}
    causal = T.LlamaForCausalLM(T.LlamaConfig(**SIZES))
    assert lorax.attach(causal, rank=2, train_head=["embed_tokens"]).coverage.trained_whole == {
        "model.embed_tokens": 160
    }
    plain = nn.ModuleDict({"body": nn.Linear(8, 8), "classifier": nn.Linear(8, 3)})
    with pytest.warns(UserWarning, match=r"left out classifier .*: a head for classes, which stays as it is"):
        lorax.attach(plain, rank=2).detach()
    assert lorax.attach(plain, rank=2, train_head=True).coverage.trained_whole == {"classifier": 27}


@pytest.mark.filterwarnings("ignore")
def test_the_other_arms_agree():
    model = bert()
    arm = lorax.attach(model, init="head")
    assert arm.count_trainable() == 27 and {id(p) for p in arm.parameters()} == {
        id(p) for p in model.parameters() if p.requires_grad
    }
    start = model.classifier.weight.clone()
    with torch.no_grad():
        model.classifier.weight.add_(1)
    assert torch.equal(arm.detach().classifier.weight, start)
    assert lorax.attach(bert(), init="none").count_trainable() == 0
    assert lorax.attach(bert(), init="full").count_trainable() == sum(p.numel() for p in bert().parameters())
    assert lorax.attach(bert(), init="full", targets=["query"]).count_trainable() == 8 * 8 + 8 + 27


def test_mistakes_are_one_line():
    net = nn.Sequential(nn.Linear(4, 4))
    for fields, line in (
        ({"train_head": True}, "train_head=True: Sequential has no head that is known"),
        ({"train_head": ["clasifier"]}, "train_head='clasifier' matches no module with weights"),
        ({"init": "head"}, "init=head: Sequential has no head that is known"),
    ):
        with pytest.raises(lorax.UserError) as caught:
            lorax.attach(net, rank=2, **fields)
        assert line in str(caught.value) and "\n" not in str(caught.value)
