"""A model cut over two ranks: the same bits as a whole one, in every family and under every editor that can work so."""

from __future__ import annotations

import pytest
import torch
from rig import compare, left_behind
from streams import Streams, equal
from tiny import save_tiny

from lit_edit.errors import EditError
from lit_edit.parallel.sharding import check_device

SHARDED = ("--trainer.strategy", "sharded")
OLD = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8)  # cannot cut models on CPUs
cuts = pytest.mark.skipif(OLD, reason="needs torch 2.8 or newer")


@pytest.fixture(scope="module")
def streams(forks, tmp_path_factory):
    return Streams.build(tmp_path_factory.mktemp("sharded"), forks)


def same(streams, name, *more):
    """One rank with a whole model, and two with a half each, leave the same behind."""
    whole = streams.ended(1, f"{name}-whole", *more)[0]
    for held in streams.ended(2, f"{name}-halves", *more, *SHARDED, "--trainer.callbacks+=meddlers.Halves"):
        equal(held, whole)
    compare(*(left_behind(streams.folder / f"{name}-{how}" / "run") for how in ("halves", "whole")))


@cuts
def test_a_model_cut_in_two_is_edited_bit_by_bit_like_a_whole_one(streams):
    same(streams, "gpt2")


@cuts
@pytest.mark.slow
def test_a_sharded_run_goes_on_replicated_and_the_other_way_round(streams):
    apart = ("--model.targets.requests_at_once", "1")
    for size, more, batch in ((2, SHARDED, 2), (2, (), 1)):
        answer = streams.over(size, "relay", *more, *apart, of=1, at=["batch: before its step", batch])
        assert answer["codes"] == [2, -9], streams.heard("relay", 0)
    whole = streams.ended(1, "apart", *apart)[0]
    for held in streams.ended(3, "relay", *SHARDED, *apart):
        equal(held, whole)


@pytest.mark.parametrize(("version", "said"), [("2.6.0", "2.6.0"), ("2.7.1+cpu", "2.7.1")])
def test_an_old_torch_cannot_cut_models_on_cpus(version, said):
    with pytest.raises(EditError, match=f"sharded on CPUs needs torch 2.8 or newer, and this is {said}"):
        check_device(torch.device("cpu"), version)


@pytest.mark.parametrize(
    ("device", "version"), [("cuda", "2.6.0"), ("cpu", "2.8.0"), ("cpu", "2.13.0+cpu"), ("cpu", "3.0.0a0")]
)
def test_others_can(device, version):
    check_device(torch.device(device), version)


@pytest.mark.skipif(not OLD, reason="needs torch before 2.8")
def test_a_run_says_so(streams):
    answer = streams.over(2, "old", *SHARDED)
    assert answer["codes"] == [2, 2] and "needs torch 2.8 or newer" in streams.heard("old", 0), streams.heard("old", 0)


@cuts
def test_an_editor_that_trains_parameters_is_refused(streams):
    answer = streams.over(2, "ft", "--model.editor", "FT", *SHARDED)
    assert answer["codes"] == [2, 2]
    assert "FT trains whole parameters of the model" in streams.heard("ft", 0), streams.heard("ft", 0)


@cuts
@pytest.mark.slow
@pytest.mark.parametrize(
    "family", ["gptj", "gpt_neox", "llama", "qwen2", "mistral", "phi3", "gemma2", "gemma3_text", "opt", "mpt"]
)
def test_every_family_can_be_cut(streams, family):
    save_tiny(streams.folder / family, family, bos=family == "llama")
    same(streams, f"family-{family}", "--model.pretrained", str(streams.folder / family))


EDITORS = (
    "AlphaEdit",
    "BetaEdit",
    "DeltaEdit",
    "EMMET",
    "ENCORE",
    "EvoEdit",
    "LyapLock",
    "NSE",
    "RLSEdit",
    "ROME",
    "UltraEdit",
    "FT",
)
OPTIONS = {"ROME": ("--model.layers", "[1]"), "AlphaEdit": ("--model.editor.threshold", "0.5")}


@pytest.mark.slow
@pytest.mark.parametrize("editor", EDITORS)
def test_every_editor_works_over_ranks(streams, editor):
    more = ("--model.editor", editor, *OPTIONS.get(editor, ()), "--model.targets.requests_at_once", "1")
    whole = streams.ended(1, editor, *more)[0]
    for held in streams.ended(2, f"{editor}-2", *more):
        equal(held, whole)
    if editor != "FT" and not OLD:
        for held in streams.ended(2, f"{editor}-halves", *more, *SHARDED):
            equal(held, whole)
