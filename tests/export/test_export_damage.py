"""Exported edits that were cut off, altered or made up: refused in a sentence, and nothing outside is read."""

import hashlib
import json
import os
import random
import shutil

import pytest
import torch
from exported import same, weights
from safetensors.torch import load_file, save

import lit_edit
from lit_edit.errors import EditError
from lit_edit.export.changes import Change
from lit_edit.export.reading import CONFIG, TENSORS


@pytest.fixture(scope="module")
def made(gpt2, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "delta"
    lit_edit.export_model(gpt2.folder, folder, "delta")
    return folder


@pytest.fixture
def delta(made, tmp_path):
    return shutil.copytree(made, tmp_path / "delta")


def wrong(folder):
    with pytest.raises(EditError) as caught:
        lit_edit.EditDelta.load(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)


def say(folder, change):
    """Change what the configuration says."""
    said = json.loads((folder / CONFIG).read_text())
    change(said)
    (folder / CONFIG).write_text(json.dumps(said))


def put(folder, change):
    """Change tensors and name their hash, as somebody would who wants to be believed."""
    tensors = load_file(folder / TENSORS)
    change(tensors)
    data = save(tensors)
    (folder / TENSORS).write_bytes(data)
    say(folder, lambda said: said.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))


def test_missing_files_are_named(delta, tmp_path):
    assert "there is no folder" in wrong(tmp_path / "nowhere")
    assert f"{CONFIG} is missing" in wrong(tmp_path)
    (delta / TENSORS).unlink()
    assert f"{TENSORS} is missing, and {CONFIG} needs it" in wrong(delta)


def test_every_flipped_bit_of_the_tensors_is_noticed(delta):
    whole, draw = (delta / TENSORS).read_bytes(), random.Random(0)
    for at in [*range(16), *(draw.randrange(len(whole)) for _ in range(150))]:
        (delta / TENSORS).write_bytes(whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :])
        assert f"{TENSORS} is damaged: its SHA-256" in wrong(delta)
    for length in (0, 5, 8, 100, len(whole) - 1):
        (delta / TENSORS).write_bytes(whole[:length])
        assert f"it has {length} bytes" in wrong(delta)


def test_a_flipped_bit_of_the_configuration_never_gives_other_weights(delta, gpt2):
    """It is refused as it is read, or as it is applied, or it was in a text that decides nothing."""
    whole, draw, wanted, base = (delta / CONFIG).read_bytes(), random.Random(1), gpt2.edited()[0], gpt2.base()
    before, outcomes = weights(base), {"refused": 0, "harmless": 0}
    end = whole.index(b'"scores"')
    places = [draw.randrange(len(whole)) for _ in range(60)] + [draw.randrange(end) for _ in range(40)]
    places += [whole.index(b'"layers"') + draw.randrange(len(whole) - whole.index(b'"layers"')) for _ in range(100)]
    for at in places:
        (delta / CONFIG).write_bytes(whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :])
        try:
            edit = lit_edit.EditDelta.load(delta)
            edit.apply(base)
        except EditError as error:
            outcomes["refused"] += 1
            assert same(weights(base), before) and "\n" not in str(error)
        else:
            outcomes["harmless"] += 1
            assert same(weights(base), wanted)
            edit.unapply(base)
    assert outcomes["refused"] > 50 and outcomes["harmless"] > 5


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.update(format=99), "has format 99, this version reads 2"),
        (lambda s: s.update(format=True), "has format True, this version reads 2"),
        (lambda s: s.pop("format"), "has format None"),
        (lambda s: s.update(file="../../secret.safetensors"), f"names another file than {TENSORS}"),
        (lambda s: s.update(file="/etc/passwd"), f"names another file than {TENSORS}"),
        (lambda s: s.update(sha256="0" * 64), "its SHA-256 is not the one"),
        (lambda s: s.update(sha256=3), "sha256 is 3 instead of a text"),
        (lambda s: s.update(bytes=-1), "cannot have -1 bytes"),
        (lambda s: s.update(bytes=10**20), "bytes is 100000000000000000000 instead of a whole number"),
        (lambda s: s.update(dtype=None), "dtype is None instead of a text"),
        (lambda s: s.pop("base_model_name_or_path"), "it has no base_model_name_or_path"),
        (lambda s: s.update(layers={}), "names no edited layers"),
        (lambda s: s.update(layers=[1]), "names no edited layers"),
        (lambda s: s["layers"].update({"../0": s["layers"]["0"]}), "names no edited layers by their numbers"),
        (lambda s: s["layers"].update({"00": s["layers"]["0"]}), "names no edited layers by their numbers"),
        (lambda s: s["layers"].pop("1"), "is in it or in edit_config.json, but not in both"),
        (lambda s: s["layers"].update({"7": s["layers"]["0"]}), "but not in both"),
        (lambda s: s["layers"]["0"].update(weight="../../../etc/passwd"), "layer 0 has a name that no weight has"),
        (lambda s: s["layers"]["0"].update(weight="a..b.weight"), "a name that no weight has"),
        (lambda s: s["layers"]["0"].update(weight="__class__.__init__"), "a name that no weight has"),
        (lambda s: s["layers"]["0"].update(weight="a.weight\n"), "a name that no weight has"),
        (lambda s: s["layers"]["0"].update(weight="a." * 5000 + "weight"), "a name that no weight has"),
        (lambda s: s["layers"]["0"].update(shape=[32]), "instead of a list of 2"),
        (lambda s: s["layers"]["0"].update(shape=[32, -128]), "a shape that no weight has"),
        (lambda s: s["layers"]["0"].update(shape=[2**40, 2**40]), "a shape that no weight has"),
        (lambda s: s["layers"]["0"].update(shape=[128, 32]), "holds left as"),
        (lambda s: s["layers"]["0"].update(form="pickle"), "a form that is none of none, factors, dense"),
        (lambda s: s["layers"]["0"].update(form="dense"), "a number of steps that its form cannot have"),
        (lambda s: s["layers"]["0"].update(form="dense", steps=1), "but not in both"),
        (lambda s: s["layers"]["0"].update(form="none", steps=0), "but not in both"),
        (lambda s: s["layers"]["0"].update(steps=4), "but not in both"),
        (lambda s: s["layers"]["0"].update(steps=10**9), "a number of steps"),
        (lambda s: s["layers"]["0"].update(edited_sha256="x"), "something else than a SHA-256"),
        (lambda s: s["layers"]["0"].pop("transposed"), "it has no layers.0.transposed"),
    ],
)
def test_what_the_configuration_may_not_say(delta, change, told):
    say(delta, change)
    assert told in wrong(delta)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", "Expecting value"),
        (b"[" * 200_000, "nested too deep"),
        (b'{"a":' * 200_000 + b"1" + b"}" * 200_000, "nested too deep"),
        (b"[1]", "has format None"),
        (b"1" * 100_000, "is damaged"),
        (b'{"format": 1, "layers": NaN}', "NaN, which is no number of JSON"),
        (b'{"format": Infinity}', "Infinity, which is no number of JSON"),
        (b"\xff\xfe\x00", "is damaged"),
        (b" " * (2**22 + 1), "at most 4194304"),
    ],
)
def test_what_is_no_configuration(delta, text, told):
    (delta / CONFIG).write_bytes(text)
    assert told in wrong(delta)


def test_a_deep_value_that_nobody_reads_does_no_harm(delta):
    say(delta, lambda said: said.update(guards=json.loads("[" * 500 + "]" * 500)))
    assert set(lit_edit.EditDelta.load(delta).layers) == {0, 1}


@pytest.mark.parametrize("length", [2**25 + 1, 2**40, 2**63, 2**64 - 1])
def test_a_header_that_is_too_large_is_not_read(delta, length):
    data = length.to_bytes(8, "little") + (delta / TENSORS).read_bytes()[8:]
    (delta / TENSORS).write_bytes(data)
    say(delta, lambda said: said.update(sha256=hashlib.sha256(data).hexdigest()))
    assert f"its header claims {length} bytes, at most 33554432 are read" in wrong(delta)


@pytest.mark.parametrize(
    "head",
    [
        b"[" * 5000,
        b"{}" * 10,
        b'{"a":' * 2000,
        b'{"0.0.left":{"dtype":"F32","shape":[9999999999,9999999999],"data_offsets":[0,8]}}',
    ],
)
def test_a_header_that_is_a_bomb_is_refused(delta, head):
    data = len(head).to_bytes(8, "little") + head + bytes(64)
    (delta / TENSORS).write_bytes(data)
    say(delta, lambda said: said.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))
    assert "is damaged or no safetensors file" in wrong(delta)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.update({"0.0.left": t["0.0.left"].double()}), "holds left as float64"),
        (lambda t: t.update({"0.0.left": t["0.0.left"].view(-1)}), "holds left as int32 [64]"),
        (lambda t: t.update({"0.0.right": t["0.0.right"][:1]}), "holds right as int32 [1, 128]"),
        (lambda t: t.update({"0.0.right_low": t["0.0.right_low"].float()}), "holds right_low as float32"),
        (lambda t: t.update({"0.1.left_exponent": t["0.1.left_exponent"] + 2000}), "holds an exponent in left beyond 320"),
        (lambda t: t.update({"1.0.patch_at": torch.tensor([4096], dtype=torch.int32), "1.0.patch_weight": torch.zeros(1)}),
         "patches a number outside the 4096"),
        (lambda t: t.update({"1.0.patch_at": torch.tensor([-1], dtype=torch.int32), "1.0.patch_weight": torch.zeros(1)}),
         "patches a number outside the 4096"),
        (lambda t: t.update({"1.0.patch_weight": torch.zeros(4000)}), "holds patch_weight as float32 [4000]"),
        (lambda t: t.pop("0.0.left"), "'0.0.left' is in it or in"),
        (lambda t: t.update({"../../0.0.left": torch.zeros(1)}), "'../../0.0.left' is in it or in"),
    ],
)  # fmt: skip
def test_tensors_of_another_form_are_refused_whatever_their_hash(delta, change, told):
    put(delta, change)
    assert told in wrong(delta)


@pytest.mark.parametrize(
    ("xor", "told"),
    [
        (torch.zeros(3, 4), "holds xor as float32"),
        (torch.zeros(4, 3, dtype=torch.int32), r"holds xor as int32 \[4, 3\]"),
        (torch.zeros(12, dtype=torch.int32), r"holds xor as int32 \[12\]"),
    ],
)
def test_a_dense_change_of_another_form_is_refused(xor, told):
    Change("dense", ({"xor": torch.zeros(3, 4, dtype=torch.int32)},)).check(3, 4)
    with pytest.raises(EditError, match=told):
        Change("dense", ({"xor": xor},)).check(3, 4)
    with pytest.raises(EditError, match="holds left for a step; it has to be xor"):
        Change("dense", ({"left": xor},)).check(3, 4)


def test_numbers_that_are_not_those_of_the_edit_are_refused_as_it_is_applied(delta, gpt2):
    put(delta, lambda tensors: tensors["1.2.left"].mul_(2))
    model = gpt2.base()
    before = weights(model)
    with pytest.raises(EditError, match="does not give the weights whose hash it names for layer 1"):
        lit_edit.EditDelta.load(delta).apply(model)
    assert same(weights(model), before)


def test_links_that_lead_out_are_not_followed(delta, tmp_path):
    for name in (TENSORS, CONFIG):
        (tmp_path / name).write_bytes((delta / name).read_bytes())
        (delta / name).unlink()
        (delta / name).symlink_to(tmp_path / name)
        assert "leads out of the folder" in wrong(delta)
    (delta / CONFIG).unlink()
    os.mkfifo(delta / CONFIG)
    assert "is missing" in wrong(delta)
