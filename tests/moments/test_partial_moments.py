"""An interrupted pass over the corpus goes on where it was, to the last bit; what is known of the result is told."""

import json
import logging

import pytest
import torch

from lit_edit import moments
from lit_edit.anatomy import Anatomy
from lit_edit.corpus import TextCorpus
from lit_edit.errors import EditError
from lit_edit.prompts import Encoder
from lit_edit.statistics import convergence, preparation
from lit_edit.statistics.partial import Partial
from lit_edit.statistics.preparation import second_moments
from lit_edit.statistics.whole_documents import WholeDocuments
from lit_edit.store import Store
from tests.tiny import TEXT, tiny_model, tiny_tokenizer

LAYERS = (0, 1)


class Crash(Exception):
    """Whatever ends a run."""


@pytest.fixture(scope="module")
def anatomy():
    return Anatomy.of(tiny_model("gpt2"))


@pytest.fixture
def often(monkeypatch):
    """Small windows and batches, saved after every one of them."""
    monkeypatch.setattr(moments, "WINDOW", 4)
    monkeypatch.setattr(preparation, "_AT_ONCE", 64)
    monkeypatch.setattr(Partial, "due", lambda self: True)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"{n} {TEXT[n % 5]} {TEXT[n % 3]}"[: 20 + 7 * (n % 11)] for n in range(60)))
    return TextCorpus([str(path)])


def run(anatomy, corpus, store, tokens=700, stop_at=None, say=lambda _: None):
    told = []

    def tell(phase, done, total):
        told.append((done, total))
        if stop_at is not None and done >= stop_at:
            raise Crash

    found = second_moments(anatomy, Encoder(tiny_tokenizer()), LAYERS, corpus, tokens, store, tell, None, say)
    return found, told


def kept(store):
    return sorted(path.suffix for path in (store.folder / "second-moment-partial").glob("*"))


def same(one, other):
    for layer in LAYERS:
        assert torch.equal(one[layer].mean, other[layer].mean)
        told = [(moment.count, moment.change, moment.effective) for moment in (one[layer], other[layer])]
        assert str(told[0]) == str(told[1])  # the change of a single document is not a number, which equals nothing


@pytest.mark.parametrize("stop_at", [1, 300, 600])
def test_an_interrupted_pass_goes_on_to_the_same_bits(anatomy, corpus, tmp_path, often, stop_at):
    whole, told = run(anatomy, corpus, Store(tmp_path / "whole"))
    assert kept(Store(tmp_path / "whole")) == [] and len(told) > 10
    store = Store(tmp_path / "cut")
    with pytest.raises(Crash):
        run(anatomy, corpus, store, stop_at=stop_at)
    assert kept(store) == [".json", ".safetensors"]
    ran = []
    handle = anatomy.blocks[0].register_forward_pre_hook(lambda *_: ran.append(1))
    try:
        again, later = run(anatomy, corpus, store)
    finally:
        handle.remove()
    assert len(ran) < len(told) and later[-1] == told[-1] == (700, 700)
    assert len(ran) + (len(told) - len(later)) == len(told) - 1  # what was told as done was not run again
    same(whole, again)
    assert kept(store) == []


def test_twice_interrupted(anatomy, corpus, tmp_path, often):
    whole, _ = run(anatomy, corpus, Store(tmp_path / "whole"))
    store = Store(tmp_path / "cut")
    for stop_at in (200, 500):
        with pytest.raises(Crash):
            run(anatomy, corpus, store, stop_at=stop_at)
    same(whole, run(anatomy, corpus, store)[0])


def test_a_damaged_partial_is_ignored(anatomy, corpus, tmp_path, often, caplog):
    store = Store(tmp_path / "cut")
    with pytest.raises(Crash):
        run(anatomy, corpus, store, stop_at=300)
    (path,) = (store.folder / "second-moment-partial").glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        found, told = run(anatomy, corpus, store)
    assert "damaged" in caplog.text and told[0][0] < 100
    same(found, run(anatomy, corpus, Store(tmp_path / "whole"))[0])


@pytest.mark.parametrize("left", [0, 3, 59])
def test_a_corpus_that_has_become_another_one_starts_over(anatomy, corpus, tmp_path, often, caplog, monkeypatch, left):
    store = Store(tmp_path / "cut")
    with pytest.raises(Crash):
        run(anatomy, corpus, store, stop_at=300)
    plain, texts = TextCorpus.identity(corpus), list(corpus.documents())
    monkeypatch.setattr(corpus, "identity", lambda: plain)  # it does not know
    monkeypatch.setattr(corpus, "documents", lambda: iter([*texts[:left], "Something else entirely is seen here."]))
    with caplog.at_level(logging.WARNING):
        found, _ = run(anatomy, corpus, store)
    changed = "starting over" in caplog.text
    assert changed == (left < 59)  # the change may lie behind what was used
    same(found, run(anatomy, corpus, Store(tmp_path / "whole"))[0])


def test_saving_takes_little_of_the_time_and_may_fail(tmp_path, caplog):
    now = [0.0]
    partial = Partial(Store(tmp_path / "file"), {"kind": "x"}, seconds=10, clock=lambda: now[0])
    assert not partial.due()
    now[0] = 10.0
    assert partial.due()

    class Slow(Store):
        def put(self, *_):
            now[0] += 30

    partial.store = Slow(tmp_path)
    partial.save({})
    assert not partial.due()
    now[0] = 40 + 599
    assert not partial.due()
    now[0] = 40 + 601
    assert partial.due()

    (tmp_path / "file").write_text("in the way")
    partial.store = Store(tmp_path / "file")
    with caplog.at_level(logging.WARNING):
        partial.save({"a": torch.ones(1)})
    assert "cannot be written" in caplog.text and not partial.due()


def test_a_moment_is_kept_with_how_well_it_is_known(anatomy, corpus, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(convergence, "ENOUGH", 0.01)
    store, said = Store(tmp_path / "cache"), []
    with caplog.at_level(logging.WARNING):
        found, _ = run(anatomy, corpus, store, tokens=200, say=said.append)
    assert len(said) == 1 and "200 tokens" in said[0] and "layers 0, 1" in said[0]
    assert 0.01 < max(m.change for m in found.values()) < 1
    (warned,) = [r.getMessage() for r in caplog.records]
    wanted = int(warned.partition("--model.moment_tokens ")[2].split()[0])
    assert wanted == pytest.approx(200 * (max(m.change for m in found.values()) / 0.01) ** 2, abs=1)
    for path in (store.folder / "second-moment").glob("*.json"):
        note = json.loads(path.read_text())
        moment = found[note["identity"]["layer"]]
        assert note["about"] == {
            "tokens": 200,
            "convergence": pytest.approx(moment.change),
            "effective_tokens": pytest.approx(moment.effective),
        }
    again, told = run(anatomy, corpus, store, tokens=200)
    assert not told and again[0].change == pytest.approx(found[0].change) and again[0].count == 200
    caplog.clear()
    monkeypatch.setattr(convergence, "ENOUGH", 1e-6)
    run(anatomy, corpus, Store(tmp_path / "more"), tokens=10**6)  # more than there is
    assert "a larger --model.corpus" in caplog.text


def test_whole_documents_are_used_to_the_last_token(anatomy, corpus, tmp_path):
    encoder = Encoder(tiny_tokenizer())
    lengths = [len(encoder.encode(text)[0]) for text in corpus.documents()]
    corpus.max_tokens = 2  # does not apply
    some = WholeDocuments(20, corpus)
    found, told = run(anatomy, some, Store(tmp_path / "a"), tokens=None)
    assert found[0].count == sum(lengths[:20]) == told[-1][0] == told[-1][1]
    found, _ = run(anatomy, WholeDocuments(corpus=corpus, max_tokens=5), Store(tmp_path / "b"), tokens=None)
    assert found[0].count == sum(min(5, n) for n in lengths)
    found, _ = run(anatomy, some, Store(tmp_path / "c"), tokens=33)
    assert found[0].count == 33
    assert WholeDocuments().count == 100_000 and type(WholeDocuments().corpus).__name__ == "HubCorpus"
    names = [json.dumps(WholeDocuments(n, corpus, m).identity()) for n, m in ((20, None), (21, None), (20, 5))]
    assert len(set(names)) == 3
    with pytest.raises(EditError, match="at least one document"):
        WholeDocuments(0, corpus)
