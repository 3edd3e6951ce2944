"""The model card: true, readable by hubs, and no markup that came from a run."""

import json
import re
from html.parser import HTMLParser

import markdown
import pytest
import yaml
from huggingface_hub import ModelCard

from lit_edit import __version__
from lit_edit.export.markdown import escape, fenced, table
from lit_edit.journal.book import open_book
from lit_edit.report.numbers import number

HOSTILE = "x|y <script>alert(1)</script> ![i](http://e.x/p.png) [l](javascript:1) _a_ **b** `c` &lt; # d"


class Page(HTMLParser):
    """Tags of a rendered card, and the cells of its tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.tables, self.inside = set(), [], False
        self.feed(markdown.markdown(text.split("---\n", 2)[2], extensions=["tables", "fenced_code"]))

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.tables[-1][-1][-1] += data


def card(ran, export, folder, *options):
    assert export(ran.folder, "--to", folder, *options) == 0
    return (folder / "README.md").read_text()


def test_the_card_says_what_was_edited_and_measured(gpt2, export, tmp_path):
    text = card(gpt2, export, tmp_path / "out")
    page = Page(text)
    facts = {row[0]: row[1] for row in page.tables[0]}
    book, summary = open_book(gpt2.folder), json.loads((gpt2.folder / "summary.json").read_text())
    assert facts["base model"] == "model" and facts["revision"] == "\N{EN DASH}"
    assert facts["edited weights before editing (SHA-256)"] == summary["weights"] == book.records[0]["original"]
    assert facts["journal, head of the chain (SHA-256)"] == book.records[-1]["sha256"]
    assert facts["layers"] == "0, 1" and facts["dtype"] == "float32"
    assert facts["method"] == "MEMIT(lam=100, history=True) + no guard"
    assert facts["edits"] == "10 written, 0 rejected, 0 set aside" and facts["batches"] == "5 of 5, of up to 2 edits"
    assert facts["edit set"] == "facts.jsonl" and facts["exported by"] == f"lit_edit {__version__}"
    options = {row[0]: row[1] for row in page.tables[2]}
    assert options["model.editor.lam"] == "100.0" and options["model.targets.steps"] == "3"
    assert "lit-edit fit --config config.yaml --run_dir NEW\nlit-edit export NEW --to FOLDER --batches 5" in text
    assert str(gpt2.folder.parent) not in text, "where things lay is nobody's business"


def test_every_score_of_the_summary_stands_in_the_card_with_its_protocol(gpt2, export, tmp_path):
    page = Page(card(gpt2, export, tmp_path / "out"))
    summary = json.loads((gpt2.folder / "summary.json").read_text())
    rows = {(row[0], row[2], row[3]): row for row in page.tables[1][1:]}
    told = {**summary["after"], **summary["immediate"]}
    assert len(rows) == len(told) > 20
    for name, value in told.items():
        kind, protocol, metric, *scoring = name.split("/")
        assert kind == "edit"
        how = ", ".join(scoring).replace("teacher_forced", "teacher-forced").replace("_", " ")
        row = rows[metric, protocol, how]
        assert row[5] == number(value)
        if protocol == "final":
            assert row[4] == number(summary["before"]["/".join(("edit", "before", metric, *scoring))])
    assert {row[2] for row in page.tables[1][1:]} == {"final", "immediate"}


def test_scores_are_those_of_the_weights_that_are_exported(gpt2, export, tmp_path):
    """Behind two batches the run has measured; behind three it has not."""
    summary = json.loads((gpt2.folder / "summary.json").read_text())
    page = Page(card(gpt2, export, tmp_path / "two", "--batches", 2))
    (row,) = (row for row in summary["validations"] if row["batches"] == 2)
    found = {(cells[0], cells[3]): cells for cells in page.tables[1][1:]}
    assert {cells[2] for cells in found.values()} == {"so far"} and len(found) == len(row["scores"])
    name = "edit/so_far/efficacy/probability/teacher_forced"
    assert found["efficacy", "probability, teacher-forced"][5] == number(row["scores"][name])
    assert row["scores"][name] != summary["after"][name.replace("so_far", "final")]
    text = card(gpt2, export, tmp_path / "three", "--batches", 3)
    assert "The run measured nothing on the weights behind 3 batches." in text and "95 %" not in text


def test_hubs_read_the_front_matter(gpt2, export, tmp_path):
    for name, library, relation in (
        ("full", "transformers", "finetune"),
        ("delta", "lit_edit", "adapter"),
        ("lora", "peft", "adapter"),
    ):
        card(gpt2, export, tmp_path / name, "--format", name, "--base-model", "someone/some-model_1.5")
        said = ModelCard.load(tmp_path / name / "README.md").data.to_dict()
        assert said["base_model"] == "someone/some-model_1.5" and said["library_name"] == library
        assert said["base_model_relation"] == relation and said["pipeline_tag"] == "text-generation"
        assert said["tags"] == ["knowledge-editing", "model-editing", "lit_edit", "memit"]


@pytest.fixture
def hostile(copied):
    """A run whose names are markup."""
    config = yaml.safe_load((copied.folder / "config.yaml").read_text())
    config["data"]["path"] = f"/secret/{HOSTILE.replace('/', ':')}"
    config["model"]["targets"]["context_starts"] = ["```\n# Title\n<b>", "\x1b[31m", "---"]
    (copied.folder / "config.yaml").write_text(yaml.safe_dump(config))
    path = copied.folder / "summary.json"
    summary = json.loads(path.read_text())
    summary["method"], summary["environment"]["device"] = HOSTILE, HOSTILE
    summary["after"] = {f"edit/final/{HOSTILE.replace('/', ':')}/accuracy/teacher_forced": 0.5, **summary["after"]}
    path.write_text(json.dumps(summary))
    return copied


@pytest.mark.parametrize("kind", ["full", "delta", "lora"])
def test_no_text_of_a_run_is_markup(hostile, export, tmp_path, kind):
    text = card(hostile, export, tmp_path / "out", "--format", kind, "--base-model", HOSTILE)
    page = Page(text)
    plain = {"h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td", "pre", "code", "ul", "li", "strong"}
    assert page.tags <= plain, page.tags - plain
    assert all(len({len(row) for row in rows}) == 1 for rows in page.tables), "a cell was torn in two"
    facts = {row[0]: row[1] for row in page.tables[0]}
    assert facts["run on: device"].replace("\\", "") == facts["method"].replace("\\", "") == HOSTILE
    assert "\x1b" not in text and "/secret" not in text
    assert len([line for line in text.splitlines() if line.startswith("# ")]) == 1 + text.count("\n# Title\n")
    assert yaml.safe_load(text.split("---\n")[1])["base_model"] == re.sub(r"[^\w./-]+", "-", HOSTILE, flags=re.ASCII).strip(
        "-./"
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a | b", "a \\| b"),
        ("1. x", "1\\. x"),
        ("1.5 x", "1.5 x"),
        ("- x", "\\- x"),
        ("-0.5", "-0.5"),
        ("--- x", "\\--- x"),
        ("== x", "\\== x"),
        ("snake_case _it_", "snake_case \\_it\\_"),
        ("http://x www.x", "http\\://x www\\.x"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("a\n\n# b\x07", "a \\# b\N{REPLACEMENT CHARACTER}"),
        ("\\*", "\\\\\\*"),
    ],
)
def test_what_would_be_markup_is_escaped(text, told):
    assert escape(text) == told


def test_a_fence_is_longer_than_what_it_holds():
    assert fenced("````\nx", "yaml") == "`````yaml\n````\nx\n`````"
    assert table(["a|b"], [["c\nd"]]) == "| a\\|b |\n| --- |\n| c d |"
