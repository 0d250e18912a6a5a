"""A BERT encoder classified by the mean of its token vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, BertPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class MeanPooledBert(BertPreTrainedModel):
    """logits = W mean_t(h_t) + b, the mean over tokens that are not padding.

    Attributes:
        bert: the encoder, without a pooler.
        classifier: W (classes, hidden) and b.
    """

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = BertModel(config, add_pooling_layer=False)
        self.classifier = nn.Linear(config.hidden_size, int(config.num_labels or 0))
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Classify sequences.

        Args:
            input_ids: (batch, T).
            attention_mask: (batch, T), 1 for tokens and 0 for padding; None: no padding.
            labels: (batch,) classes; the mean cross-entropy is then returned as `loss`.
            kwargs: passed to the encoder.

        Returns:
            logits (batch, classes), and the loss if labels were given.
        """
        kwargs.pop("return_dict", None)
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        if attention_mask is None:
            pooled = hidden.mean(dim=1)
        else:
            weight = attention_mask[:, :, None].to(hidden.dtype)
            pooled = (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
        logits = self.classifier(pooled)
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)
