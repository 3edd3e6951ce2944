"""Every reader, through a file: a bad row is one sentence with file, row and field, and costs nothing else."""

import copy
import json
from pathlib import Path

import pytest
from schemas import MEASURES, PATHS, ROWS

from lit_edit.data import EditStream, MQuAKE
from lit_edit.data.ingest import KNOWN
from lit_edit.errors import EditError, MalformedRecord

READERS = sorted(ROWS, key=lambda reader: reader.__name__)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def changed(reader, path, value):
    row = copy.deepcopy(ROWS[reader])
    *steps, last = path.replace("[", ".[").split(".")
    here = row
    for step in steps:
        here = here[int(step[1:-1])] if step.startswith("[") else here[step]
    here[int(last[1:-1]) if last.startswith("[") else last] = value
    return row


def stream_of(reader, *rows, **arguments):
    """Two good rows around the given ones."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in (ROWS[reader], *rows, ROWS[reader])]
    Path("facts.jsonl").write_bytes(b"\n".join(lines))
    stream = EditStream(path="facts.jsonl", **arguments)
    stream.setup()
    return stream


def set_aside(stream):
    """The only row set aside; all others are in the stream."""
    assert len(stream.requests) == 2
    (row,) = stream.set_aside
    assert row.source == "facts.jsonl, row 2"
    return row.field, row.reason


def test_every_schema_is_here_and_is_recognised():
    assert set(ROWS) == set(KNOWN)
    for reader, row in ROWS.items():
        assert next(known for known in KNOWN if known.recognises(row)) is reader


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_target(reader, empty):
    field = PATHS[reader][1]
    assert set_aside(stream_of(reader, changed(reader, field, empty))) == (field, "is empty; it is the answer to write")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("which", [0, 2])
def test_an_empty_subject_or_prompt(reader, which):
    field = PATHS[reader][which]
    found = set_aside(stream_of(reader, changed(reader, field, "")))
    assert found[0] == field
    assert found[1].startswith("is empty; it is ")


@pytest.mark.parametrize("reader", READERS)
def test_a_subject_that_is_not_in_its_prompt(reader):
    subject, _, prompt = PATHS[reader]
    assert set_aside(stream_of(reader, changed(reader, prompt, "Carl is in"))) == (
        subject,
        f"'Ann' does not occur in the {prompt} 'Carl is in'; spell it as the prompt does",
    )


@pytest.mark.parametrize("reader", READERS)
def test_a_row_without_anything_to_be_scored_on_is_used(reader):
    row = {name: value for name, value in ROWS[reader].items() if name not in MEASURES[reader]}
    stream = EditStream(path="facts.jsonl", reader=reader())
    Path("facts.jsonl").write_text(json.dumps(row))
    stream.setup()
    (request,) = stream.requests
    assert request.text.lower().replace("?", "") in ("ann is in", "where is ann")
    assert request.target_new == "Rome"
    scored = (request.neighbourhood, request.portability, request.locality, request.generation_prompts)
    assert not any(scored)
    assert reader is MQuAKE or not request.paraphrases


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("which", [0, 1])
def test_a_row_that_is_not_utf8(reader, which):
    field = PATHS[reader][which]
    row = json.dumps(changed(reader, field, "caf#")).encode().replace(b"#", b"\xe9")
    assert set_aside(stream_of(reader, row)) == (
        field,
        "is not UTF-8 text (byte 0xe9 at character 4); save the file as UTF-8",
    )
    with pytest.raises(EditError) as caught:
        stream_of(reader, row, strict=True)
    assert str(caught.value) == (
        f"facts.jsonl, row 2: field '{field}' is not UTF-8 text (byte 0xe9 at character 4); save the file as UTF-8. "
        "(Without strict, such rows are set aside and the stream goes on.)"
    )


def leaves(value, path=""):
    """All texts and numbers of a record, with their paths."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from leaves(item, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from leaves(item, f"{path}[{i}]")
    yield path, value


@pytest.mark.parametrize("reader", READERS)
def test_no_text_that_is_not_utf8_gets_into_a_request(reader):
    unused = {"alt", "requested_rewrite.question"}
    for path, value in leaves(ROWS[reader]):
        if isinstance(value, str) and path not in unused:
            row = json.dumps(changed(reader, path, value + "#")).encode().replace(b"#", b"\xe9")
            assert set_aside(stream_of(reader, row))[0].startswith(path.split("[")[0]), path


JUNK = [None, True, 3, 2.5, "", " ", "x", "{}", "\ud83c", [], [None], [[]], [""], ["x"], [3], [[["x"]]], [{}], {}, {"x": "y"}]
JUNK += [{"x": None}, {"x": [3]}, {"x": [{}]}, {"str": "x"}, {"str": 3}, {"prompt": []}, [["a", "b", ["c"]]], [["a", "b"]]]


@pytest.mark.parametrize("reader", READERS)
def test_whatever_stands_in_a_field_the_row_is_used_or_set_aside_with_a_sentence(reader):
    tried = 0
    for path, _ in leaves(ROWS[reader]):
        if not path:
            continue
        for junk in JUNK:
            try:
                requests = reader().requests(changed(reader, path, junk), "facts.jsonl, row 2", 2)
            except MalformedRecord as error:
                assert error.field and error.reason and "\n" not in error.reason, (path, junk)
                str(error).encode("utf-8")  # it can be printed
            else:
                assert requests, (path, junk)
                repr(requests).encode("utf-8")
            tried += 1
    assert tried >= 7 * len(JUNK)


@pytest.mark.parametrize("reader", READERS)
def test_a_missing_field_is_used_or_set_aside_with_a_sentence(reader):
    for name in ROWS[reader]:
        row = {key: value for key, value in ROWS[reader].items() if key != name}
        try:
            reader().requests(row, "s", 2)
        except MalformedRecord as error:
            assert error.reason.startswith(("is missing; it is", "has "))


@pytest.mark.parametrize("reader", READERS)
def test_a_file_with_nothing_but_bad_rows_says_so_in_one_sentence(reader):
    field = PATHS[reader][1]
    Path("facts.jsonl").write_text(json.dumps(changed(reader, field, "")) + "\n")
    with pytest.raises(EditError) as caught:
        EditStream(path="facts.jsonl").setup()
    assert str(caught.value) == (
        "facts.jsonl has no usable row, all 1 were set aside; the first of them: "
        f"facts.jsonl, row 1: field '{field}' is empty; it is the answer to write."
    )


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_a_file_in_latin_1_loses_only_the_rows_with_foreign_letters(suffix):
    rows = [{"prompt": "{} is in", "subject": name, "target": "Rome"} for name in ("Ann", "José", "Bo")]
    content = {
        ".json": json.dumps(rows, ensure_ascii=False),
        ".jsonl": "\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
        ".csv": "prompt,subject,target\n" + "".join(f"{{}} is in,{row['subject']},Rome\n" for row in rows),
    }[suffix]
    path = Path(f"facts{suffix}")
    path.write_bytes(content.encode("latin-1"))
    stream = EditStream(path=str(path))
    stream.setup()
    assert [request.subject for request in stream.requests] == ["Ann", "Bo"]
    assert [(row.source, row.field, row.reason) for row in stream.set_aside] == [
        (f"facts{suffix}, row 2", "subject", "is not UTF-8 text (byte 0xe9 at character 4); save the file as UTF-8")
    ]
    written = stream.write_set_aside("logs")
    assert json.loads(written.read_text(encoding="utf-8"))["record"]["subject"] == "Jos\udce9"


def test_a_file_cut_inside_a_letter_keeps_every_row_before(tmp_path):
    rows = [{"prompt": "{} is in", "subject": name, "target": "Rome"} for name in ("Ann", "Bo", "José")]
    content = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    Path("facts.jsonl").write_bytes(content[: content.index(b"\xc3") + 1])
    stream = EditStream(path="facts.jsonl")
    stream.setup()
    assert [request.subject for request in stream.requests] == ["Ann", "Bo"]
    assert [(row.source, row.field) for row in stream.set_aside] == [("facts.jsonl, row 3", "*")]


def test_names_of_fields_that_are_no_utf8_can_be_printed():
    Path("facts.jsonl").write_bytes(b'{"caf\xe9": 1}\n')
    with pytest.raises(EditError) as caught:
        EditStream(path="facts.jsonl").setup()
    assert "the first has the fields caf\\udce9; known are" in str(caught.value)
    str(caught.value).encode("utf-8")
