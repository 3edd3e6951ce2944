"""Retention over real runs: what is followed, what is logged, and what an interruption leaves of it."""

import json

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from stream import editor, stream, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import save_tiny

from lit_edit.callbacks import RetentionScores, StreamCheckpoint
from lit_edit.editors import MEMIT, ROME
from lit_edit.errors import EditError
from lit_edit.guards import PRUNE, REVIVE
from lit_edit.targets import TargetOptions
from lit_edit.workbench import Rejected


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("gpt2"), "gpt2"))


def saving(folder):
    return StreamCheckpoint(
        str(folder / "checkpoints"), save_last=True, every_n_train_steps=1, save_on_exception=True, enable_version_counter=False
    )


def fit(model, folder, watcher, ckpt=None, callbacks=(), count=8, module=None, **options):
    folder.mkdir(exist_ok=True)
    module = module or editor(model, folder.parent / "cache")
    run = trainer(folder, [*callbacks, watcher, saving(folder)], enable_checkpointing=True, **options)
    run.fit(module, datamodule=stream(folder, count), ckpt_path=ckpt)
    return module


def table(folder):
    return json.loads((folder / "retention.json").read_text())


def last(folder):
    return str(folder / "checkpoints" / "last.ckpt")


class _Fail(Callback):
    def __init__(self, hook, at):
        setattr(self, hook, self._fail)
        self.at = at

    def _fail(self, trainer, *_):
        if trainer.global_step == self.at:
            raise RuntimeError("on purpose")


class _Remembers(Callback):
    """What an independent observer sees: the edits of every batch, scored again one by one after every batch."""

    def __init__(self, name):
        self.name, self.rows = name, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        requests = trainer.datamodule.requests[: pl_module.position]
        with pl_module.evaluated_model():
            self.rows.append([pl_module.scorer.requests([request])[0].values[self.name][0] for request in requests])


@pytest.mark.parametrize("guards", [[REVIVE()], [PRUNE()]])
def test_the_matrix_is_what_an_observer_sees(model, tmp_path, guards):
    """With PRUNE the model that is evaluated is not the one that is edited on."""
    module = editor(model, tmp_path / "cache", guards=guards, layers=[1])
    seen, watcher = _Remembers("efficacy/probability/teacher_forced"), RetentionScores(2, scoring="probability")
    fit(model, tmp_path / "run", watcher, callbacks=[seen], count=10, module=module)
    found = table(tmp_path / "run")
    assert [check["batches"] for check in found["checkpoints"]] == [2, 4, 5], "every second batch, and the end"
    assert [check["edits"] for check in found["checkpoints"]] == [4, 8, 10]
    for check, row in zip(found["checkpoints"], found["matrix"], strict=True):
        values = seen.rows[check["batches"] - 1]
        wanted = [sum(values[at : at + 2]) / 2 for at in range(0, len(values), 2)]
        assert row[: len(wanted)] == pytest.approx(wanted, rel=1e-4) and row[len(wanted) :] == [None] * (5 - len(wanted))
    assert len({value for row in found["matrix"] for value in row if value is not None}) > 5, "the numbers are no constants"
    assert watcher.last["edit/retention/efficacy/probability/teacher_forced/first"] == found["matrix"][-1][0] == found["first"]
    assert watcher.last["edit/retention/efficacy/probability/teacher_forced/latest"] == found["matrix"][-1][-1]


@pytest.mark.parametrize(("metric", "scoring"), [("paraphrase", "success"), ("neighbourhood", "token_accuracy")])
def test_other_metrics(model, tmp_path, metric, scoring):
    seen, watcher = _Remembers(f"{metric}/{scoring}/teacher_forced"), RetentionScores(4, metric=metric, scoring=scoring)
    fit(model, tmp_path / "run", watcher, callbacks=[seen])
    assert table(tmp_path / "run")["matrix"][-1] == pytest.approx(
        [(a + b) / 2 for a, b in zip(seen.rows[-1][::2], seen.rows[-1][1::2], strict=True)]
    )


def test_what_is_logged(model, tmp_path):
    folder = tmp_path / "run"
    loggers = [TensorBoardLogger(folder, name="", version="tb"), CSVLogger(folder, name="", version="csv")]
    watcher = RetentionScores(2)
    fit(model, folder, watcher, logger=loggers, log_every_n_steps=1)
    events = EventAccumulator(str(folder / "tb"), size_guidance={"images": 0, "scalars": 0}).Reload()
    names = [f"edit/retention/efficacy/accuracy/teacher_forced/{what}" for what in ("first", "latest", "mean", "auc")]
    for name in names:
        points = events.Scalars(name)
        assert [point.step for point in points] == [1, 3], "logged where it was measured and nowhere else"
        assert points[-1].value == pytest.approx(watcher.last[name])
    assert [image.step for image in events.Images("retention/matrix")] == [1, 3]
    assert set(names) <= set((folder / "csv" / "metrics.csv").read_text().splitlines()[0].split(","))


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end"])
@pytest.mark.parametrize("first", [pytest.param(True, marks=pytest.mark.slow), False])
def test_an_interrupted_run_gives_the_same_matrix(model, tmp_path, hook, first):
    def limits():
        return RetentionScores(2, per_cohort=1, cohorts=2, scoring="probability")

    fit(model, tmp_path / "whole", limits(), count=12)
    for at in (2, 5):
        folder, fail, watcher = tmp_path / f"part{at}", _Fail(hook, at), limits()
        with pytest.raises(RuntimeError, match="on purpose"):
            if first:
                fit(model, folder, watcher, callbacks=[fail], count=12)
            else:
                folder.mkdir()
                run = trainer(folder, [watcher, fail, saving(folder)], enable_checkpointing=True)
                run.fit(editor(model, tmp_path / "cache"), datamodule=stream(folder, 12))
        fit(model, folder, limits(), last(folder), count=12)
        assert table(folder) == table(tmp_path / "whole")
    found = table(tmp_path / "whole")
    assert found["batches_per_cohort"] == 4 and len(found["matrix"]) == 3


def test_an_interrupt_while_it_looks(model, tmp_path, monkeypatch):
    fit(model, tmp_path / "whole", RetentionScores(2, scoring="probability"))
    watcher, folder = RetentionScores(2, scoring="probability"), tmp_path / "part"

    def halt(*_):
        raise RuntimeError("on purpose")

    monkeypatch.setattr(watcher, "look", halt)
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(model, folder, watcher)
    assert not (folder / "retention.json").exists()
    fit(model, folder, RetentionScores(2, scoring="probability"), last(folder))
    assert table(folder) == table(tmp_path / "whole")


def test_an_interrupt_while_it_writes_down_what_it_saw(model, tmp_path, monkeypatch):
    fit(model, tmp_path / "whole", RetentionScores(2, scoring="probability"))
    watcher, folder = RetentionScores(2, scoring="probability"), tmp_path / "part"
    monkeypatch.setattr(watcher, "_write", lambda *_: (_ for _ in ()).throw(RuntimeError("on purpose")))
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(model, folder, watcher)
    fit(model, folder, RetentionScores(2, scoring="probability"), last(folder))
    assert table(folder) == table(tmp_path / "whole")


def test_the_last_look_is_made_up_for(model, tmp_path, monkeypatch):
    fit(model, tmp_path / "whole", RetentionScores(4, scoring="probability"))
    watcher, folder = RetentionScores(4, scoring="probability"), tmp_path / "part"
    monkeypatch.setattr(watcher, "look", lambda *_: (_ for _ in ()).throw(RuntimeError("on purpose")))
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(model, folder, watcher)
    fit(model, folder, RetentionScores(4, scoring="probability"), last(folder))
    assert table(folder) == table(tmp_path / "whole")


def test_max_steps_is_no_end_of_the_stream(model, tmp_path):
    fit(model, tmp_path / "whole", RetentionScores(2))
    fit(model, tmp_path / "part", RetentionScores(2), max_steps=3)
    assert [check["batches"] for check in table(tmp_path / "part")["checkpoints"]] == [2]
    fit(model, tmp_path / "part", RetentionScores(2), last(tmp_path / "part"))
    assert table(tmp_path / "part") == table(tmp_path / "whole")


def test_a_callback_that_joins_later_follows_what_it_saw(model, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    run = trainer(folder, [saving(folder)], enable_checkpointing=True, max_steps=2)
    run.fit(editor(model, tmp_path / "cache"), datamodule=stream(folder))
    fit(model, folder, RetentionScores(1), last(folder))
    found = table(folder)
    assert [check["batches"] for check in found["checkpoints"]] == [3, 4]
    assert [cohort["positions"] for cohort in found["cohorts"]] == [[4, 5], [6, 7]]


def test_rejected_batches_are_in_no_cohort(model, tmp_path):
    class Sometimes(MEMIT):
        def solve(self, layer, keys, residuals, weight, avoid=None):
            Sometimes.calls += 1
            if Sometimes.calls in (2, 3):
                raise Rejected("on purpose")
            return super().solve(layer, keys, residuals, weight, avoid)

    Sometimes.calls = 0
    module = editor(model, tmp_path / "cache", editor=Sometimes(lam=10.0), layers=[1], guards=[])
    fit(model, tmp_path / "run", RetentionScores(1), module=module)
    rejected = [json.loads(line)["rejected"] for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()]
    found = table(tmp_path / "run")
    assert rejected == [None, "on purpose", "on purpose", None]
    assert [cohort["positions"] for cohort in found["cohorts"]] == [[0, 1], [6, 7]]
    assert [check["edits"] for check in found["checkpoints"]] == [2, 2, 2, 4]
    assert found["age_in_batches"] == [[0, 0], [1, 0], [2, 0], [3, 0]] and found["matrix"][2][1] is None


def test_requests_refused_by_an_editor_that_writes_in_order(model, tmp_path):
    class Picky(ROME):
        def walk(self, bench, rows, targets_ND):
            if rows[0].request.case_id in ("1", "4", "5"):
                raise Rejected("on purpose")
            return super().walk(bench, rows, targets_ND)

    targets = TargetOptions(steps=4, contexts=2, context_tokens=6)
    module = editor(model, tmp_path / "cache", editor=Picky(), layers=[1], guards=[], targets=targets)
    fit(model, tmp_path / "run", RetentionScores(2), module=module)
    found = table(tmp_path / "run")
    assert [cohort["positions"] for cohort in found["cohorts"]] == [[0], [2, 3], [6, 7]]
    assert [check["edits"] for check in found["checkpoints"]] == [3, 5]


def test_it_changes_nothing(model, tmp_path):
    """Weights, random state and modes of a watched run are those of an unwatched one; PRUNE shows a view of its own."""

    def run(folder, *callbacks):
        torch.manual_seed(3)
        folder.mkdir()
        module = editor(model, tmp_path / "cache", guards=[PRUNE()])
        trainer(folder, callbacks).fit(module, datamodule=stream(folder))
        shown = {name: value.clone() for name, value in module.net.state_dict().items()}
        modes = [(name, part.training) for name, part in module.net.named_modules()]
        return shown, modes, torch.get_rng_state(), {i: module.master(i).detach().clone() for i in module.layers}

    plain, watched = run(tmp_path / "plain"), run(tmp_path / "watched", RetentionScores(1))
    assert plain[1] == watched[1] and torch.equal(plain[2], watched[2])
    for part in (0, 3):
        assert all(torch.equal(value, watched[part][name]) for name, value in plain[part].items())


def test_off_and_nothing_to_follow(model, tmp_path):
    fit(model, tmp_path / "off", RetentionScores(0))
    assert not (tmp_path / "off" / "retention.json").exists()
    watcher = RetentionScores(2, metric="portability", scoring="accuracy")
    fit(model, tmp_path / "none", watcher)
    assert watcher.last == {} and table(tmp_path / "none")["matrix"] == [[None] * 4] * 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"every_n_batches": -1}, "every_n_batches is -1"),
        ({"per_cohort": 0}, "per_cohort is 0"),
        ({"cohorts": 0}, "cohorts is 0"),
        ({"metric": "eficacy"}, "metric is 'eficacy'; there is efficacy, paraphrase"),
        ({"metric": "efficacy_more"}, "metric is 'efficacy_more'"),
        ({"metric": "locality"}, "scoring is 'accuracy'; locality has agreement"),
    ],
)
def test_mistakes_are_told(options, sentence):
    with pytest.raises(EditError, match=sentence):
        RetentionScores(**options)


def test_a_run_without_a_stream_is_refused(model, tmp_path):
    data = stream(tmp_path)
    data.setup()
    run = trainer(tmp_path, [RetentionScores()])
    with pytest.raises(EditError, match="needs the stream of edits"):
        run.fit(editor(model, tmp_path / "cache"), data.train_dataloader(), data.val_dataloader()[0])


def test_kinds_of_portability_can_be_followed():
    assert RetentionScores(metric="portability_reasoning").name == "portability_reasoning/accuracy/teacher_forced"
