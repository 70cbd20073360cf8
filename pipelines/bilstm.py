"""A student that is no Transformer: a BiLSTM learns from a store as any torch module can.

    python pipelines/bilstm.py stores/sst2/d1-l9-w0.1 --method mud --out runs/bilstm

A module's forward takes `input_ids` and, if it wants them, `attention_mask` and `token_type_ids`. It returns logits [batch,
class], or logits and the hidden states [batch, token, width] of its embeddings and of each layer, which `mud` teaches.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from hskstore.methods import METHODS
from hskstore.stage_two.distill import distill
from hskstore.stage_two.recipe import Recipe
from hskstore.store import open_store


class BiLstm(nn.Module):
    """One bidirectional LSTM layer over word embeddings; the largest value over a row's tokens is classified."""

    def __init__(self, words: int, classes: int, width: int = 192, dropout: float = 0.1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.lstm = nn.LSTM(width, width // 2, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        embedded = self.dropout(self.embedding(input_ids))
        lengths = attention_mask.sum(dim=1).cpu()
        packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=input_ids.shape[1])
        pooled = states.masked_fill(attention_mask[..., None] == 0, -torch.inf).amax(dim=1)
        return self.classifier(self.dropout(pooled)), (embedded, states)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--method", choices=METHODS, default="mud")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()

    plan = open_store(options.store).plan
    torch.manual_seed(options.seed)
    student = BiLstm(plan.tokenizer["vocabulary"], len(plan.teacher["labels"]))
    method = METHODS[options.method]()
    recipe = Recipe(method=method, lr=(options.lr,), max_steps=options.max_steps, seed=options.seed)
    result = distill(options.store, recipe, student=student, out=options.out)
    print({split: scored.score for split, scored in result.scores.items()}, result.parameters)


if __name__ == "__main__":
    main()
