"""Encoder-decoders: what is too long is cut and said, and a pack of adapters translates as each alone."""

import pytest
import torch

from lorax.adapters.install import install
from lorax.api import make_factors
from lorax.errors import UserError
from lorax.evaluation.evaluate import evaluate
from lorax.forward.modality import modality_of
from lorax.initializers.registry import build
from lorax.models.marian._network import MarianStudent, StudentConfig


@pytest.fixture
def student(toy):
    """A random student with the toy's byte tokens; its matrices are large enough for answers that differ."""
    torch.manual_seed(0)
    loaded = toy()
    ends = {"eos_token_id": 257, "pad_token_id": 256, "unk_token_id": 258, "decoder_start_token_id": 257}
    config = StudentConfig(261, 16, 24, 4, 1, 1, max_position_embeddings=12, **ends)
    loaded.model, loaded.kind = MarianStudent(config).eval(), "seq2seq"
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 1 if len(parameter) == 261 else 2 * parameter.shape[1] ** -0.5)
    return loaded


def test_what_is_longer_than_the_task_s_bound_is_cut_before_its_end_token_and_counted(student, sums, capfd):
    whole = modality_of(student).encode(sums, "train")
    sums.longest = 3
    sums.name = "cut test"
    rows = modality_of(student).encode(sums, "train")
    long = [sum(len(row.ids) > 3 for row in whole), sum(len(row.labels) > 3 for row in whole)]
    assert min(long) > 0 and max(len(row.ids) for row in rows) == max(len(row.labels) for row in rows) == 3
    for before, after in zip(whole, rows, strict=True):
        for old, new in ((before.ids, after.ids), (before.labels, after.labels)):
            assert new == (old if len(old) <= 3 else [*old[:2], old[-1]])
    line = f"cut test train: {long[0]} inputs and {long[1]} answers of {len(rows)} cut to 3 tokens\n"
    assert capfd.readouterr().err == line


def test_the_model_s_context_bounds_the_cut_and_without_a_bound_it_is_refused(student, sums):
    student.model.config.max_position_embeddings = 6
    with pytest.raises(UserError, match="tokens, the model takes 6"):
        modality_of(student).encode(sums, "train")
    sums.longest = 100
    assert max(len(row.ids) for row in modality_of(student).encode(sums, "train")) == 6


def test_a_pack_translates_as_each_of_its_adapters_alone(student, sums):
    lora = build("lora", shared={"rank": 2, "alpha": 4}, own={})
    handles = install(student.model, [make_factors(student.model, lora, seed=seed) for seed in range(2)])
    with torch.no_grad():
        for value in (value for handle in handles for value in handle.parameters()):
            value.normal_(0, 0.7)
    together = evaluate(student, sums, "test", handles, batch_size=5)
    said = [[item["completion"] for item in items] for items in together]
    for handle, completions in zip(handles, said, strict=True):
        [items] = evaluate(student, sums, "test", [handle], batch_size=20)
        assert [item["completion"] for item in items] == completions
    assert said[0] != said[1]
