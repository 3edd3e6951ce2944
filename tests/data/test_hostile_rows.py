"""Names, texts and paths that a message has to quote: the sentence stays short, on one line and printable."""

import json
from pathlib import Path

import pytest
from schemas import ROWS

from lit_edit.data import EasyEdit, EditStream, JsonLines
from lit_edit.data.questions import snake_case
from lit_edit.errors import EditError, MalformedRecord
from lit_edit.runs.paths import named

HOSTILE = "\x1b[31m\n\ud800\u2028\x00"
SHOWN = "\\x1b[31m \\ud800\\u2028\\x00"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def stream_of(*rows, name="facts.jsonl", **arguments) -> EditStream:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    stream = EditStream(path=name, **arguments)
    stream.setup()
    return stream


def test_every_sentence_can_be_printed():
    for error in (EditError(f"{HOSTILE} is wrong"), MalformedRecord(HOSTILE, f"is {HOSTILE}")):
        assert SHOWN in str(error) and str(error).isprintable()
    assert (MalformedRecord(HOSTILE, "x").field, MalformedRecord("f", HOSTILE).reason) == (SHOWN, SHOWN)
    long = str(EditError(f"facts.jsonl: {'long ' * 50_000}; save the file again"))
    assert len(long) < 1200 and long.startswith("facts.jsonl: long") and long.endswith("long ; save the file again")
    assert str(EditError("no YAML: in\n  line 3,\n  column 4")) == "no YAML: in line 3, column 4"


def test_a_kind_of_questions_is_named_as_it_can_be_printed():
    row = {**ROWS[EasyEdit], "portability": {HOSTILE: 3}}
    stream = stream_of(ROWS[EasyEdit], row)
    assert stream.set_aside[0].field == f"portability.{SHOWN}"
    assert f"field 'portability.{SHOWN}' holds a number" in stream.summary()


def test_a_file_whose_name_is_no_text_is_told_as_it_can_be_printed():
    stream = stream_of(ROWS[JsonLines], name="caf\udce9\n.jsonl")
    assert stream.summary().startswith("caf\\udce9 .jsonl: 1 rows read") and stream.summary().isprintable()


def test_fields_of_no_known_schema_are_listed_as_far_as_they_fit():
    with pytest.raises(EditError) as caught:
        stream_of({HOSTILE: 1, **{f"column {i}": i for i in range(10_000)}})
    assert f"the first has the fields {SHOWN}, column 0, column 1" in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "changes", [{"prompt": "long " * 50_000}, {"subject": "long " * 50_000}, {"paraphrases": [["long " * 50_000]]}]
)
def test_long_texts_are_quoted_by_their_beginning(changes):
    (aside,) = stream_of(ROWS[JsonLines], {**ROWS[JsonLines], "prompt": "Ann is in", **changes}).set_aside
    assert "'long long " in aside.reason and len(aside.reason) < 500


def test_a_table_with_a_column_that_has_no_name():
    """As pandas writes its index; such a cell is no text that stands behind the last column."""
    Path("facts.csv").write_text(",prompt,subject,target\n0,{} is in,Ann,Rome\n1,{} is in,Bo,Rome,too many\n")
    stream = EditStream(path="facts.csv")
    stream.setup()
    assert [request.subject for request in stream.requests] == ["Ann"]
    (aside,) = stream.set_aside
    assert aside.reason.startswith("has more cells than the header, the first of them 'too many'")


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (
            "prompt,subject,target,target",
            "facts.csv has two columns called 'target', of which only one would count; rename one.",
        ),
        (
            'prompt,"subject,target',
            "facts.csv begins with a header that is not a complete line of a table (unexpected end of data).",
        ),
    ],
)
def test_a_header_that_does_not_say_what_the_columns_are(header, told):
    Path("facts.csv").write_text(f"{header}\n{{}} is in,Ann,Rome,Oslo\n")
    with pytest.raises(EditError) as caught:
        EditStream(path="facts.csv").setup()
    assert str(caught.value) == told


def test_columns_without_a_name_may_be_several():
    Path("facts.csv").write_text("prompt,subject,target,,\n{} is in,Ann,Rome,,\n")
    stream = EditStream(path="facts.csv")
    stream.setup()
    assert len(stream.requests) == 1 and not stream.set_aside


@pytest.mark.parametrize("value", [[], [1], {"a": 1}])
def test_an_identifier_is_a_text_or_a_number(value):
    (aside,) = stream_of(ROWS[JsonLines], {**ROWS[JsonLines], "case_id": value}).set_aside
    assert aside.field == "case_id" and aside.reason.endswith("not text or a number; it is the identifier of the row")


def test_a_capital_that_becomes_two_characters_makes_a_kind():
    assert snake_case("İstanbul Trip") == "i_stanbul_trip"
    (request,) = stream_of({**ROWS[JsonLines], "portability": [["İ", "Ann's country is", ["Italy"]]]}).requests
    assert request.portability[0][0] == "i"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "it is empty"),
        (" ", "it is empty"),
        ("a\0b.jsonl", "it holds a null byte"),
        ("x" * 300 + ".jsonl", "File name too long"),
        ("~nobody-of-that-name/facts.jsonl", "home directory"),
        ("~\ud800/facts.jsonl", "surrogates not allowed"),
        ("facts.jsonl/" * 500, "File name too long"),
    ],
)
def test_a_path_that_no_file_can_have(path, reason):
    with pytest.raises(EditError, match=reason) as caught:
        EditStream(path=path).setup()
    assert str(caught.value).startswith("the path of the edit set is ") and len(str(caught.value)) < 300


def test_a_path_that_a_file_could_have(tmp_path):
    assert named("not/there.jsonl", "it") == Path("not/there.jsonl") and named(tmp_path, "it") == tmp_path
    assert named("~/facts.jsonl", "it") == Path.home() / "facts.jsonl"
