"""What is looked at in a small model: answers, causal patching, spectra. Nothing here changes weights, modes or random states.

Shapes: N questions, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_edit.spectrum import leading_share

Item = tuple[str, str]


def blocks(model: Any) -> nn.ModuleList:
    """The transformer blocks of a GPT-2 or Llama type model."""
    found: nn.ModuleList = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    return found


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, whatever it was before outside."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)


@torch.no_grad()
def next_logits(model: nn.Module, tokenizer: Any, prompts: Sequence[str], rows: int = 256) -> Tensor:
    """Logits ``[N, V]`` of the token after each prompt."""
    found = []
    for start in range(0, len(prompts), rows):
        coded = tokenizer(list(prompts[start : start + rows]), return_tensors="pt", padding=True)
        logits = model(input_ids=coded.input_ids, attention_mask=coded.attention_mask, use_cache=False).logits
        found.append(logits[torch.arange(len(logits)), coded.attention_mask.sum(1) - 1])
    return torch.cat(found)


def first_tokens(tokenizer: Any, answers: Sequence[str]) -> Tensor:
    """First token id of each answer as a continuation, ``[N]``."""
    return torch.tensor([tokenizer(" " + answer)["input_ids"][0] for answer in answers])


def accuracy(model: nn.Module, tokenizer: Any, items: Sequence[Item]) -> float:
    """Share of ``(prompt, answer)`` items answered right: the argmax is the first token of the answer."""
    logits = next_logits(model, tokenizer, [prompt for prompt, _ in items])
    return (logits.argmax(-1) == first_tokens(tokenizer, [answer for _, answer in items])).float().mean().item()


@dataclass(frozen=True)
class Questions:
    """Prompts about subjects as model inputs.

    Args:
        inputs: ``input_ids`` and ``attention_mask``, both ``[N, T]``, padded on the right.
        subject: position of the last token of each subject, ``[N]``.
        last: position of the last token of each prompt, ``[N]``.
    """

    inputs: dict[str, Tensor]
    subject: Tensor
    last: Tensor

    @classmethod
    def of(cls, tokenizer: Any, asked: Sequence[tuple[str, int]]) -> Questions:
        """From texts and the place, in characters, where the subject of each ends."""
        coded = tokenizer([text for text, _ in asked], return_tensors="pt", padding=True, return_offsets_mapping=True)
        ends = torch.tensor([end for _, end in asked])
        inside = (coded.offset_mapping[:, :, 0] < ends[:, None]) & (coded.offset_mapping[:, :, 1] >= ends[:, None])
        inputs = {"input_ids": coded.input_ids, "attention_mask": coded.attention_mask}
        return cls(inputs, inside.int().argmax(1), coded.attention_mask.sum(1) - 1)

    def __len__(self) -> int:
        return len(self.last)

    def said(self, model: Any) -> Tensor:
        """Argmax after each prompt, ``[N]``."""
        logits: Tensor = model(**self.inputs, use_cache=False).logits
        return logits[torch.arange(len(self)), self.last].argmax(-1)


def hidden(out: Any) -> Tensor:
    """Hidden states of a module's output, which is a tensor or a tuple depending on the family."""
    states: Tensor = out[0] if isinstance(out, tuple) else out
    return states


@torch.no_grad()
def moved_by_patching(
    model: nn.Module, modules: Sequence[nn.Module], sources: Questions, targets: Questions, answers: Tensor
) -> float:
    """How often what some modules say at one subject's last token, put into another's question, takes the answer with it.

    The outputs of ``modules`` at the subject's last token of question ``i`` of ``sources`` replace those of question ``i``
    of ``targets``.

    Args:
        model: the model.
        modules: whose outputs move, all at once: a block, or the MLPs of one or several layers.
        sources: questions whose answers are ``answers``.
        targets: the same questions about other subjects, with other answers.
        answers: first token of the sources' answers, ``[N]``.

    Returns:
        Share of the targets that are then answered with the sources' answers (argmax of the next token).
    """
    row = torch.arange(len(sources))
    held: dict[int, Tensor] = {}

    def read(number: int) -> Any:
        def hook(_m: nn.Module, _a: Any, out: Any) -> None:
            held[number] = hidden(out)[row, sources.subject].clone()

        return hook

    def write(number: int) -> Any:
        def hook(_m: nn.Module, _a: Any, out: Any) -> None:
            hidden(out)[row, targets.subject] = held[number]

        return hook

    for hook, questions in ((read, sources), (write, targets)):
        handles = [module.register_forward_hook(hook(number)) for number, module in enumerate(modules)]
        try:
            said = questions.said(model)
        finally:
            for handle in handles:
                handle.remove()
    return (said == answers).float().mean().item()


@torch.no_grad()
def right_without(model: nn.Module, module: nn.Module, questions: Questions, answers: Tensor) -> float:
    """Share of ``questions`` that are answered right while ``module`` says nothing at the subject's last token."""
    row = torch.arange(len(questions))

    def hook(_m: nn.Module, _a: Any, out: Any) -> None:
        hidden(out)[row, questions.subject] = 0.0

    with module.register_forward_hook(hook):
        return (questions.said(model) == answers).float().mean().item()


def spectral_share(model: nn.Module, top: float = 0.05) -> list[float]:
    """Share of the sum of singular values held by the largest ``top`` of them, per down-projection."""
    mlps: list[Any] = [block.mlp for block in blocks(model)]
    downs = [mlp.c_proj if hasattr(mlp, "c_proj") else mlp.down_proj for mlp in mlps]
    return [leading_share(down.weight.detach(), top) for down in downs]
