"""Runs that all tests of this folder share."""

import shutil

import pytest
from exported import Fading, Ran, make

from lit_edit.__main__ import main
from lit_edit.guards import PRUNE


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory):
    """Five batches, checkpoints and validations behind 2, 4 and 5; embeddings tied, edited weights stored ``[d_in, d_out]``."""
    folder = tmp_path_factory.mktemp("gpt2")
    return make(folder, "gpt2", "float32", 10, "--model.editor.lam", "100", "--trainer.val_check_interval", "2")


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """Two batches on a bfloat16 model whose tokenizer begins with a token of its own."""
    folder = tmp_path_factory.mktemp("llama")
    return make(folder, "llama", "bfloat16", 4, "--model.editor.lam", "1", "--baseline", "false", bos=True)


@pytest.fixture(scope="session")
def prune(tmp_path_factory):
    """Two batches whose change outgrows the weights, so that PRUNE shows evaluation others."""
    options = ("--model.editor.lam", "0.001", "--model.guards", "[PRUNE]", "--baseline", "false")
    return make(tmp_path_factory.mktemp("prune"), "gpt2", "float32", 4, *options, guards=(PRUNE,))


@pytest.fixture(scope="session")
def fading(tmp_path_factory):
    """Two batches under a guard that is none of the project's; a checkpoint behind both of them only."""
    options = ("--model.editor.lam", "10", "--model.guards", "[exported.Fading]", "--baseline", "false")
    return make(tmp_path_factory.mktemp("fading"), "gpt2", "float32", 4, *options, guards=(Fading,))


@pytest.fixture
def copied(gpt2, tmp_path):
    """A copy of the first run, to be damaged."""
    shutil.copytree(gpt2.folder, tmp_path / "run")
    return Ran(tmp_path / "run", gpt2.pretrained, gpt2.dtype)


@pytest.fixture
def export():
    """The verb; returns its exit code."""
    return lambda *arguments: main(["export", *map(str, arguments)])
