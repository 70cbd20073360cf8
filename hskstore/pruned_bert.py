"""`import hskstore.pruned_bert` registers the architecture PrunedBert with transformers' Auto classes: model cards name it."""

from hskstore.models.pruned_bert import PrunedBertConfig, PrunedBertForSequenceClassification, PrunedBertModel

__all__ = ["PrunedBertConfig", "PrunedBertForSequenceClassification", "PrunedBertModel"]
