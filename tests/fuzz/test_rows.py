"""Rows of every schema and files of every kind, damaged at random: used or set aside, and the accounts add up."""

import json
from pathlib import Path

import pytest
from damage import FORMATS, damaged, json_lines, junk, lengthened, scarred, texts
from exploring import explore, plain, sizes, told
from hypothesis import strategies as st
from schemas import ROWS
from tiny import tiny_tokenizer
from transformers import AutoTokenizer

from lit_edit.data import EditStream, JsonLines
from lit_edit.data.ingest import KNOWN
from lit_edit.data.source import _HUB_ID, SUFFIXES, split_where
from lit_edit.errors import EditError, MalformedRecord
from lit_edit.prompts import EditRows, Encoder

ROOT = Path(__file__).resolve().parents[2]
READERS = sorted(ROWS, key=lambda reader: reader.__name__)
readers = st.sampled_from(READERS)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # a real one may be large


def rows_of(reader) -> st.SearchStrategy:
    """A few rows of one schema, most of them damaged; the same fact may stand there twice, and with another answer."""
    return st.lists(
        st.one_of(damaged(ROWS[reader]), damaged(ROWS[reader], 1), st.just(ROWS[reader]), junk), min_size=1, max_size=5
    )


def read(name: str, **arguments) -> EditStream | None:
    """The stream of a file with its promises checked, or ``None`` where the file was refused in a sentence."""
    stream = EditStream(path=name, **arguments)
    try:
        stream.setup()
    except EditError as error:
        told(error, name)
        return None
    requests, aside = len(stream.requests), stream.set_aside
    for row in aside:
        assert row.source.startswith(f"{name}, row ")
        for text in (row.source, row.field, row.reason):
            plain(text)
            assert len(text) < 1200, text
    plain(stream.summary())
    used = {split_where(request.source)[1] for request in stream.requests}
    left = [split_where(row.source)[1] for row in aside]
    assert len(left) == len(set(left)) and used.isdisjoint(left), "a row is used or set aside, never both"
    if arguments.get("limit") is None:
        assert len(used) + len(left) == stream.rows_read
    else:
        assert requests <= arguments["limit"]
    assert requests, "a stream without an edit is refused"
    written = stream.write_set_aside("out")
    lines = [] if written is None else written.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["row"] for line in lines] == left
    return stream


@sizes(150, 3000)
def test_damaged_rows(size):
    """In JSON lines every line that is not blank is a row, so that what was read can be counted without reading it."""

    def check(example):
        reader, rows = example
        content = json_lines([ROWS[reader], *rows, ROWS[reader]])
        Path("facts.jsonl").write_bytes(content)
        stream = read("facts.jsonl", reader=reader())
        assert stream is not None and stream.rows_read == len(rows) + 2
        assert {1, len(rows) + 2} <= {split_where(request.source)[1] for request in stream.requests}
        for request in stream.requests:
            repr(request).encode("utf-8")

    explore(size, readers.flatmap(lambda reader: st.tuples(st.just(reader), rows_of(reader))), check)


@sizes(120, 3000)
def test_damaged_files(size):
    """Formats, schemas and damages mixed; the schema is found by looking."""

    @st.composite
    def files(draw):
        mixed = draw(st.lists(readers, min_size=1, max_size=2))
        rows = [row for reader in mixed for row in draw(rows_of(reader))]
        name = draw(st.sampled_from(list(FORMATS)))
        content = FORMATS[name](rows)
        how = {
            "limit": draw(st.sampled_from([None, None, 1, 3])),
            "strict": draw(st.booleans()),
            "order": draw(st.sampled_from(["file", "shuffled"])),
            "reader": draw(st.sampled_from([None, None, *READERS])),
        }
        return name, draw(st.one_of(st.just(content), scarred(content))), how

    def check(example):
        name, content, how = example
        Path(name).write_bytes(content)
        read(name, **{**how, "reader": None if how["reader"] is None else how["reader"]()})

    explore(size, files(), check)


@sizes(60, 1500)
def test_paths(size):
    """Whatever is given as a path; only what could be the id of a data set would be looked for elsewhere."""
    Path("there").mkdir()
    Path("there.jsonl").write_bytes(json_lines([ROWS[JsonLines]]))
    parts = st.one_of(
        texts,
        st.sampled_from(["there", "there.jsonl", ".jsonl", ".json", ".csv.gz", "/", "..", "~", "~nobody", ":", "*", "x" * 300]),
    )
    paths = (
        st.lists(parts, max_size=4)
        .map("".join)
        .filter(lambda path: not (_HUB_ID.fullmatch(path) and not path.endswith(SUFFIXES)))
    )

    def check(path):
        folder = Path(path.rpartition(":")[0] or path)
        if "\0" in path or len(path) > 100 or not folder.is_dir() or folder.resolve() == Path("there").resolve():
            try:
                EditStream(path=path).setup()
                assert Path(path).name == "there.jsonl"
            except EditError as error:
                told(error)

    explore(size, paths, check)


@sizes(8, 150)
def test_damaged_columns(size):
    """Parquet, which another library reads."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"prompt": "{} is in", "subject": "Ann", "target": "Rome"}] * 3), "whole.parquet"
    )

    def check(content):
        Path("facts.parquet").write_bytes(content)
        read("facts.parquet")

    explore(size, scarred(Path("whole.parquet").read_bytes()), check)


@sizes(100, 2500)
def test_what_gets_through_can_be_tokenised_or_is_named(size):
    """Subject, target and prompt are texts of any kind here, which mostly do name each other."""
    shipped = [AutoTokenizer.from_pretrained(ROOT / "checkpoints" / name) for name in ("world-gpt2", "world-llama")]
    encoders = [Encoder(tokenizer, longest=128) for tokenizer in (tiny_tokenizer(), tiny_tokenizer(bos=True), *shipped)]
    some = st.one_of(texts, texts, st.sampled_from(["@long:2000", "so long " * 30]))
    seen = {EditRows: 0, MalformedRecord: 0}

    @st.composite
    def requests(draw):
        subject, target, other = (lengthened(draw(some)) for _ in range(3))
        prompt = draw(st.sampled_from(["{}", f"{subject}", f"Is {subject} in {subject}?", f"{{}}{other}", f"{other} {{}} is"]))
        row = {**ROWS[JsonLines], "prompt": prompt, "subject": subject, "target": target}
        try:
            return JsonLines().requests(row, "facts.jsonl, row 1", 1)
        except MalformedRecord:
            return ()

    def encoded(rows):
        try:
            found = rows()
        except MalformedRecord as error:
            told(error)
            seen[MalformedRecord] += 1
            return
        seen[EditRows] += 1
        for one in found.rewriting:
            assert 0 <= one.subject < len(one.ids) < 128 and one.labels
            assert all(one.subject <= position < len(one.ids) for position, _ in one.labels)

    def check(example):
        for request in example:
            for encoder in encoders:
                encoded(lambda: encoder.rows(request, ["In short. {}"]))  # noqa: B023 (called at once)
                encoded(lambda: encoder.answer_rows(request))  # noqa: B023

    explore(size, requests(), check)
    assert seen[EditRows] > seen[MalformedRecord] > 0, seen


def test_every_schema_is_damaged():
    assert set(READERS) == set(KNOWN)
