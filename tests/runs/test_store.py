"""Artefacts: found again, refused when they belong to something else, never half written."""

import json
import logging
import os

import pytest
import torch

from lit_edit.errors import EditError
from lit_edit.store import Store, fingerprint, write_atomically

IDENTITY = {"kind": "moment", "layer": 3, "weights": "abc"}
TENSORS = {"mean": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(7)}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "deep" / "cache")


def test_round_trip(store):
    assert store.get(IDENTITY) is None
    store.put(IDENTITY, TENSORS)
    found = store.get(IDENTITY)
    assert found.keys() == TENSORS.keys() and all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
    assert store.get({**IDENTITY, "layer": 4}) is None
    assert store.get(dict(reversed(IDENTITY.items()))) is not None  # the order of keys is no difference


@pytest.mark.parametrize("how", ["flip", "cut", "note"])
def test_a_damaged_artefact_is_computed_anew(store, caplog, how):
    path = store.put(IDENTITY, TENSORS)
    if how == "flip":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    else:
        path.with_suffix(".json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert store.get(IDENTITY) is None
    assert str(path) in caplog.text and "anew" in caplog.text
    store.put(IDENTITY, TENSORS)
    assert store.get(IDENTITY) is not None


def test_an_artefact_without_its_note_does_not_count(store):
    store.put(IDENTITY, TENSORS).with_suffix(".json").unlink()
    assert store.get(IDENTITY) is None


def test_another_identity_at_the_address_is_refused(store):
    note = store.put(IDENTITY, TENSORS).with_suffix(".json")
    said = json.loads(note.read_text())
    said["identity"]["weights"] = "xyz"
    note.write_text(json.dumps(said))
    with pytest.raises(EditError, match="another weights"):
        store.get(IDENTITY)


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EditError, match="cannot be written"):
        Store(tmp_path / "file" / "cache").put(IDENTITY, TENSORS)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_content(tmp_path, monkeypatch, step):
    path = tmp_path / "artefact"
    write_atomically(path, b"old")

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(path, b"new and longer")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["artefact"]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_fingerprints_see_names_types_shapes_and_bytes():
    ones = torch.ones(2, 3)
    variants = [
        {"a": ones},
        {"b": ones},
        {"a": ones.double()},
        {"a": ones.reshape(3, 2)},
        {"a": ones * 2},
        {"a": torch.tensor(1.0)},
    ]
    assert len({fingerprint(v) for v in variants}) == len(variants)
    assert fingerprint({"a": ones, "b": 2 * ones}) == fingerprint({"b": 2 * ones.clone(), "a": ones.T.contiguous().T})
