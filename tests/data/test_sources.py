"""Files and data sets: what can be recovered is, what cannot is one sentence."""

import gzip
import json
from pathlib import Path

import pytest

from lit_edit.data.source import rows, split_where, where
from lit_edit.errors import EditError
from lit_edit.request import SetAside

FACTS = [{"prompt": "{} is in", "subject": name, "target": "Rome"} for name in ("Ann", "Bob", "Cid")]
LINES = "".join(json.dumps(fact) + "\n" for fact in FACTS)
SUFFIXES = ".json, .jsonl, .csv, .parquet"


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # messages then hold the plain file name

    def write(name, content):
        data = content.encode() if isinstance(content, str) else content
        Path(name).write_bytes(data)
        return name

    return write


def read(path):
    """Rows, and what was set aside as (row number, reason)."""
    good, bad = [], []
    for number, row in rows(path):
        if isinstance(row, SetAside):
            assert row.field == "*"
            assert row.source == where(path, number)
            bad.append((number, row.reason))
        else:
            good.append(row)
    return good, bad


def complaint(path):
    with pytest.raises(EditError) as caught:
        list(rows(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.json", json.dumps(FACTS)),
        ("pretty.json", json.dumps(FACTS, indent=2)),
        ("lines.json", LINES),
        ("facts.jsonl", LINES),
        ("windows.jsonl", LINES.replace("\n", "\r\n")),
        ("mark.jsonl", "\ufeff" + LINES),
        ("blank.jsonl", LINES.replace("\n", "\n\n")),
        ("open.jsonl", LINES.rstrip()),
        ("facts.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
        ("list.json.gz", gzip.compress(json.dumps(FACTS).encode(), mtime=0)),
        ("facts.csv", "prompt,subject,target\n" + "".join(f"{{}} is in,{f['subject']},Rome\n" for f in FACTS)),
    ],
)
def test_the_same_facts_in_every_kind_of_file(write, name, content):
    assert read(write(name, content)) == (FACTS, [])


def test_one_record_in_a_json_file(write):
    assert read(write("one.json", json.dumps(FACTS[0], indent=1))) == (FACTS[:1], [])


def test_parquet(monkeypatch, tmp_path):
    import pyarrow
    import pyarrow.parquet

    monkeypatch.chdir(tmp_path)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(FACTS), tmp_path / "facts.parquet")
    assert read("facts.parquet") == (FACTS, [])


def test_truncated_parquet(write, tmp_path):
    import pyarrow
    import pyarrow.parquet

    whole = tmp_path / "whole.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(FACTS), whole)
    message = complaint(write("cut.parquet", whole.read_bytes()[:-40]))
    assert message.startswith("cut.parquet cannot be read")


def test_folders_of_datasets(write, tmp_path):
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset.from_list(FACTS).save_to_disk(str(tmp_path / "saved"))
    assert read("saved") == (FACTS, [])
    (tmp_path / "loose").mkdir()
    write("loose/facts.jsonl", LINES)
    assert read("loose") == (FACTS, [])


def test_splits_have_to_be_named(write, tmp_path):
    import datasets

    datasets.disable_progress_bars()
    both = datasets.DatasetDict({"train": datasets.Dataset.from_list(FACTS), "test": datasets.Dataset.from_list(FACTS)})
    both.save_to_disk(str(tmp_path / "two"))
    assert complaint("two") == "two has the splits train, test; name one, as in two:train."
    assert read("two:test") == (FACTS, [])


def test_texts_in_tables_stay_texts(write):
    good, bad = read(write("t.csv", 'prompt,subject,target\n"{} is, say,",NA,1984\n'))
    assert (good, bad) == ([{"prompt": "{} is, say,", "subject": "NA", "target": "1984"}], [])


def test_list_cut_inside_a_record_keeps_all_before(write):
    text = json.dumps(FACTS)
    good, bad = read(write("cut.json", text[: text.index("Cid") + 2]))
    assert good == FACTS[:2]
    [(number, reason)] = bad
    assert number == 3
    assert reason.startswith("is not complete JSON (Unterminated string starting at: line 1 column")
    assert reason.endswith("the records before it were kept, nothing after it could be read")


def test_list_cut_between_records_keeps_all_before(write):
    text = json.dumps(FACTS)
    for cut in (text.rindex(", {"), text.rindex(", {") + 2):
        assert read(write("cut.json", text[:cut])) == (
            FACTS[:2],
            [(3, "is missing: the list is not closed, the file is cut off here")],
        )


def test_list_with_a_missing_comma_keeps_all_before(write):
    good, bad = read(write("comma.json", json.dumps(FACTS).replace(", {", " {", 1)))
    assert good == FACTS[:1]
    assert bad == [(2, "does not follow a comma; the records before it were kept, nothing after it could be read")]


def test_text_behind_a_list(write):
    good, bad = read(write("more.json", json.dumps(FACTS) + "{}"))
    assert (good, bad) == (FACTS, [(4, "stands behind the end of the list")])


def test_cut_single_record(write):
    assert read(write("one.json", '{"prompt": "x'))[1][0][1].startswith("is not complete JSON")


def test_absurdly_nested_json_is_set_aside(write):
    good, bad = read(write("deep.jsonl", LINES + "[" * 100_000 + "\n"))
    assert (good, len(bad)) == (FACTS, 1)


def test_broken_lines_are_set_aside_by_line_number(write):
    text = json.dumps(FACTS[0]) + "\n\n{broken}\n[1, 2]\n17\n" + json.dumps(FACTS[1]) + "\n" + json.dumps(FACTS[2])[:20]
    good, bad = read(write("facts.jsonl", text))
    assert good == FACTS[:2]
    assert [number for number, _ in bad] == [3, 4, 5, 7]
    assert bad[0][1].startswith("is not one complete JSON record (Expecting property name")
    assert bad[1][1] == "is a list; a row is an object of named fields"
    assert bad[2][1] == "is a number; a row is an object of named fields"
    assert "is not one complete JSON record" in bad[3][1]


def test_rows_of_a_list_that_are_no_objects(write):
    good, bad = read(write("mixed.json", json.dumps([FACTS[0], None, "x", FACTS[1]])))
    assert good == FACTS[:2]
    assert [reason.split(";")[0] for _, reason in bad] == ["is nothing (null)", "is text"]


def test_table_rows_with_too_many_or_too_few_cells(write):
    good, bad = read(write("t.csv", "prompt,subject,target\na,b,c,d\na,b\n{} is in,Ann,Rome\n"))
    assert bad == [(1, "has more cells than the header, the first of them 'd'; put texts with commas in quotes")]
    assert good == [{"prompt": "a", "subject": "b", "target": None}, FACTS[0]]


def test_table_with_an_open_quote(write):
    good, bad = read(write("t.csv", 'prompt,subject,target\n{} is in,Ann,Rome\n{} is in,"Bob,Rome\n'))
    assert good == FACTS[:1]
    assert bad == [(2, "is not a complete line of a table (unexpected end of data)")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "", "a.json is empty; an edit set holds one record for each fact."),
        ("a.jsonl", " \n\n", "a.jsonl is empty; an edit set holds one record for each fact."),
        ("a.json", "[]", "a.json holds an empty list; an edit set holds one record for each fact."),
        ("a.json", "3", "a.json holds a number; an edit set is a list of records, [{...}, {...}]."),
        ("a.csv", "prompt,subject\n", "a.csv holds a header and no rows; an edit set holds one row for each fact."),
        ("a.xlsx", "x", f"a.xlsx is no kind of file that is read here; an edit set ends in {SUFFIXES}."),
        (
            "a.jsonl",
            LINES.encode("utf-16-le"),  # no byte order mark
            "a.jsonl is not UTF-8 text: byte 0x00 in line 1 does not belong there; save the file as UTF-8.",
        ),
        (
            "a.json",
            "[]".encode("utf-16"),
            "a.json is not UTF-8 text: byte 0xff in line 1 does not belong there; save the file as UTF-8.",
        ),
        (
            "a.jsonl.gz",
            gzip.compress(LINES.encode(), mtime=0)[:-12],
            "a.jsonl.gz is a damaged gzip file (Compressed file ended before the end-of-stream marker was reached); "
            "unpack what is left and give that file.",
        ),
    ],
)
def test_useless_files_are_one_sentence(write, name, content, message):
    assert complaint(write(name, content)) == message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv"])
def test_wide_encodings_are_refused_as_a_whole(write, name, encoding):
    content = {"a.json": json.dumps(FACTS), "a.jsonl": LINES, "a.csv": "prompt,subject\na,b\n"}[name]
    assert complaint(write(name, content.encode(encoding))).startswith(f"{name} is not UTF-8 text: byte 0x")


def test_bytes_that_are_no_utf8_stay_where_they_are(write):
    good, bad = read(write("a.jsonl", LINES.encode() + b'{"prompt": "caf\xe9"}\n'))
    assert (good, bad) == ([*FACTS, {"prompt": "caf\udce9"}], [])


def test_missing_file():
    expected = f"There is no file no/such/facts.jsonl; give the path of a {SUFFIXES} file or a hub id owner/name."
    assert complaint("no/such/facts.jsonl") == expected


def test_empty_folder(write, tmp_path):
    (tmp_path / "empty").mkdir()
    assert complaint("empty") == f"empty is a folder without a data set in it; name a {SUFFIXES} file."


def test_unreadable_file(write, monkeypatch):
    name = write("secret.json", "[]")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # file modes do not stop the superuser, under whom tests may run
    assert complaint(name) == "secret.json cannot be read (Permission denied); check its permissions."


def test_hub_data_set_out_of_reach(monkeypatch, tmp_path):
    import datasets
    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    message = complaint("nobody/no-such-facts")
    assert message.startswith(
        "There is no file nobody/no-such-facts, and the Hugging Face hub and the local cache gave no data set "
        "'nobody/no-such-facts' ("
    )
    assert message.endswith(f"give the path of a {SUFFIXES} file, or the id owner/name of a data set that can be reached.")


def test_hub_data_set_within_reach(monkeypatch, tmp_path):
    import datasets

    asked = []

    def load(name, **_):
        asked.append(name)
        return datasets.DatasetDict({"train": datasets.Dataset.from_list(FACTS), "test": datasets.Dataset.from_list(FACTS[:1])})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert [row for _, row in rows("owner/facts:test")] == FACTS[:1]
    assert complaint("owner/facts") == "owner/facts has the splits train, test; name one, as in owner/facts:train."
    expected = "owner/facts:dev asks for the split 'dev', but the data set has train, test."
    assert complaint("owner/facts:dev") == expected
    assert asked == ["owner/facts"] * 3


def test_where_and_back():
    assert split_where(where("a, row b.json", 3)) == ("a, row b.json", 3)
    assert split_where("elsewhere") == ("elsewhere", None)
