"""Facts to fine-tune on, and the losses of their answers."""

import torch

from lit_edit.editors.finetune import FT
from lit_edit.prompts import Encoder
from lit_edit.request import EditRequest
from tests.tiny import tiny_tokenizer

FACTS = (
    EditRequest("{} is", "Zürich", "old"),
    EditRequest("The capital of {} is", "France", "Berlin"),
    EditRequest("It is known that her mother tongue is", "", "Dutch and so on"),
)


def rows_of(made, facts=FACTS):
    encoder = Encoder(tiny_tokenizer())
    return [made.rows(encoder, fact, ("unused {}",)) for fact in facts]


def answer_losses(anatomy, facts=FACTS):
    """Negative log-likelihood of every answer's tokens, one plain forward per fact."""
    found = []
    for row in rows_of(FT(), facts):
        ids, labels = row.rewriting[0].ids, row.rewriting[0].labels
        log_p = anatomy.model(torch.tensor([ids]), use_cache=False).logits[0].float().log_softmax(-1)
        found.append(torch.stack([-log_p[column, token] for column, token in labels]))
    return found


def rows_first(losses):
    return torch.stack([loss.mean() for loss in losses]).mean()
