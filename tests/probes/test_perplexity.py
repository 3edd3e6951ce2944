"""Strided perplexity against one window and a plain sliding loop."""

import json
import math

import pytest
import torch
from helpers import measured, numbers, scorer, state_of, write
from tiny import TEXT

from lit_edit.errors import EditError
from lit_edit.probes import Perplexity
from lit_edit.probes.perplexity import windows

LONG = " ".join(TEXT * 4)


def text_file(tmp_path, *documents, separator="<|doc|>"):
    path = tmp_path / "corpus.txt"
    path.write_text(separator.join(documents), encoding="utf-8")
    return str(path)


def nll_of(model, ids, first):
    """Sum of -log p of the tokens from ``first`` on, from one forward pass over one row."""
    log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(-float(log_p[i - 1, ids[i]]) for i in range(first, len(ids)))


@pytest.mark.parametrize("family_bos", [("gpt2", False), ("llama", True)])
def test_a_text_that_fits_is_one_window(family_bos, tmp_path):
    real = scorer(*family_bos)
    path = text_file(tmp_path, TEXT[0], TEXT[2])
    rows = measured(Perplexity(path, separator="<|doc|>"), real)
    for row, text in zip(rows.tolist(), (TEXT[0], TEXT[2]), strict=True):
        ids, spans = real.encoder.encode(text)
        assert row[0] == pytest.approx(nll_of(real.anatomy.model, ids, 1), rel=1e-5)
        assert row[1] == len(ids) - 1
        assert row[2] == len(text.encode()) - (0 if family_bos[1] else len(text[: spans[0][1]].encode()))
    found = Perplexity(path).summarise(rows)
    nll, tokens, size = rows.sum(0).tolist()
    assert found == {
        "perplexity_per_token/teacher_forced": pytest.approx(math.exp(nll / tokens)),
        "bits_per_byte/teacher_forced": pytest.approx(nll / size / math.log(2)),
    }


@pytest.mark.parametrize(("family", "bos"), [("gpt2", False), ("llama", True)])
@pytest.mark.parametrize(("window", "stride"), [(16, 8), (16, 1), (16, 16), (20, 7), (None, None)])
def test_windows_are_a_plain_sliding_loop(family, bos, window, stride, tmp_path):
    real = scorer(family, bos, positions=48)
    path = text_file(tmp_path, LONG)
    row = measured(Perplexity(path, separator="<|doc|>", window=window, stride=stride), real)[0]
    ids, _ = real.encoder.encode(LONG)
    lead = ids[:1] if bos else []
    body = ids[len(lead) :]
    size = (window or 48) - len(lead)
    step = min(stride or size // 2, size if bos else size - 1)
    done, nll, tokens = 0 if bos else 1, 0.0, 0
    for begin in range(0, len(body), step):
        end = min(begin + size, len(body))
        fresh = end - done
        if fresh > 0:
            part = lead + body[begin:end]
            nll += nll_of(real.anatomy.model, part, len(part) - fresh)
            tokens, done = tokens + fresh, end
    assert tokens == len(body) - (not bos) == row[1]
    assert float(row[0]) == pytest.approx(nll, rel=1e-5)


def test_every_token_is_scored_once_with_enough_before_it():
    for length in range(1, 40):
        for window in range(2, 12):
            for stride in range(1, window):
                found = windows(length, window, stride, 1)
                scored = [i for _, at, end in found for i in range(at, end)]
                assert scored == list(range(1, length))
                assert all(begin < at and end - begin <= window for begin, at, end in found)
                assert all(at - begin >= window - stride for begin, at, end in found[1:])


def test_joined_documents_see_what_stands_before_them(tmp_path):
    real = scorer("llama", True, positions=64)
    documents = [LONG[:300].strip(), "短い東京", LONG[300:500].strip()]
    path = text_file(tmp_path, *documents)
    rows = measured(Perplexity(path, separator="<|doc|>", joined=True), real)
    whole = measured(Perplexity(text_file(tmp_path, "\n\n".join(documents)), separator="<|doc|>"), real)
    assert torch.allclose(rows.sum(0), whole[0], rtol=1e-6) and len(rows) == 3
    assert torch.equal(rows.sum(0)[1:], whole[0, 1:]), "every token and byte belongs to one document"
    assert rows.sum(0)[2] == len("\n\n".join(documents).encode())


def test_max_tokens_cuts_what_is_scored(tmp_path):
    real = scorer("llama", True)
    path = text_file(tmp_path, LONG[:200], LONG[:90])
    for joined in (False, True):
        rows = measured(Perplexity(path, separator="<|doc|>", max_tokens=10, joined=joined), real)
        assert rows[:, 1].tolist() == [10, 10] and (rows[:, 2] < 90).all()


@pytest.mark.parametrize("joined", [False, True])
def test_batches_change_nothing(joined, tmp_path):
    path = text_file(tmp_path, *TEXT, LONG)
    probe = Perplexity(path, separator="<|doc|>", window=24, joined=joined)
    one = measured(probe, scorer("gpt2", positions=48), 1)
    assert torch.allclose(measured(probe, scorer("gpt2", positions=48, tokens_at_once=100), 64), one, rtol=1e-5)
    real = scorer("gpt2", positions=48)
    real.encoder.tokenizer.padding_side = "left"
    try:
        before = state_of(real)
        assert torch.allclose(measured(probe, real, 4), one, rtol=1e-5) and state_of(real) == before
    finally:
        real.encoder.tokenizer.padding_side = "right"


def test_documents_too_short_to_score_and_nothing_at_all():
    probe = Perplexity()
    rows = torch.tensor([[0.0, 0.0, 0.0]], dtype=torch.float64)
    assert all(math.isnan(value) for value in probe.summarise(rows).values())
    assert probe.summarise(torch.tensor([[8000.0, 10.0, 20.0]], dtype=torch.float64))[probe.shown] == math.inf


def test_a_single_token_gives_a_row_of_nothing(tmp_path):
    rows = measured(Perplexity(text_file(tmp_path, "A", TEXT[0]), separator="<|doc|>"), scorer("gpt2"))
    assert rows[0].tolist() == [0, 0, 0] and rows[1, 1] > 0


def test_the_packaged_page():
    probe = Perplexity(limit=3)
    assert len(probe.items()) == 3 and probe.name == "text" and not probe.higher_is_better
    assert numbers(probe, scorer())[probe.shown] > 1


def test_records_and_mistakes(tmp_path):
    path = write(tmp_path / "pages.jsonl", [{"page": "One."}, {"page": "Two."}])
    assert [item.text for item in Perplexity(path, field="page").items()] == ["One.", "Two."]
    (tmp_path / "pages.json").write_text(json.dumps([{"text": "One."}, {"title": "x"}]))
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1"))
    (tmp_path / "blank.txt").write_text(" \n\n ")
    for name, sentence in {
        "pages.json": "row 2, field 'text' is missing; it is the text to score",
        "pages.jsonl": "row 1 has the fields page; the probe text reads records with the fields text",
        "latin.txt": r"is not UTF-8 text \(byte 2\)",
        "blank.txt": "holds no document",
        "none.txt": "cannot be read: No such file",
    }.items():
        with pytest.raises(EditError, match=sentence):
            Perplexity(str(tmp_path / name)).items()
    for options in (
        {"window": 1},
        {"stride": 0},
        {"window": 8, "stride": 9},
        {"separator": ""},
        {"limit": 0},
        {"max_tokens": 0},
    ):
        with pytest.raises(EditError, match=list(options)[-1]):
            Perplexity(**options)


def test_held_out_wikitext(shared):
    path = str(shared / "data" / "corpus" / "wikitext2_test.txt")
    probe = Perplexity(path, separator="<|doc|>", limit=None)
    assert len(probe.items()) > 50
    few = Perplexity(path, separator="<|doc|>", limit=2, max_tokens=60)
    found = numbers(few, scorer("llama", True))
    assert 100 < found["perplexity_per_token/teacher_forced"] < math.inf and found["bits_per_byte/teacher_forced"] > 1
