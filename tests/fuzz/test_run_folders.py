"""What a run left behind, damaged: report and journal say what is wrong with it, or make the best of it."""

import json
import shutil

import pytest
import torch
import yaml
from damage import damaged, scarred, written
from documents import ODD, as_yaml
from exploring import explore, sizes, told
from hypothesis import strategies as st
from lightning.pytorch.loggers import CSVLogger
from stream import editor, stream, trainer
from tiny import save_tiny

from lit_edit.__main__ import main
from lit_edit.callbacks import Generations, RetentionScores
from lit_edit.errors import EditError
from lit_edit.export.reading import CONFIG, read_delta
from lit_edit.journal.records import START, sealed
from lit_edit.report.cli import main as report


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with every file that a report reads."""
    folder = tmp_path_factory.mktemp("runs")
    model, run = str(save_tiny(folder / "gpt2", "gpt2")), folder / "run"
    run.mkdir()
    watchers = [RetentionScores(1), Generations(1, items=1, tokens=2)]
    fitted = trainer(run, watchers, logger=CSVLogger(run, name="", version="csv"), log_every_n_steps=1)
    module, data = editor(model, folder / "cache"), stream(run, 4)
    fitted.validate(module, datamodule=data, verbose=False)
    fitted.fit(module, datamodule=data)
    next(callback for callback in fitted.callbacks if type(callback).__name__ == "Report").write(fitted, module)
    about = {"pretrained": model, "editor": {"class_path": "MEMIT"}, "guards": [{"class_path": "REVIVE"}]}
    (run / "config.yaml").write_text(yaml.safe_dump({"model": about, "data": {"seed": 0, "path": "facts.jsonl"}}))
    row = {"file": "facts.jsonl", "row": 3, "field": "subject", "reason": "is missing", "record": {}}
    (run / "set_aside.jsonl").write_text(json.dumps(row) + "\n")
    return run


def lines(rows) -> bytes:
    return "".join(written(row) + "\n" for row in rows).encode()


def documents(run, name) -> st.SearchStrategy[bytes]:
    """A damaged file of a run: values replaced, if it holds values, or bytes."""
    content = (run / name).read_bytes()
    if name.endswith(".jsonl"):
        rows = [json.loads(line) for line in content.splitlines()]
        by_value = damaged(rows, 2).map(lambda found: lines(found if isinstance(found, list) else [found]))
    elif name.endswith(".json"):
        by_value = damaged(json.loads(content), 2).map(lambda found: written(found).encode())
    elif name.endswith(".yaml"):
        by_value = st.one_of(
            damaged(yaml.safe_load(content), 2).map(lambda found: as_yaml(found).encode("utf-8", "surrogatepass")),
            st.sampled_from(ODD),
        )
    else:
        by_value = scarred(content)
    return st.one_of(by_value, by_value, scarred(content))


@sizes(50, 2000)
def test_reports_of_damaged_runs(size, whole, tmp_path):
    names = (
        "summary.json",
        "journal.jsonl",
        "retention.json",
        "generations.jsonl",
        "set_aside.jsonl",
        "config.yaml",
        "csv/metrics.csv",
    )
    shutil.copytree(whole, tmp_path / "run")
    seen = {"written": 0, "refused": 0}

    def check(example):
        name, content = example
        path = tmp_path / "run" / name
        path.write_bytes(content)
        try:
            report([str(tmp_path / "run")])
            seen["written"] += 1
            (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
        except EditError as error:
            told(error, str(tmp_path / "run"))
            seen["refused"] += 1
        finally:
            shutil.copy(whole / name, path)

    explore(size, st.sampled_from(names).flatmap(lambda name: st.tuples(st.just(name), documents(whole, name))), check)
    assert min(seen.values()) > size.count // 20, seen


@sizes(40, 1000)
def test_exports_that_somebody_else_made(size, whole, tmp_path):
    """Whatever stands in the configuration of an exported edit, its change is the one that was exported, or it is refused."""
    folder = tmp_path / "delta"
    assert main(["export", str(whole), "--to", str(folder), "--format", "delta", "--batches", "2"]) == 0
    content = (folder / CONFIG).read_bytes()
    _, _, whole_changes = read_delta(folder)
    by_value = damaged(json.loads(content), 2).map(lambda found: written(found).encode())

    def check(content):
        (folder / CONFIG).write_bytes(content)
        try:
            _, _, changes = read_delta(folder)
        except EditError as error:
            told(error, str(folder))
        else:
            assert {layer: change.form for layer, change in changes.items()} == {0: "factors", 1: "factors"}
            for layer, change in changes.items():
                for step, was in zip(change.steps, whole_changes[layer].steps, strict=True):
                    assert all(torch.equal(step[part], was[part]) for part in was)

    explore(size, st.one_of(by_value, by_value, scarred(content)), check)


@sizes(60, 2000)
def test_journals_of_which_the_chain_was_closed_again(size, whole, tmp_path, capsys):
    """Records may hold anything and have hashes that fit; the files that they name stay."""
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run" / "journal.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    bodies = [{key: value for key, value in record.items() if key not in ("sha256", "before")} for record in records]
    seen = {0: 0, 1: 0, 2: 0}

    def check(bodies):
        head, lines = START, []
        for body in bodies if isinstance(bodies, list) else [bodies]:
            try:
                line, head = sealed(body if isinstance(body, dict) else {"body": body}, head)
            except TypeError:  # keys that cannot be sorted do not come out of JSON
                continue
            lines.append(line)
        path.write_text("".join(lines))
        for verb in (["show"], ["show", "--batch", "0"], ["verify"]):
            capsys.readouterr()
            code = main(["journal", verb[0], str(tmp_path / "run"), *verb[1:]])
            seen[code] += 1
            printed = capsys.readouterr()
            (printed.out + printed.err).encode("utf-8")
            if code == 2:
                assert printed.err.count("\n") == 1
                told(EditError(printed.err.strip().removeprefix("lit-edit: error: ")), str(path))

    explore(size, damaged(bodies, 3), check)
    assert all(seen.values()), seen
