"""A checkpoint's file: it gives back what was put in, and any other file is refused in a sentence that says what it is."""

import json

import pytest
import torch
from safetensors.torch import save_file

from lit_edit.errors import EditError
from lit_edit.runs.checkpoint_io import SafetensorsCheckpointIO, header, prove

CONTENT = {
    "state_dict": {"a": torch.arange(6.0).view(2, 3), "flags": torch.tensor([True, False])},
    "loops": {"epoch": 3, "names": ["x", None], "pair": (1, (2.5, "y")), 7: "a key that is a number"},
    "lit_edit": {"batches": 2, "mean": torch.ones(1)},
}


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "whole.ckpt"
    SafetensorsCheckpointIO().save_checkpoint(CONTENT, path)
    return path


def refused(path, sentence):
    """By everything that reads."""
    with pytest.raises(EditError, match=sentence):
        prove(path)
    with pytest.raises(EditError, match=sentence):
        SafetensorsCheckpointIO().load_checkpoint(path)


def test_what_was_put_in_comes_out(written):
    found = SafetensorsCheckpointIO().load_checkpoint(written)
    assert found["loops"] == CONTENT["loops"] and type(found["loops"]["pair"]) is tuple
    assert found["state_dict"].keys() == CONTENT["state_dict"].keys()
    for name, value in CONTENT["state_dict"].items():
        assert torch.equal(found["state_dict"][name], value) and found["state_dict"][name].dtype == value.dtype
    assert torch.equal(found["lit_edit"]["mean"], torch.ones(1))
    assert header(written) == prove(written) == {"batches": 2, "mean": None}


def test_a_file_that_is_not_there(tmp_path):
    refused(tmp_path / "none.ckpt", "there is no checkpoint .*none.ckpt")
    refused(tmp_path, "there is no checkpoint")
    with pytest.raises(EditError, match="there is no checkpoint"):
        header(tmp_path / "none.ckpt")


@pytest.mark.parametrize("kept", [0, 7, 8, 40])
def test_a_file_that_ends_in_its_header(written, kept):
    written.write_bytes(written.read_bytes()[:kept])
    refused(written, r"damaged or was not written by lit_edit \(its header is cut off\)")


@pytest.mark.parametrize("text", [b"PK\x03\x04", b"[1, 2]", b'{"__metadata__": 5}'])
def test_a_header_that_is_none(tmp_path, text):
    path = tmp_path / "other.ckpt"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    refused(path, r"damaged or was not written by lit_edit \(its header is no safetensors header\)")


@pytest.mark.parametrize("metadata", [{"format": "pt"}, None])
def test_weights_are_no_checkpoint(tmp_path, metadata):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(2)}, path, metadata)
    refused(path, "model.safetensors is a safetensors file but no checkpoint of lit_edit")


@pytest.mark.parametrize("place", [-1, -20, 200])
def test_one_other_bit_anywhere(written, place):
    content = bytearray(written.read_bytes())
    content[place] ^= 1
    written.write_bytes(content)
    with pytest.raises(EditError, match=r"its checksum does not fit; use an earlier one|no safetensors header"):
        prove(written)


def test_a_file_of_another_version_says_so(written):
    written.write_bytes(written.read_bytes().replace(b"lit_edit-2", b"lit_edit-1"))
    refused(written, r"has the format lit_edit-1, this version reads lit_edit-2; run it anew")


def test_what_is_no_plain_data_is_named_and_the_file_before_stays(written):
    before = written.read_bytes()
    with pytest.raises(TypeError, match=r"^checkpoint/hook is a function"):
        SafetensorsCheckpointIO().save_checkpoint({**CONTENT, "hook": json.dumps}, written)
    assert written.read_bytes() == before


def test_plain_data_survives_the_checkpoint_format(tmp_path):
    given = {"a": (1, [2.5, None, True]), "b": {3: "x", ("k", 1): torch.arange(3)}, "inf": float("inf"), "t": torch.tensor(2.0)}
    io = SafetensorsCheckpointIO()
    io.save_checkpoint(given, tmp_path / "x.ckpt")
    found = io.load_checkpoint(tmp_path / "x.ckpt")
    assert found["a"] == given["a"] and found["b"][3] == "x" and found["inf"] == float("inf")
    assert torch.equal(found["b"][("k", 1)], torch.arange(3)) and float(found["t"]) == 2.0
    with pytest.raises(TypeError, match="checkpoint/f"):
        io.save_checkpoint({"f": print}, tmp_path / "y.ckpt")
    assert not (tmp_path / "y.ckpt").exists()
