"""Hyper-networks, gradients and facts for the tests of MEND."""

import itertools
from typing import Any

import torch
from stream import ANSWERS, NAMES
from tiny import normal, tiny_model, tiny_tokenizer

from lit_edit.anatomy import Anatomy
from lit_edit.mend.network import HyperNetwork
from lit_edit.passes.gradients import Captured
from lit_edit.prompts import Encoder
from lit_edit.request import EditRequest

O, I = 6, 10  # noqa: E741
SHAPES = {1: (O, I), 2: (O, I)}


def tokens(count: int, seed: int = 0) -> Captured:
    return Captured(normal(count, I, seed=seed).float() + 0.5, normal(count, O, seed=seed + 50).float() * 0.01)


def ready(**options: Any) -> HyperNetwork:
    """An untrained network whose normaliser has seen two layers."""
    network = HyperNetwork(SHAPES, rank=4, **options)
    network.observe({1: tokens(40, 1), 2: tokens(30, 2)})
    return network.eval()


def disturbed(**options: Any) -> HyperNetwork:
    """One in which every parameter counts."""
    network = ready(**options)
    with torch.no_grad():
        for index, parameter in enumerate(network.parameters()):
            parameter.add_(0.3 * normal(*parameter.shape, seed=index + 7).float())
    return network


def model(family: str = "gpt2") -> tuple[Anatomy, Encoder]:
    anatomy = Anatomy.of(tiny_model(family))
    return anatomy, Encoder(tiny_tokenizer(), anatomy.positions)


def requests(count: int) -> list[EditRequest]:
    """Facts about different people, each with two paraphrases."""
    people = [f"{first} {last}" for first, last in itertools.product(NAMES, ("Lovelace", "Curie", "Berlin", "Sony", "Tower"))]
    return [
        EditRequest(
            "{} was born in", person, ANSWERS[i % 4], ANSWERS[(i + 1) % 4], (f"The home of {person} is", f"{person} is from")
        )
        for i, person in enumerate(people[:count])
    ]
