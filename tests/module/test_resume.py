"""Saving and resuming: equal to a run that never stopped, and nothing foreign is taken for one's own."""

import json

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from stream import editor, stream, trainer
from tiny import save_tiny, tiny_model

from lit_edit.callbacks import StreamCheckpoint
from lit_edit.editors import MEMIT
from lit_edit.errors import EditError
from lit_edit.runs.checkpoint_io import SafetensorsCheckpointIO


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    save_tiny(folder, "gpt2")
    return str(folder)


def saving(folder, **options):
    return ModelCheckpoint(
        str(folder / "checkpoints"), save_last=True, every_n_train_steps=1, save_on_exception=True, **options
    )


def fit(model, folder, ckpt=None, callbacks=(), module=None, **options):
    folder.mkdir(exist_ok=True)
    module = module or editor(model, folder.parent / "cache")
    run = trainer(folder, [saving(folder), *callbacks], enable_checkpointing=True, **options)
    run.fit(module, datamodule=stream(folder), ckpt_path=ckpt)
    return module


def state(module):
    return {**{f"master {layer}": module.master(layer).detach() for layer in module.layers}, **module.editor.state_dict()}


class _Fail(Callback):
    def __init__(self, hook, at):
        self.hook, self.at = hook, at
        setattr(self, hook, self._fail)

    def _fail(self, trainer, *_):
        if trainer.global_step == self.at:
            raise RuntimeError("on purpose")


def test_stop_and_resume_equals_an_uninterrupted_run(model, tmp_path):
    whole = fit(model, tmp_path / "whole")
    fit(model, tmp_path / "part", max_steps=2)
    resumed = fit(model, tmp_path / "part", tmp_path / "part" / "checkpoints" / "last.ckpt")
    for name, value in state(whole).items():
        assert torch.equal(value, state(resumed)[name]), name
    journals = [(tmp_path / part / "journal.jsonl").read_text().splitlines() for part in ("whole", "part")]
    assert [json.loads(line)["cases"] for line in journals[0]] == [json.loads(line)["cases"] for line in journals[1]]
    assert whole.templates == resumed.templates and resumed.position == 8


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end"])
def test_resume_after_an_error_anywhere_in_a_batch(model, tmp_path, hook):
    whole = fit(model, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(model, tmp_path / "part", callbacks=[_Fail(hook, 2)])
    resumed = fit(model, tmp_path / "part", str(tmp_path / "part" / "checkpoints" / "last.ckpt"))
    for name, value in state(whole).items():
        assert torch.equal(value, state(resumed)[name]), name
    cases = [json.loads(line)["cases"] for line in (tmp_path / "part" / "journal.jsonl").read_text().splitlines()]
    assert cases == [["0", "1"], ["2", "3"], ["4", "5"], ["6", "7"]]


@pytest.mark.parametrize(("every", "max_steps", "steps"), [(3, -1, 4), (2, -1, 4), (10, -1, 4), (2, 3, 3)])
def test_the_last_checkpoint_holds_every_batch_of_the_run(model, tmp_path, every, max_steps, steps):
    module = editor(model, tmp_path / "cache")
    save = StreamCheckpoint(str(tmp_path / "checkpoints"), save_last=True, every_n_train_steps=every)
    run = trainer(tmp_path, [save], enable_checkpointing=True, max_steps=max_steps)
    run.fit(module, datamodule=stream(tmp_path))
    saved = SafetensorsCheckpointIO().load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert saved["global_step"] == steps and saved["lit_edit"]["position"] == 2 * steps == module.position
    assert torch.equal(saved["state_dict"]["masters.layer_1"], module.master(1).detach())


def test_a_run_that_max_steps_ended_goes_on(model, tmp_path):
    def part(folder, max_steps, ckpt=None):
        save = StreamCheckpoint(
            str(tmp_path / folder / "checkpoints"), save_last=True, every_n_train_steps=2, enable_version_counter=False
        )
        module = editor(model, tmp_path / "cache")
        run = trainer(tmp_path / folder, [save], enable_checkpointing=True, max_steps=max_steps)
        run.fit(module, datamodule=stream(tmp_path), ckpt_path=ckpt)
        return module

    whole = part("whole", -1)
    part("part", 3)
    resumed = part("part", -1, tmp_path / "part" / "checkpoints" / "last.ckpt")
    assert resumed.position == 8
    assert torch.equal(resumed.master(0), whole.master(0)) and torch.equal(resumed.master(1), whole.master(1))


def test_a_checkpoint_holds_what_changed_and_nothing_else(model, tmp_path):
    module = fit(model, tmp_path / "run", max_steps=1)
    saved = SafetensorsCheckpointIO().load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    history = {f"editor.earlier.{layer}.{what}" for layer in (0, 1) for what in ("keys", "sizes", "folded")}
    assert set(saved["state_dict"]) == {"masters.layer_0", "masters.layer_1", *history}
    assert saved["lit_edit"]["templates"] == list(module.templates)
    assert saved["lit_edit"]["position"] == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"layers": [1, 2]}, "layers"), ({"guards": []}, "guards"), ({"editor": type("Other", (MEMIT,), {})(lam=1.0)}, "editor")],
)
def test_a_checkpoint_of_another_run_is_refused(model, tmp_path, options, sentence):
    fit(model, tmp_path / "run", max_steps=1)
    with pytest.raises(EditError, match=f"another {sentence}"):
        fit(
            model,
            tmp_path / "run",
            tmp_path / "run" / "checkpoints" / "last.ckpt",
            module=editor(model, tmp_path / "cache", **options),
        )


def test_a_checkpoint_of_other_weights_is_refused(model, tmp_path):
    fit(model, tmp_path / "run", max_steps=1)
    other = tmp_path / "other"
    save_tiny(other, "gpt2")
    changed = tiny_model("gpt2")
    changed.transformer.h[1].mlp.c_proj.weight.data[0, 0] += 1e-3
    changed.save_pretrained(other)
    with pytest.raises(EditError, match="other original weights"):
        fit(str(other), tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.ckpt")


def test_validate_from_a_checkpoint_scores_the_edited_model(model, tmp_path):
    edited = fit(model, tmp_path / "run")
    fresh = editor(model, tmp_path / "cache")
    run = trainer(tmp_path / "run")
    found = run.validate(
        fresh, datamodule=stream(tmp_path / "run"), ckpt_path=str(tmp_path / "run" / "checkpoints" / "last.ckpt"), verbose=False
    )
    assert torch.equal(fresh.anatomy.weight(0), edited.anatomy.weight(0))
    assert any(name.startswith("edit/final/efficacy") for name in found[0])


def test_damage_to_any_part_of_a_checkpoint_is_noticed(model, tmp_path):
    fit(model, tmp_path / "run", max_steps=1)
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    whole = path.read_bytes()
    for at in range(8, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(EditError):
            SafetensorsCheckpointIO().load_checkpoint(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EditError, match="damaged"):
        SafetensorsCheckpointIO().load_checkpoint(path)
    path.write_bytes(whole)
    SafetensorsCheckpointIO().load_checkpoint(path)


@pytest.mark.parametrize("idle", [False, True])
def test_a_finished_stream_that_has_grown_goes_on(model, tmp_path, idle):
    def over(count, folder, ckpt=None):
        folder.mkdir(exist_ok=True)
        module = editor(model, tmp_path / "cache")
        run = trainer(folder, [saving(folder)], enable_checkpointing=True)
        run.fit(module, datamodule=stream(folder, count), ckpt_path=ckpt)
        return module

    last = str(tmp_path / "grown" / "checkpoints" / "last.ckpt")
    over(4, tmp_path / "grown")
    if idle:  # a resume that finds nothing to do closes the epoch
        over(4, tmp_path / "grown", last)
    grown = over(8, tmp_path / "grown", last)
    whole = over(8, tmp_path / "whole")
    assert grown.position == 8
    for name, value in state(whole).items():
        assert torch.equal(value, state(grown)[name]), name


def test_a_run_that_does_not_resume_leaves_an_earlier_journal_alone(model, tmp_path):
    fit(model, tmp_path / "run", max_steps=1)
    before = (tmp_path / "run" / "journal.jsonl").read_text()
    with pytest.raises(EditError, match="holds a run of 1 batches"):
        fit(model, tmp_path / "run")
    assert (tmp_path / "run" / "journal.jsonl").read_text() == before


def test_a_checkpoint_of_weights_only_is_scored_but_not_resumed(model, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    run = trainer(folder, [saving(folder, save_weights_only=True)], enable_checkpointing=True, max_steps=1)
    run.fit(editor(model, tmp_path / "cache"), datamodule=stream(folder))
    last = str(folder / "checkpoints" / "last.ckpt")
    with pytest.raises(EditError, match="weights only"):
        fit(model, folder, last)
    assert trainer(folder).validate(editor(model, tmp_path / "cache"), datamodule=stream(folder), ckpt_path=last, verbose=False)


def test_a_resume_that_is_refused_leaves_the_checkpoint_as_it_was(model, tmp_path):
    def over(batch_size, ckpt=None, **options):
        module = editor(model, tmp_path / "cache")
        save = StreamCheckpoint(
            str(tmp_path / "checkpoints"),
            save_last=True,
            every_n_train_steps=2,
            save_on_exception=True,
            enable_version_counter=False,
        )
        run = trainer(tmp_path, [save], enable_checkpointing=True, **options)
        run.fit(module, datamodule=stream(tmp_path, batch_size=batch_size), ckpt_path=ckpt)

    over(2, max_steps=2)
    last = tmp_path / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    with pytest.raises(EditError, match="batch_size 2, this run has 4"):
        over(4, str(last))
    assert last.read_bytes() == before
    over(2, str(last))


def test_a_validation_that_was_broken_off_is_made_up_for_and_later_ones_come_when_they_are_due(model, tmp_path):
    """Also where the counters of Lightning were saved in the middle of a batch, which it only half repairs."""

    class Note(Callback):
        def __init__(self, fail=None):
            self.seen, self.steps, self.fail = [], [], fail

        def on_validation_epoch_end(self, trainer, pl_module):
            if trainer.global_step == self.fail:
                raise RuntimeError("on purpose")

        def on_validation_end(self, trainer, pl_module):
            self.seen.append(pl_module.batches)

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if self.fail is not None and self.fail < 0 and trainer.global_step == -self.fail:
                raise RuntimeError("on purpose")
            self.steps.append(trainer.fit_loop.epoch_loop._batches_that_stepped)

    def over(folder, note, ckpt=None):
        folder.mkdir(exist_ok=True)
        save = StreamCheckpoint(
            str(folder / "checkpoints"),
            save_last=True,
            every_n_train_steps=9,
            save_on_exception=True,
            enable_version_counter=False,
        )
        run = trainer(folder, [note, save], enable_checkpointing=True)
        run.fit(editor(model, tmp_path / "cache"), datamodule=stream(folder, 12), ckpt_path=ckpt)
        return note

    assert over(tmp_path / "whole", Note()).seen == [2, 4, 6]
    for fail, seen in ((4, [4, 6]), (-3, [4, 6]), (-4, [6])):
        folder = tmp_path / f"part{fail}"
        with pytest.raises(RuntimeError, match="on purpose"):
            over(folder, Note(fail))
        note = over(folder, Note(), str(folder / "checkpoints" / "last.ckpt"))
        assert note.seen == seen and note.steps == list(range(abs(fail), 6)), fail
        rows = json.loads((folder / "summary.json").read_text())["validations"]
        assert [row["batches"] for row in rows] == [2, 4, 6]


def test_the_state_of_the_random_numbers_goes_on_where_it_was(model, tmp_path):
    class Chancy(MEMIT):
        drawn: list = []  # noqa: RUF012

        def aim(self, bench, rows):
            type(self).drawn.append(float(torch.rand(())))
            return super().aim(bench, rows)

    def over(folder, ckpt=None, **options):
        Chancy.drawn = []
        torch.manual_seed(7 if ckpt is None else 8)
        fit(model, folder, ckpt, module=editor(model, tmp_path / "cache", editor=Chancy(lam=10.0)), **options)
        return Chancy.drawn

    whole = over(tmp_path / "whole")
    first = over(tmp_path / "part", max_steps=2)
    assert first + over(tmp_path / "part", str(tmp_path / "part" / "checkpoints" / "last.ckpt")) == whole


@pytest.mark.parametrize(
    "text", ['{"validations": [{"edits": 2', '{"validations": 3}', '{"validations": [{"edits": 2}]}', "[]"]
)
def test_a_damaged_summary_is_told_and_the_run_goes_on_without_it(model, tmp_path, text):
    folder = tmp_path / "part"
    fit(model, folder, max_steps=2)
    ckpt = str(folder / "checkpoints" / "last.ckpt")
    (folder / "summary.json").write_text(text)
    with pytest.raises(
        EditError, match=r"summary.json is damaged \(.+\); without the file, the run goes on from its checkpoint"
    ):
        fit(model, folder, ckpt)
    (folder / "summary.json").unlink()
    assert fit(model, folder, ckpt).batches == 4
