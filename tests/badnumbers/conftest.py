"""Tiny models, what is computed from them once, and a hyper-network of MEND for each."""

from pathlib import Path

import pytest
from tiny import normal, save_tiny, tiny_model

from lit_edit.anatomy import Anatomy
from lit_edit.mend.file import Trained, save_network, weight_hash
from lit_edit.mend.network import HyperNetwork
from lit_edit.passes.gradients import Captured


def prepared(folder: Path, width: int) -> Path:
    """A folder with a GPT-2 of 3 blocks (``model``), a hyper-network for it (``mend``) and room for a cache."""
    save_tiny(folder / "model", "gpt2", n_inner=width)
    anatomy = Anatomy.of(tiny_model("gpt2", n_inner=width))
    network = HyperNetwork({layer: tuple(anatomy.weight(layer).shape) for layer in (0, 1)}, rank=4)
    for layer, (d_out, d_in) in network.shapes.items():
        tokens = Captured(normal(40, d_in, seed=layer).float(), 0.01 * normal(40, d_out, seed=layer + 5).float())
        network.observe({layer: tokens})
    save_network(folder / "mend", network, Trained({layer: weight_hash(anatomy.weight(layer)) for layer in network.layers}))
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """Weights of 32 x 48."""
    return prepared(tmp_path_factory.mktemp("tiny"), 48)


@pytest.fixture(scope="session")
def narrow(tmp_path_factory) -> Path:
    """Weights of 32 x 16: fewer inputs than requests in a batch."""
    return prepared(tmp_path_factory.mktemp("narrow"), 16)


@pytest.fixture(autouse=True, scope="module")
def known():
    """What these models can do is tried out elsewhere, and not at each of a few hundred loads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lit_edit.passes.packing.packs_exactly", lambda *_: True)
        patch.setattr("lit_edit.passes.suffix.continues_exactly", lambda _: True)
        yield
