"""Published settings: commands that run, and the same numbers for people and for programs."""

import csv
import re
import shlex

import pytest
from test_presets import parsed, text

from lit_edit.options.packaged import config_names, config_path

SETTINGS = sorted(name for name in config_names() if name.startswith("paper/"))
NUMBERS = ("efficacy", "paraphrase", "neighbourhood", "fluency", "consistency")


def rows():
    with (config_path("paper/zsre-2000").parent / "published.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def setting(row):
    return f"paper/{row['dataset']}-{row['edits']}"


def commented(name):
    """Rows of the tables in a file's comment."""
    found, source, names = [], None, []
    for line in text(name).splitlines():
        if heading := re.fullmatch(r"# (.+):", line):
            source = heading[1]
        elif line.startswith("#   model "):
            names = line.lstrip("# ").split()
        elif line.startswith("#   ") and names and source:
            cells = re.split(r"  +", line.lstrip("# "), maxsplit=len(names) - 1)
            found.append({"source": source, **dict(zip(names, cells, strict=True))})
        if not line.startswith("#"):
            break
    return found


@pytest.mark.parametrize("name", SETTINGS)
def test_the_comment_and_the_table_for_programs_agree(name):
    expected = []
    for row in (row for row in rows() if setting(row) == name):
        options = " ".join(part for part in (row["options"] or "none", f"({row['remark']})" if row["remark"] else "") if part)
        shown = {key: row[key] or "-" for key in (*NUMBERS, "tolerance")}
        expected.append({"source": row["source"], "model": row["model"], "method": row["method"], **shown, "options": options})
    told = commented(name)
    assert len(told) == len(expected)
    for row, wanted in zip(told, expected, strict=True):
        assert {**dict.fromkeys(NUMBERS, "-"), **row} == wanted
    assert told or "No table of this setting was found" in text(name)


def test_every_row_is_complete():
    assert len(rows()) > 60 and {setting(row) for row in rows()} <= set(SETTINGS)
    for row in rows():
        assert row["source"] and row["method"] and config_path(f"models/{row['model']}")
        values = [float(row[key]) for key in NUMBERS if row[key]]
        assert len(values) >= 2 and all(0 <= value <= 700 for value in values)
        assert all(float(row[key]) <= 100 for key in NUMBERS if row[key] and key != "fluency")
        assert not row["tolerance"] or 0 < float(row["tolerance"]) <= 5
        assert (row["dataset"] == "counterfact") or not (row["fluency"] or row["consistency"])


@pytest.mark.parametrize("at", range(len(rows())), ids=lambda at: "-".join(rows()[at][key] for key in ("model", "method")))
def test_every_published_row_is_a_command(at):
    row = rows()[at]
    cli = parsed("--config", f"models/{row['model']}", "--config", setting(row), *shlex.split(row["options"]))
    stream, model = cli.datamodule, cli.model
    assert stream.limit == int(row["edits"]) and stream.batch_size == int(row["batch_size"])
    assert type(model.corpus).__name__ == "WholeDocuments" and model.corpus.count == 100_000
    guards = [type(guard).__name__ for guard in model.guards]
    method = row["method"]
    assert ("REVIVE" in guards) == ("REVIVE" in method) and ("RECT" in guards) == ("RECT" in method)
    assert ("PRUNE" in guards) == ("PRUNE" in method) and (not guards or guards[-1] == method.split()[-1] or "tau" in method)
    if tau := re.search(r"tau (\.\d+)", method):
        assert model.guards[0].tau == float(tau[1])
    if "RECT" in guards:
        assert (model.guards[0].keep, model.guards[0].deferred) == (0.4, True)
    editor = {"MEMIT with history": "MEMIT"}.get(method, method.split()[0])
    editor = "MEMIT" if editor in ("PRUNE", "RECT", "unedited") else editor
    assert type(model.editor).__name__ == editor
    assert getattr(model.editor, "history", False) == (method == "MEMIT with history" or editor in ("AlphaEdit", "NSE"))


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_measure_what_is_published(name):
    cli = parsed("--config", "models/gpt2-xl", "--config", name)
    watchers = [type(callback).__name__ for callback in cli.trainer.callbacks]
    assert ("PublishedZsRE" in watchers) == ("zsre" in name) and ("Generations" in watchers) == ("counterfact" in name)
    assert cli.datamodule.limit == int(name.rpartition("-")[2]) and cli.datamodule.order == "file"
