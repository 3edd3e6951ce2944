"""No editor factors a matrix of the size of the weight for every batch."""

import pytest
import torch
from stream import editor, stream, trainer
from tiny import save_tiny

import lit_edit.editors as editors
from lit_edit.guards import REVIVE

WIDE = {"intermediate_size": 160}  # far more inputs than keys, so that sizes tell what was factored

METHODS = {
    "MEMIT": lambda: editors.MEMIT(10.0, history=True),
    "EMMET": lambda: editors.EMMET(10.0, history=True),
    "ENCORE": lambda: editors.ENCORE(10.0),
    "AlphaEdit": lambda: editors.AlphaEdit(1.0, 1.0),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    save_tiny(folder, "llama", **WIDE)
    return str(folder)


@pytest.mark.parametrize("name", METHODS)
def test_only_the_keys_of_a_stream_are_factored(name, model, tmp_path, monkeypatch):
    sizes = []

    def counting(function):
        def call(matrix, *args, **kwargs):
            sizes.append(min(matrix.shape[-2:]))
            return function(matrix, *args, **kwargs)

        return call

    module = editor(model, tmp_path / "cache", editor=METHODS[name](), guards=[REVIVE(mode="constrain")])
    prepare = module.prepare

    def watched():
        prepare()
        for what in ("cholesky", "cholesky_ex", "eigh", "inv", "lu_factor", "pinv", "qr", "solve", "svd"):
            monkeypatch.setattr(torch.linalg, what, counting(getattr(torch.linalg, what)))

    module.prepare = watched
    fit = trainer(tmp_path, [], val_check_interval=None, limit_val_batches=0)
    fit.callbacks = [c for c in fit.callbacks if type(c).__name__ not in ("SpectralDrift", "Report")]
    fit.fit(module, datamodule=stream(tmp_path, 8))
    allowed = 8 + sum(
        space.shape[1] for space in (module.guards[0].protected(0).right,)
    )  # keys of the stream, directions kept out of
    if name == "AlphaEdit":
        allowed += max(module.editor.removed.values())
    assert sizes and max(sizes) <= allowed < 160
