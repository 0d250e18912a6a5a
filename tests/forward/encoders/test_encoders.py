"""Tags, pairs, numbers and spans of a text: the losses of plain transformers, and packed runs equal to single ones."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny_encoder import encoder

from lorax.adapters.install import install
from lorax.api import make_factors
from lorax.evaluation.evaluate import evaluate, summarise
from lorax.forward.encoders.questions import Questioned, Window, best_span
from lorax.forward.encoders.tags import first_tokens
from lorax.forward.heads import install_heads
from lorax.forward.modality import modality_of
from lorax.initializers.registry import build
from lorax.stats.measures.corpus import read_spans
from lorax.tasks.base import Example
from lorax.tasks.labelled.regression import regression
from lorax.tasks.labelled.squad import QuestionTask, question
from lorax.tasks.labelled.tagged import Tagging, TokenClassification, tagging_task
from lorax.tasks.own_data import TextClassification, Two, classification
from lorax.training.loop import Run, TrainPlan, train

NAMES = ["ann", "bob", "cy", "dora"]
PLACES = ["rome", "oslo", "new york"]


def tag_task(n=24):
    def sentence(at):
        words, place = [NAMES[at % 4], "likes"], PLACES[at % 3].split()
        tags = ["B-who", "O", *("B-where" if word == place[0] else "I-where" for word in place)]
        return Tagging([*words, *place, f"x{at}"], [*tags, "O"])

    options = TokenClassification(path="-", n_validation=4, n_heldout=2)
    return tagging_task(options, {"train": [sentence(at) for at in range(n)]}, 0, {})


def pair_task():
    pairs = [(Two(NAMES[at % 4] + f" {at}", PLACES[at % 3]), "yes" if at % 2 else "no") for at in range(24)]
    return classification(TextClassification(path="-", second="b", n_validation=4, n_heldout=2), {"train": pairs}, 0)


def number_task():
    pairs = [(Two(NAMES[at % 4] + f" {at}", PLACES[at % 3]), float(at % 5)) for at in range(24)]
    return regression(TextClassification(path="-", second="b", n_validation=4, n_heldout=2), {"train": pairs}, 0, {})


def question_task(window=64, null=False):
    def asked(at):
        context = f"in {PLACES[at % 3]} lives {NAMES[at % 4]} with {at} cats and dogs"
        start = context.index(NAMES[at % 4])
        answers = [{"text": NAMES[at % 4], "answer_start": start}] if at % 4 or not null else []
        return question((f"row {at}", {"question": f"who has {at}?", "context": context, "answers": answers}))

    examples = tuple(map(asked, range(12)))
    return QuestionTask(
        name="squad", kind="question_answering", train=examples[:8], validation=examples[8:10], test=examples[8:],
        labels=("start", "end"), metric="exact_match", corpus="answers", window=window, stride=8, longest=8, null=null,
    )  # fmt: skip


TASKS = {"classification": pair_task, "regression": number_task, "token_classification": tag_task,
         "question_answering": question_task}  # fmt: skip


def test_a_label_stands_on_the_first_sub_token_and_nowhere_else():
    loaded, task = encoder("token_classification", 5), tag_task()
    modality = modality_of(loaded)
    rows = modality.encode(task, "test")
    batch = modality.collate(rows)
    assert task.labels == ("B-where", "B-who", "I-where", "I-who", "O")
    # transformers' own way: word_ids, -100 on all but the first sub-token of each word
    words = [list(row.example.meta["words"]) for row in rows]
    plain = loaded.tokenizer(words, is_split_into_words=True, padding=True, return_tensors="pt")
    labels = torch.full_like(plain["input_ids"], -100)
    for line, row in enumerate(rows):
        seen = set()
        for at, word in enumerate(plain.word_ids(line)):
            if word is not None and word not in seen:
                labels[line, at] = task.labels.index(row.example.meta["tags"][word])
                seen.add(word)
    assert torch.equal(plain["input_ids"], batch.inputs["input_ids"])
    with torch.no_grad():
        expected = loaded.model(**plain, labels=labels).loss
        ours = modality.losses(modality.forward(batch), batch)
    assert len(ours) == (labels != -100).sum() == sum(batch.counts)
    assert ours.mean().item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("offsets, words, expected", [
    ([(0, 0), (0, 2), (2, 4), (5, 6), (0, 0)], ["play", "x"], ([1, 3], [0, 1])),
    ([(0, 4), (4, 6)], ["play", "x"], ([0, 1], [0, 1])),  # a token with the space before the word, as GPT-2's
    ([(0, 4)], ["play", "x"], ([0], [0])),  # cut off
    ([(0, 1), (5, 6)], ["a", "\u200b\u200b", "b"], ([0, 1], [0, 2])),  # a word that the tokenizer drops
    ([(0, 3)], ["a", "b"], ([0, 0], [0, 1])),  # two words in one token
])  # fmt: skip
def test_the_first_token_of_a_word_is_the_first_that_overlaps_it(offsets, words, expected):
    found = first_tokens(offsets, words)
    assert (found[: len(found) // 2], found[len(found) // 2 :]) == expected


def test_words_that_are_cut_off_count_as_not_found():
    loaded, task = encoder("token_classification", 5, bound=8), tag_task()
    with pytest.warns(UserWarning, match="texts are longer than the 8 tokens of the model: cut there"):
        [items] = evaluate(loaded, task, "test")
    for item in items:  # `ann likes` is [CLS] a ##n ##n l ##i ##k [SEP]: the place is not seen, and stays to be found
        assert all(end <= 2 for _, _, end in read_spans(item["completion"])) and "where[2:" in item["answer"]
    assert summarise(items, task.corpus)["recall"] <= 0.5


def test_two_texts_go_in_as_a_pair():
    loaded, task = encoder("classification", 2), pair_task()
    modality = modality_of(loaded)
    rows = modality.encode(task, "test")
    batch = modality.collate(rows)
    plain = loaded.tokenizer([row.example.pair[0] for row in rows], [row.example.pair[1] for row in rows], padding=True,
                             return_tensors="pt")  # fmt: skip
    assert {key: value.tolist() for key, value in batch.inputs.items()} == {
        key: value.tolist() for key, value in plain.items()
    }
    assert batch.inputs["token_type_ids"].sum() > 0
    joined = replace(task, test=tuple(replace(example, meta={}) for example in task.test))
    assert joined.digest != task.digest, "one text that reads alike is another task"
    assert "token_type_ids" not in modality.collate(modality.encode(joined, "test")).inputs
    long = encoder("classification", 2, bound=12)
    with pytest.warns(UserWarning, match=r"test: \d of 4 texts are longer than the 12 tokens of the model"):
        modality_of(long).encode(task, "test")


def test_a_number_has_the_squared_error_in_standard_deviations():
    loaded, task = encoder("regression", 1), number_task()
    modality = modality_of(loaded)
    batch = modality.collate(modality.encode(task, "train"))
    numbers = torch.tensor([float(example.answer) for example in task.train], dtype=torch.float64)
    standard = (numbers - numbers.mean()) / numbers.std(correction=0)
    with torch.no_grad():
        output = modality.forward(batch)
        assert modality.losses(output, batch).tolist() == pytest.approx(
            (output[:, 0] - standard).square().tolist(), rel=1e-6
        )
    [items] = evaluate(loaded, task, "train")
    expected = (numbers.mean() + numbers.std(correction=0) * output[:, 0]).tolist()
    assert [item["completion"] for item in items] == pytest.approx(expected, abs=1e-5)
    for item, number in zip(items, numbers.tolist(), strict=True):
        assert item["score"] == pytest.approx(max(0, 1 - abs(item["completion"] - number) / 4), abs=1e-6)


def test_start_and_end_have_the_loss_of_transformers():
    loaded, task = encoder("question_answering", 2), question_task()
    modality = modality_of(loaded)
    rows = modality.encode(task, "train")
    batch = modality.collate(rows)
    assert [len(row.windows) for row in rows] == [1] * len(rows)
    starts, ends = torch.tensor([row.labels for row in rows]).T
    for row in rows:
        text = loaded.tokenizer.decode(row.windows[0].ids[row.labels[0] : row.labels[1] + 1]).replace(" ##", "")
        assert text == row.example.answer
    with torch.no_grad():
        ours = modality.losses(modality.forward(batch), batch)
        each = []
        for row, start, end in zip(rows, starts, ends, strict=True):  # one by one: theirs counts padding
            window = row.windows[0]
            inputs = {"input_ids": window.ids, "token_type_ids": window.types}
            inputs = {name: torch.tensor([value]) for name, value in inputs.items()}
            each.append(loaded.model(**inputs, start_positions=start[None], end_positions=end[None]).loss.item())
    assert ours.view(-1, 2).mean(1).tolist() == pytest.approx(each, rel=1e-9)


def test_long_texts_are_read_in_windows_that_overlap():
    loaded, task = encoder("question_answering", 2), question_task(window=40)
    with pytest.warns(UserWarning, match=r"train: 7 of 8 texts are read in several windows"):
        rows = modality_of(loaded).encode(task, "train")
    for row in rows:
        spans = [(window.offsets[0][0], window.offsets[-1][1]) for window in row.windows]
        assert spans[0][0] == 0 and spans[-1][1] == len(row.example.meta["context"])
        assert all(later < before for (_, before), (later, _) in zip(spans, spans[1:], strict=False))
        assert len(row.labels) == 2 * len(row.windows) and any(row.labels)
        assert max(len(window.ids) for window in row.windows) <= 40
    with pytest.raises(ValueError, match=r"the question of example \w+ has \d+ tokens: with task.stride=8 no room"):
        modality_of(loaded).encode(question_task(window=16), "train")


def test_the_best_span_is_the_largest_sum_in_order_and_short_enough():
    context = "aa bb cc dd"
    window = Window([0] * 7, [], 2, [(0, 2), (3, 5), (6, 8), (9, 11)])
    example = Example("i", "p", "", meta={"context": context})
    row = Questioned([window], [0, 0], example)
    logits = torch.zeros(2, 7)
    logits[0, 4], logits[1, 3], logits[0, 0], logits[1, 0] = 5, 5, 9, 9  # the end before the start; no answer best
    logits[1, 5], logits[0, 3] = 4, 2
    assert best_span(logits, row, 30, null=False) == "cc dd"
    assert best_span(logits, row, 1, null=False) == "bb"
    assert best_span(logits, row, 30, null=True) == ""
    second = Window([0] * 7, [], 2, [(6, 8), (9, 11)])
    stronger = torch.zeros(2, 7)
    stronger[0, 3], stronger[1, 3] = 20, 20
    both = Questioned([window, second], [0] * 4, example)
    assert best_span(torch.cat([logits, stronger]), both, 30, null=True) == "dd"


@pytest.mark.parametrize(
    "kind", [kind if kind == "token_classification" else pytest.param(kind, marks=pytest.mark.slow) for kind in TASKS]
)
def test_packed_runs_are_the_single_ones(kind):
    """Two runs of other seeds, hence other batches and heads: their losses and answers are those of each alone."""
    task = TASKS[kind]() if kind != "question_answering" else question_task(window=44)

    def trained(arms):
        loaded = encoder(kind, len(task.labels))
        made = [make_factors(loaded.model, build(name, shared={"rank": 2}, own={}), ["query", "value"], seed=seed)
                for name, seed in arms]  # fmt: skip
        handles = install(loaded.model, made)
        heads = install_heads(loaded, [seed for _, seed in arms])
        data = modality_of(loaded).encode(task, "train")
        runs = [Run(adapters=handle, data=data, lr=1e-2, seed=seed, head=head, head_lr=2e-2)
                for handle, head, (_, seed) in zip(handles, heads, arms, strict=True)]  # fmt: skip
        outcomes = train(loaded, runs, TrainPlan(steps=6, batch_size=4))
        return outcomes, evaluate(loaded, task, "test", handles, heads, batch_size=3)

    arms = [("lora", 0), ("pissa", 1)]
    packed, answers = trained(arms)
    for lane, arm in enumerate(arms):
        [single], [items] = trained([arm])
        assert [row["loss"] for row in packed[lane].curve] == pytest.approx(
            [row["loss"] for row in single.curve], rel=1e-6
        )
        assert [item["loss"] for item in answers[lane]] == pytest.approx([item["loss"] for item in items], rel=1e-6)
        assert [item["id"] for item in items] == [example.id for example in task.test]
    assert packed[0].curve[-1]["loss"] < packed[0].curve[0]["loss"] or kind == "question_answering"


def test_a_slow_tokenizer_is_refused_in_one_line():
    loaded = encoder("token_classification", 5)
    loaded.tokenizer = SimpleNamespace(is_fast=False)
    with pytest.raises(ValueError, match="model=tiny: a slow tokenizer, which does not say where a word's tokens are"):
        modality_of(loaded).encode(tag_task(), "test")
