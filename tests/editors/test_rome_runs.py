"""ROME, R-ROME and p-ROME under a trainer: request after request, refusals, guards."""

import json

import pytest
import torch
from rome_parts import VARIANTS, Spoil

from lit_edit.editors.rome import ROME
from lit_edit.errors import EditError
from lit_edit.guards import REVIVE
from lit_edit.targets import TargetOptions
from tests.stream import editor, stream, trainer
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    save_tiny(folder, "llama")
    return str(folder)


def fit(model, folder, rome, batch_size, count=4, guards=(), cache=None):
    folder.mkdir(parents=True, exist_ok=True)
    targets = TargetOptions(steps=4, contexts=4, context_tokens=(4, 6), clamp=4.0)
    module = editor(model, cache or folder / "cache", layers=[1], editor=rome, guards=list(guards), targets=targets)
    trainer(folder).fit(module, datamodule=stream(folder, count, batch_size))
    return module, [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def changes(module):
    return module.master(1).detach() - module.original(1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_in_order_is_one_request_at_a_time(model, tmp_path, variant):
    options = VARIANTS[variant]
    together, records = fit(model, tmp_path / "together", ROME(**options), 4, cache=tmp_path / "cache")
    single, _ = fit(model, tmp_path / "single", ROME(**options), 1, cache=tmp_path / "cache")
    assert len(records) == 1 and together.edits == single.edits == 4
    assert together.templates == single.templates and len(together.templates) == 4
    expected = changes(single)
    assert float(expected.norm()) > 0.01
    torch.testing.assert_close(changes(together), expected, rtol=1e-3, atol=1e-4 * float(expected.norm()))
    assert torch.linalg.matrix_rank(expected.double(), rtol=1e-5) == 4


def test_a_run_carries_nothing_but_weights(model, tmp_path):
    module, _ = fit(model, tmp_path, ROME(adjust=False), 2)
    assert not module.editor.state_dict()
    assert not list((tmp_path / "cache").glob("second-moment/*")), "no second moments without adjust"


def test_a_refused_request_is_set_aside_in_the_journal(model, tmp_path):
    rome = Spoil()
    rome.bad = (1,)
    module, (record,) = fit(model, tmp_path, rome, 4)
    assert module.edits == 3 and module.position == 4 and record["rejected"] is None
    assert record["cases"] == ["0", "2", "3"] and "not finite" in record["set_aside"][0]["reason"]


@pytest.mark.parametrize("mode", ["project", "constrain"])
def test_under_a_guard_protected_directions_do_not_move(model, tmp_path, mode):
    module, _ = fit(model, tmp_path, ROME(), 4, guards=[REVIVE(tau=0.2, mode=mode)])
    space, change = module.guards[0].protected(1), changes(module)
    assert module.edits == 4 and space.rank >= 1 and float(change.norm()) > 0.01
    assert float((space.left.T @ change).norm()) < 1e-5 * float(change.norm())
    assert float((change @ space.right).norm()) < 1e-5 * float(change.norm())


def test_several_layers_are_refused_before_anything_is_computed(model, tmp_path):
    module = editor(model, tmp_path / "cache", layers=[0, 1], editor=ROME())
    with pytest.raises(EditError, match="one layer, but layers 0 and 1"):
        module.configure_model()
