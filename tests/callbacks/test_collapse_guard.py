"""The guard against collapse: when it ends a run, what it leaves, and how the run goes on."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from stream import editor, stream, trainer, write_facts
from tiny import save_tiny

from lit_edit.callbacks import CollapseGuard, Report, StreamCheckpoint
from lit_edit.data import EditStream
from lit_edit.errors import EditError
from lit_edit.probes.base import Probe

ROOT = Path(__file__).resolve().parents[2]
MONITOR = "probe/script/accuracy/teacher_forced"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("gpt2"), "gpt2"))


class Script(Probe):
    """An ability with a number written down for every count of edits; it stays at the last one."""

    name, columns, shown = "script", ("value",), "accuracy/teacher_forced"

    def __init__(self, by_edits):
        self.by_edits, self.module = by_edits, None

    def items(self):
        return ["?"]

    def measure(self, scorer, items):
        known = [value for edits, value in sorted(self.by_edits.items()) if edits <= self.module.edits]
        return torch.full((len(items), 1), known[-1] if known else 1.0, dtype=torch.float64)

    def summarise(self, outcomes):
        return {self.shown: float(outcomes.mean()) if len(outcomes) else math.nan}


def fit(model, folder, guard, by_edits, ckpt=None, every=1, count=16, module=None, **options):
    """A run of batches of two with a validation after each; ``by_edits`` is what the probe says."""
    folder.mkdir(exist_ok=True)
    module = module or editor(model, folder.parent / "cache")
    probe = Script(by_edits)
    probe.module = module
    data = EditStream(path=write_facts(folder / "facts.jsonl", count), batch_size=2, probes=[probe])
    save = StreamCheckpoint(
        str(folder / "checkpoints"),
        save_last=True,
        every_n_train_steps=every,
        save_on_exception=True,
        enable_version_counter=False,
    )
    callbacks = [*([] if guard is None else [guard]), save]
    run = trainer(folder, callbacks, enable_checkpointing=True, val_check_interval=1, **options)
    run.fit(module, datamodule=data, ckpt_path=ckpt)
    return module, run


def last(folder):
    return str(folder / "checkpoints" / "last.ckpt")


def rows(run):
    return next(callback for callback in run.callbacks if isinstance(callback, Report)).rows


# ------------------------------------------------------------------------------------------------ when it ends a run


@pytest.mark.parametrize(
    ("options", "by_edits", "ends"),
    [
        ({"below": 0.5}, {6: 0.4}, 6),
        ({"below": 0.5}, {6: 0.5}, None),
        ({"below": 0.5}, {6: math.nan}, 6),
        ({"above": 9.0}, {8: math.nan}, 8),
        ({"above": 9.0}, {4: 9.0, 10: 9.5}, 10),
        ({"above": 9.0}, {4: math.inf}, 4),
        ({"below": 0.5, "above": 2.0}, {4: 3.0}, 4),
        ({"below": 0.5, "patience": 2}, {4: 0.1, 6: 0.9, 8: 0.1, 10: 0.9}, None),
        ({"below": 0.5, "patience": 2}, {4: 0.1, 6: 0.9, 10: 0.1}, 12),
        ({"below": 0.5, "patience": 3}, {4: 0.1, 6: math.nan}, 8),
    ],
)
@pytest.mark.parametrize("action", ["stop", "pause"])
def test_when(model, tmp_path, options, by_edits, ends, action):
    guard = CollapseGuard(MONITOR, action=action, **options)
    module, run = fit(model, tmp_path / "run", guard, by_edits)
    assert module.edits == (ends or 16)
    assert bool(guard.said) == (ends is not None) and guard.paused == (ends is not None and action == "pause")
    if ends:
        folder = tmp_path / "run"
        assert (
            f"the run after {ends} edits: {MONITOR} is" in guard.said and f"--run_dir {folder} --ckpt_path last" in guard.said
        )
        assert (
            guard.said.startswith(f"CollapseGuard {'stopped' if action == 'stop' else 'paused'} ")
            and last(folder) in guard.said
        )
        assert rows(run)[-1]["edits"] == ends


def test_the_sentence_reaches_the_user(model, tmp_path, caplog):
    with caplog.at_level("INFO"):
        fit(model, tmp_path / "run", CollapseGuard(MONITOR, below=0.5, patience=2), {4: 0.25})
    (said,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("CollapseGuard")]
    assert "after 6 edits" in said and "is 0.25, below 0.5 in 2 validations in a row" in said and "\n" not in said


def test_other_validations_are_not_judged(model, tmp_path):
    guard = CollapseGuard(MONITOR, below=0.5)
    module = editor(model, tmp_path / "cache")
    probe = Script({0: 0.1})
    probe.module = module
    data = EditStream(path=write_facts(tmp_path / "facts.jsonl", 4), batch_size=2, probes=[probe])
    run = trainer(tmp_path, [guard])
    run.validate(module, datamodule=data, verbose=False)
    assert guard.bad == 0 and not guard.said and not run.should_stop


def test_edits_so_far_can_be_watched(model, tmp_path):
    """The names of the scores before the first edit and at the end of the stream are others; that is no mistake."""
    name = "edit/so_far/efficacy/probability/teacher_forced"
    module = editor(model, tmp_path / "cache")
    data = stream(tmp_path)
    guard = CollapseGuard(name, below=-1.0, patience=2)
    run = trainer(tmp_path, [guard], val_check_interval=1)
    run.validate(module, datamodule=data, verbose=False)
    run.fit(module, datamodule=data)
    assert module.edits == 8 and guard.bad == 0
    folder = tmp_path / "again"
    module, run = fit(model, folder, CollapseGuard(name, below=2.0, patience=2), {})
    assert module.edits == 4


def test_a_stale_number_is_not_judged_twice(model, tmp_path):
    """At the end of the stream the protocol is ``final``, and what is called ``so_far`` is from the validation before."""
    guard = CollapseGuard("edit/so_far/efficacy/probability/teacher_forced", below=2.0, patience=8)
    module, _ = fit(model, tmp_path / "run", guard, {})
    assert module.edits == 16 and guard.bad == 7


def test_an_empty_validation_says_nothing():
    guard = CollapseGuard(MONITOR, below=0.5)
    run = SimpleNamespace(sanity_checking=False, state=SimpleNamespace(fn="fit"), callback_metrics={}, should_stop=False)
    module = SimpleNamespace(scores=SimpleNamespace(protocol="so_far"), probe_rows={"script": []})
    guard.on_validation_end(run, module)
    run.callback_metrics = {MONITOR: torch.tensor(math.nan)}  # none of its items was reached
    guard.on_validation_end(run, module)
    assert guard.bad == 0 and not run.should_stop
    module.probe_rows["script"] = [torch.ones(1, 1)]
    guard.on_validation_end(run, module)
    assert guard.bad == 1 and run.should_stop


# ------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    "monitor", ["probe/sentimnet/accuracy/teacher_forced", "probe/script", "edit/so_far/efficacy/accuracy", "x"]
)
def test_an_unknown_monitor_is_told_at_the_first_validation(model, tmp_path, monitor):
    module = editor(model, tmp_path / "cache")
    with pytest.raises(EditError, match=rf"'{monitor}' is not measured by this run; there is .*{MONITOR}"):
        fit(model, tmp_path / "run", CollapseGuard(monitor, below=0.5), {}, module=module)
    assert module.edits == 2


def test_an_unknown_probe_is_told_before_the_first_edit(model, tmp_path):
    module = editor(model, tmp_path / "cache")
    with pytest.raises(EditError, match="'probe/nothing/accuracy' is not measured"):
        trainer(tmp_path, [CollapseGuard("probe/nothing/accuracy", below=0.5)]).validate(module, datamodule=stream(tmp_path))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "no threshold"),
        ({"below": math.nan}, "below is nan"),
        ({"below": 2.0, "above": 1.0}, "every number counts"),
        ({"below": 0.5, "action": "halt"}, "action is 'halt'"),
        ({"below": 0.5, "patience": 0}, "patience is 0"),
    ],
)
def test_mistakes_are_told(options, sentence):
    with pytest.raises(EditError, match=sentence):
        CollapseGuard(MONITOR, **options)


# ------------------------------------------------------------------------------------------------ going on


def masters(module):
    found = {f"master {layer}": module.master(layer).detach().clone() for layer in module.layers}
    return {**found, **{name: value.clone() for name, value in module.editor.state_dict().items()}}


@pytest.mark.parametrize("every", [1, 3, 100])
@pytest.mark.parametrize("ends", [2, pytest.param(6, marks=pytest.mark.slow), 14])
def test_a_run_that_goes_on_equals_one_that_never_stopped(model, tmp_path, every, ends):
    whole, observed = fit(model, tmp_path / "whole", None, {ends: 0.1})
    folder = tmp_path / "part"
    stopped, _ = fit(model, folder, CollapseGuard(MONITOR, below=0.5), {ends: 0.1}, every=every)
    assert stopped.edits == ends
    resumed, run = fit(model, folder, CollapseGuard(MONITOR, below=-1), {ends: 0.1}, last(folder), every=every)
    assert resumed.position == 16
    for name, value in masters(whole).items():
        assert torch.equal(value, masters(resumed)[name]), name
    assert rows(run) == rows(observed), "every validation once, the one that ended the run included"
    cases = [json.loads(line)["cases"] for line in (folder / "journal.jsonl").read_text().splitlines()]
    assert cases == [[str(i), str(i + 1)] for i in range(0, 16, 2)]


def test_stop_and_pause_differ_when_the_run_goes_on(model, tmp_path):
    reached = {}
    for action in ("stop", "pause"):
        folder = tmp_path / action
        for ckpt in (None, last(folder)):
            guard = CollapseGuard(MONITOR, below=0.5, patience=2, action=action)
            module, _ = fit(model, folder, guard, {4: 0.1}, ckpt)
        reached[action] = module.edits
    assert reached == {"stop": 8, "pause": 10}, "stopped again at once, or with patience of its own"


def test_the_count_survives_any_interruption(model, tmp_path):
    class Fail(Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == 3:
                raise RuntimeError("on purpose")

    guard = CollapseGuard(MONITOR, below=0.5, patience=3)
    folder = tmp_path / "run"
    folder.mkdir()
    module = editor(model, tmp_path / "cache")
    probe = Script({4: 0.1})
    probe.module = module
    data = EditStream(path=write_facts(folder / "facts.jsonl", 16), batch_size=2, probes=[probe])
    save = StreamCheckpoint(
        str(folder / "checkpoints"),
        save_last=True,
        every_n_train_steps=100,
        save_on_exception=True,
        enable_version_counter=False,
    )
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer(folder, [guard, Fail(), save], enable_checkpointing=True, val_check_interval=1).fit(module, datamodule=data)
    assert guard.bad == 2
    again = CollapseGuard(MONITOR, below=0.5, patience=3)
    module, _ = fit(model, folder, again, {4: 0.1}, last(folder), every=100)
    assert module.edits == 8 and again.bad == 3


def test_a_checkpoint_is_left_where_the_run_saves_none(model, tmp_path):
    module = editor(model, tmp_path / "cache")
    probe = Script({4: 0.1})
    probe.module = module
    data = EditStream(path=write_facts(tmp_path / "facts.jsonl", 8), batch_size=2, probes=[probe])
    trainer(tmp_path, [CollapseGuard(MONITOR, below=0.5)], val_check_interval=1).fit(module, datamodule=data)
    assert module.edits == 4
    fresh = editor(model, tmp_path / "cache")
    probe.module = fresh
    run = trainer(tmp_path, val_check_interval=1)
    run.fit(fresh, datamodule=data, ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"))
    assert fresh.edits == 8


def test_two_guards_watch_two_numbers(model, tmp_path):
    class Both(CollapseGuard):
        pass

    other = CollapseGuard("edit/so_far/efficacy/probability/teacher_forced", below=-1)
    module = editor(model, tmp_path / "cache")
    probe = Script({4: 0.1})
    probe.module = module
    data = EditStream(path=write_facts(tmp_path / "facts.jsonl", 8), batch_size=2, probes=[probe])
    guards = [other, CollapseGuard(MONITOR, below=0.5)]
    trainer(tmp_path, guards, val_check_interval=1).fit(module, datamodule=data)
    assert module.edits == 4 and guards[1].said and not guards[0].said
