"""A BERT of two layers with random weights and a WordPiece tokenizer of letters, for tests: no file, no network."""

import string

import torch
import transformers as T
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from lorax.models.fresh_head import init_head
from lorax.models.registry import Loaded

HEADS = {
    "classification": ("BertForSequenceClassification", "classifier"),
    "regression": ("BertForSequenceClassification", "classifier"),
    "token_classification": ("BertForTokenClassification", "classifier"),
    "question_answering": ("BertForQuestionAnswering", "qa_outputs"),
}
LETTERS = string.ascii_lowercase + string.digits


def tokenizer(bound=64):
    """Every letter is a token, those inside of a word with ## before: `ab c` is [CLS] a ##b c [SEP]."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"##{letter}" for letter in LETTERS), *".,?'"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=99))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return T.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=bound, model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def encoder(kind, labels, bound=64):
    """Return the model with a fresh head, in fp64."""
    name, head = HEADS[kind]
    torch.manual_seed(0)
    config = T.BertConfig(
        vocab_size=100, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=bound, num_labels=labels, initializer_range=0.2,
    )  # fmt: skip
    model = getattr(T, name)(config).double().eval()
    loaded = Loaded(model, tokenizer(bound), kind, "tiny", "", [head])
    init_head(model, loaded.head, 0)
    return loaded
