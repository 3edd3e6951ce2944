"""The page: what stands in it, that it is sound HTML, that no text of a run becomes markup, and what is refused."""

import json
import shlex
import shutil

import pytest
import yaml
from browser import Page, check_page
from lightning.pytorch.loggers import CSVLogger
from stream import editor, stream, trainer
from tiny import save_tiny

from lit_edit.__main__ import main as command
from lit_edit.callbacks import Generations, RetentionScores
from lit_edit.errors import EditError
from lit_edit.report.account import counts
from lit_edit.report.cli import main
from lit_edit.report.markup import node, write
from lit_edit.report.results import EDITS, PROBES, measured, verdict
from lit_edit.report.run import Run

SAID = {"edits": 2, "case_id": 1, "kind": "efficacy", "prompt": "p", "said": "s", "wanted": "w"}
EVIL = "<script>alert('x')</script>\"&amp;<img src=x onerror=1>"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Two real runs of a tiny model: one with everything, one with a budget so small that every batch is rejected."""
    folder = tmp_path_factory.mktemp("runs")
    model = str(save_tiny(folder / "gpt2", "gpt2"))
    for name, options, watchers in (
        ("rich", {}, [RetentionScores(1), Generations(1, items=2, tokens=3)]),
        ("refused", {"max_change": 1e-9, "guards": []}, []),
    ):
        run, module, data = folder / name, editor(model, folder / "cache", **options), None
        run.mkdir()
        data = stream(run, 6)
        fitted = trainer(run, watchers, logger=CSVLogger(run, name="", version="csv"), log_every_n_steps=1)
        fitted.validate(module, datamodule=data, verbose=False)
        fitted.fit(module, datamodule=data)
        report = next(callback for callback in fitted.callbacks if type(callback).__name__ == "Report")
        report.write(fitted, module)
        (run / "config.yaml").write_text(yaml.safe_dump({"model": {"pretrained": model}, "data": {"seed": 0, "name": name}}))
    return folder


@pytest.fixture
def runs(tiny, tmp_path):
    """Copies of them that a test may change."""
    for name in ("rich", "refused"):
        shutil.copytree(tiny / name, tmp_path / name)
    return tmp_path


def change(path, **values):
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, **values}))


def test_a_real_run(runs, capsys):
    main([str(runs / "rich")])
    target = runs / "rich" / "report.html"
    assert str(target) in capsys.readouterr().out
    page = check_page(target.read_text(encoding="utf-8"))
    wanted = ["glance", "results", "stream", "weights", "batches", "retention", "samples", "refused", "time", "protocol"]
    assert [name for name in page.ids if name in wanted] == wanted
    summary = json.loads((runs / "rich" / "summary.json").read_text())
    after = next(
        value for name, value in summary["after"].items() if "neighbourhood/probability" in name or "efficacy/prob" in name
    )
    assert f"{after:.3f}" in page.words or f"{after:.2e}" in page.words
    for told in (
        "MEMIT + REVIVE: 6 edits in 3 batches",
        "Retention by age",
        "95 % interval",
        "torch",
        "teacher-forced",
        "REVIVE: removed share",
    ):
        assert told in page.words
    said = json.loads((runs / "rich" / "generations.jsonl").read_text().splitlines()[0])
    assert said["prompt"] in page.words
    assert page.tags.count("svg") > 12


def test_the_environment_is_recorded(tiny):
    found = json.loads((tiny / "rich" / "summary.json").read_text())["environment"]
    assert found["device"] == "cpu" and found["threads"] == 1 and found["torch"] and found["python"]


def test_same_runs_same_bytes_and_an_old_page_is_replaced(runs):
    arguments = [str(runs / "rich"), str(runs / "refused"), "--to", str(runs / "new" / "page.html")]
    target = runs / "new" / "page.html"
    main(arguments)
    first = target.read_bytes()
    target.write_text("old")
    main(arguments)
    assert target.read_bytes() == first and len(first) > 50_000
    assert [file.name for file in target.parent.iterdir()] == ["page.html"]


def test_runs_beside_each_other(runs):
    main([str(runs / "rich"), str(runs / "refused"), "--to", str(runs / "two.html")])
    page = check_page((runs / "two.html").read_text(encoding="utf-8"))
    assert "3 batches, 3 of them rejected" in page.words and "over the budget" in page.words
    assert (
        "Where they differ" in page.words
        and "data.name" in page.words
        and "model.pretrained" not in page.words.split("config.yaml of")[0]
    )
    rich, refused = Run.open_all([runs / "rich", runs / "refused"])
    assert counts(rich)["requests written"] == 6 and counts(rich)["batches rejected"] == 0
    found = counts(refused)
    assert found["requests rejected with their batch"] == found["requests read"] == 6 and found["requests written"] == 0


def test_eight_runs_have_eight_lines(runs):
    for number in range(8):
        shutil.copytree(runs / "rich", runs / f"run-{number}")
    main([*(str(runs / f"run-{number}") for number in range(8)), "--to", str(runs / "many.html")])
    page = check_page((runs / "many.html").read_text(encoding="utf-8"))
    assert {f"c{number}" for number in range(8)} <= {value for name, value in page.attributes if name == "class"}


def test_numbers_come_from_the_summary(runs):
    (run,) = Run.open_all([runs / "rich"])
    for key, one in measured(run).items():
        if key.group == EDITS:
            name = f"edit/{key.protocol}/{key.measure}/{key.scoring}"
            assert one.after == run.summary["after"][name]
            assert one.before == run.summary["before"][f"edit/before/{key.measure}/{key.scoring}"]
            assert one.change == pytest.approx(one.after - one.before)
        if key.group == PROBES:
            name = f"probe/{key.measure}/{key.scoring}"
            assert (one.before, one.after) == (run.summary["before"][name], run.summary["after"][name])
            assert one.sure_change == run.summary["changes"].get(name)


@pytest.mark.parametrize(
    ("bounds", "told"),
    [
        ([-0.2, -0.1], "1 of 1 numbers changed beyond the 95 % interval (sums -0.150)"),
        ([-0.2, 0.1], "none of 1 numbers changed"),
    ],
)
def test_the_verdict_follows_from_the_intervals(runs, bounds, told):
    name = "probe/sums/accuracy/teacher_forced"
    edits = {f"edit/final/{metric}/accuracy/teacher_forced": 0.5 for metric in ("efficacy", "neighbourhood")}
    path = runs / "rich" / "summary.json"
    change(path, before={name: 1.0}, after={name: 0.85, **edits}, changes={name: bounds}, probes=None)
    (run,) = Run.open_all([runs / "rich"])
    assert told in verdict(run)
    assert "efficacy 50.0\N{NO-BREAK SPACE}%, neighbourhood 50.0\N{NO-BREAK SPACE}%" in verdict(run)


def test_every_text_is_escaped(runs):
    """Prompts, answers, reasons, names, paths, options: none of them becomes an element or an attribute."""
    folder = runs / EVIL.replace("/", "_")
    shutil.copytree(runs / "rich", folder)
    summary = json.loads((folder / "summary.json").read_text())
    name = f"edit/final/{EVIL.replace('/', '')}/accuracy/teacher_forced"
    after = {**summary["after"], name: 0.5, f"probe/{EVIL.replace('/', '')}/accuracy": 0.25}
    validations = [{**row, "scores": {**row["scores"], **after}} for row in summary["validations"]]
    change(
        folder / "summary.json", model=EVIL, method=EVIL, editor=EVIL, guards=[EVIL], weights=EVIL, version=EVIL, after=after,
        environment={EVIL: EVIL}, validations=validations, sampled={f"edit/so_far/{EVIL}": 1.0},
    )  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {EVIL: EVIL}, "data": {"path": EVIL, "order": EVIL}}))
    line = {"edits": 2, "case_id": EVIL, "kind": EVIL, "prompt": EVIL + "\x00\x1b\ud800", "said": EVIL, "wanted": EVIL}
    (folder / "generations.jsonl").write_text((json.dumps(line) + "\n") * 2)
    row = {"file": EVIL, "row": EVIL, "field": EVIL, "reason": EVIL, "record": {}}
    (folder / "set_aside.jsonl").write_text(json.dumps(row) + "\n")
    record = json.loads((folder / "journal.jsonl").read_text().splitlines()[0])
    aside = [{"source": EVIL, "field": EVIL, "reason": EVIL}]
    scalars = {**record["scalars"], f"guard/{EVIL}/layer_0": 0.5}
    lines = [{**record, "batch": 0, "rejected": EVIL, "set_aside": aside, "cases": [EVIL], "scalars": scalars}] * 3
    (folder / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    change(folder / "retention.json", metric=EVIL, scoring=EVIL)
    for others in ([], [str(runs / "refused")]):
        main([str(folder), *others, "--to", str(runs / "page.html")])
        text = (runs / "page.html").read_text(encoding="utf-8")
        page = check_page(text)
        assert "img" not in page.tags and "<script" not in text
        assert page.words.count("<script>alert(") > 15, "what was written is shown as it was written"
        assert not {"\x00", "\x1b"} & set(text)


def test_markup_has_no_way_around_escaping():
    made = write(node("p", EVIL, node("b", EVIL), EVIL, title=EVIL, data_x="\x07"))
    page = Page(made)
    assert page.tags == ["p", "b"] and "".join(page.text) == EVIL * 3
    assert dict(page.attributes) == {"title": EVIL, "data-x": "\ufffd"}


def test_a_run_with_almost_nothing(runs):
    """No validation but the first, no drift, no optional file, no environment, nothing logged."""
    path = runs / "rich" / "summary.json"
    summary = json.loads(path.read_text())
    for name in ("environment", "probes", "method"):
        del summary[name]
    empty = {name: {} for name in ("before", "after", "immediate", "drift", "sampled", "intervals", "changes")}
    path.write_text(json.dumps({**summary, **empty, "validations": [], "finished": False}))
    for name in ("retention.json", "generations.jsonl"):
        (runs / "rich" / name).unlink()
    (runs / "rich" / "journal.jsonl").write_text("")
    shutil.rmtree(runs / "rich" / "csv")
    main([str(runs / "rich")])
    page = check_page((runs / "rich" / "report.html").read_text(encoding="utf-8"))
    assert "MEMIT + REVIVE" in page.words, "without its options, as runs of earlier versions"
    assert "unfinished" in page.words and "Not in this run: curves along the stream" in page.words
    assert "--ckpt_path last" in page.words


def test_repeating_does_not_write_into_the_old_run(runs):
    (runs / "rich" / "config.yaml").write_text(
        yaml.safe_dump({"checkpoint": {"dirpath": "old/checkpoints"}, "ckpt_path": "last", "run_dir": "old"})
    )
    main([str(runs / "rich")])
    lines = check_page((runs / "rich" / "report.html").read_text(encoding="utf-8")).words
    path = shlex.quote(str(runs / "rich" / "config.yaml"))
    assert f"lit-edit fit --config {path} --run_dir NEW --checkpoint.dirpath null --ckpt_path null" in lines


def refused(arguments, *told):
    with pytest.raises(EditError) as caught:
        main([str(argument) for argument in arguments])
    sentence = str(caught.value)
    assert "\n" not in sentence and all(part in sentence for part in told), sentence


def test_mistakes_on_the_command_line(runs, capsys):
    rich = runs / "rich"
    refused([runs / "absent"], "there is no folder", "absent")
    refused([runs], "holds no config.yaml")
    refused([rich, runs / "refused" / ".." / "rich"], "given twice")
    refused([], "RUN", "--help")
    refused([rich, "--out", "x.html"], "--out", "--help")
    refused([rich, "--to", rich / "journal.jsonl"], "--to", ".html")
    (runs / "folder.html").mkdir()
    refused([rich, "--to", runs / "folder.html"], "which is a folder")
    (runs / "file").write_text("")
    refused([rich, "--to", runs / "file" / "page.html"], "cannot be written")
    assert command(["report", str(runs / "absent")]) == 2
    assert "lit-edit: error: there is no folder" in capsys.readouterr().err
    assert not (rich / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("summary.json", None, "holds no summary.json"),
        ("summary.json", '{"format": 99}', "has format 99"),
        ("summary.json", '{"format": 1}', "it has no version"),
        ("summary.json", "[" * 100_000, "deeper"),
        ("journal.jsonl", None, "holds no journal.jsonl"),
        ("journal.jsonl", "{}\n", "[0].batch"),
        ("journal.jsonl", "not json\n", "line 1"),
        ("retention.json", "[]", "instead of an object"),
        ("retention.json", "{", "is damaged"),
        ("generations.jsonl", json.dumps({**SAID, "edits": "many"}) + "\n", "edits is 'many' instead of a whole number"),
        ("generations.jsonl", json.dumps({**SAID, "wanted": 5}) + "\n", "wanted is 5 instead of a text"),
        ("set_aside.jsonl", "\n", "is damaged"),
        ("set_aside.jsonl", '{"row": 1, "field": "x", "reason": "y"}\n', "it has no file"),
        ("config.yaml", f"a: 0x{'f' * 5000}", "it holds a number of 20000 bits"),
        ("config.yaml", "- 1", "holds no configuration"),
        ("config.yaml", "a: [\n", "in line 2, column 1); the run has to be repeated"),
        ("config.yaml", "a: &a [*a]", "an alias (*name) stands inside of what it repeats"),
        ("config.yaml", "a: !!int many", "is no YAML (it holds a value that is not what it is marked as"),
        ("config.yaml", "a: !!set {b}", "it holds a set"),
        ("csv/metrics.csv", "step,drift/ls/layer_0\n1,half\n", "metrics.csv is damaged in line 2"),
        ("csv/metrics.csv", "step,drift/ls/layer_0\n1," + "\0" * 5000 + "\n", "; remove that line"),
    ],
)
def test_damaged_runs(runs, name, content, told):
    path = runs / "rich" / name
    path.unlink() if content is None else path.parent.mkdir(exist_ok=True) or path.write_text(content)
    refused([runs / "rich"], told)


@pytest.mark.parametrize("key", ["guards", "edits", "after", "intervals", "validations"])
@pytest.mark.parametrize("value", [3.5, "text", [["x"]], {"x": "y"}, 10**400], ids=["float", "text", "list", "object", "huge"])
def test_values_of_another_kind(runs, key, value):
    change(runs / "rich" / "summary.json", **{key: value})
    refused([runs / "rich"], "summary.json is damaged", key)


@pytest.mark.parametrize("key", ["first", "latest", "mean", "auc"])
def test_a_score_of_the_retention_that_is_no_number(runs, key):
    change(runs / "rich" / "retention.json", **{key: ["x"]})
    refused([runs / "rich"], f"retention.json is damaged: {key} is ['x'] instead of a number")
