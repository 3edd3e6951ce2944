"""Statistics of other implementations: sums are told from means, and nothing that does not fit is taken."""

import csv
import logging
import pickle

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from lit_edit.anatomy import Anatomy
from lit_edit.errors import EditError
from lit_edit.moments import collect
from lit_edit.prompts import Encoder
from lit_edit.statistics.preparation import second_moments
from lit_edit.statistics.reference_moments import imported
from tests.stream import editor, stream, trainer
from tests.tiny import save_tiny, seeded, tiny_model, tiny_tokenizer

ROWS = [torch.randint(320, (40,), generator=seeded(n)).tolist() for n in range(150)]
NAME = "{}.{}.{}_float32_mom2_100000.npz"


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def anatomy(request):
    return Anatomy.of(tiny_model(request.param))


@pytest.fixture(scope="module")
def means(anatomy):
    return {layer: moment.mean for layer, moment in collect(anatomy, ROWS, (0, 1, 2), 10**9).items()}


COUNT = 6000


def write(folder, anatomy, layer, **fields):
    """As the reference implementations write it."""
    path = folder / NAME.format(anatomy.blocks_name, layer, anatomy.down_name)
    path.parent.mkdir(parents=True, exist_ok=True)
    named = {name.replace("__", "."): value for name, value in fields.items()}
    np.savez(path, **{name: value for name, value in named.items() if value is not None})
    return path


def usual(mean, count=COUNT):
    return {
        "mom2__constructor": "util.runningstats.SecondMoment()",
        "mom2__count": count,
        "mom2__mom2": (mean.double() * count).float().numpy(),
        "sample_size": 100_000,
    }


def load(where, anatomy, layers=(1,), said=None):
    return imported(str(where), anatomy, Encoder(tiny_tokenizer()), layers, (said if said is not None else []).append)


def test_sums_are_divided_by_their_count(anatomy, means, tmp_path):
    folder = tmp_path / "model" / "wikipedia_stats"
    paths = [write(folder, anatomy, layer, **usual(means[layer])) for layer in (0, 1, 2)]
    write(folder, anatomy, 11, **usual(means[0]))  # not layer 1
    (folder / "other.1.mlp.c_fc_float32_mom2_100000.npz").write_bytes(b"")
    said = []
    found = load(tmp_path, anatomy, (0, 2, 1), said)
    for layer, moment in found.items():
        assert moment.mean.dtype == torch.float32 and moment.count == COUNT and np.isnan(moment.change)
        torch.testing.assert_close(moment.mean, means[layer], rtol=1e-5, atol=1e-7)
    assert [line for line in said if "a sum over 6,000 tokens, divided by them" in line] == said and len(said) == 3
    assert str(paths[2]) in said[1] and "layer 2" in said[1]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", "longdouble"])
def test_means_are_used_as_they_are_in_any_precision_and_order(anatomy, means, tmp_path, dtype):
    said = []
    array = np.asfortranarray(means[1].numpy().astype(dtype))
    write(tmp_path, anatomy, 1, mom2__mom2=array, mom2__count=np.array(COUNT))
    found = load(tmp_path, anatomy, said=said)[1]
    tolerance = 1e-3 if dtype == "float16" else 1e-6
    torch.testing.assert_close(found.mean, means[1], rtol=tolerance, atol=tolerance * float(means[1].abs().max()))
    assert "used as it is" in said[0] and found.count == COUNT


@pytest.mark.parametrize("count", [None, np.array(float("nan"))])
def test_a_mean_without_a_count(anatomy, means, tmp_path, count):
    said = []
    write(tmp_path, anatomy, 1, mom2=means[1].numpy(), count=count)
    torch.testing.assert_close(load(tmp_path, anatomy, said=said)[1].mean, means[1])
    assert "unknown number" in said[0]


def test_a_pattern_names_files_of_any_name(anatomy, means, tmp_path):
    for layer in (0, 1):
        write(tmp_path, anatomy, layer, **usual(means[layer])).rename(tmp_path / f"l{layer}-own.npz")
    found = load(tmp_path / "l{}-*.npz", anatomy, (0, 1))
    torch.testing.assert_close(found[0].mean, means[0], rtol=1e-5, atol=1e-7)
    with pytest.raises(EditError, match=r"layer 2 has no second moment to import: no file matches .*l2-"):
        load(tmp_path / "l{}-*.npz", anatomy, (0, 2))
    with pytest.raises(EditError, match=r"no \.npz file in .* is named after .*\.1\."):
        load(tmp_path, anatomy)
    with pytest.raises(EditError, match="which is no folder"):
        load(tmp_path / "nowhere", anatomy)


def test_two_files_for_a_layer_are_one_too_many(anatomy, means, tmp_path):
    for name in ("one", "other"):
        write(tmp_path / name, anatomy, 1, **usual(means[1]))
    with pytest.raises(EditError, match=r"layer 1 has 2 files to import .*name one with a pattern"):
        load(tmp_path, anatomy)
    assert load(tmp_path / "one", anatomy)


def lopsided(c):
    return c + torch.triu(c.abs().max() * torch.ones_like(c), 1)


BAD = {
    "shape": (lambda c: usual(c[:5, :5]), r"mom2.mom2 in .*shape \(5, 5\).*another model"),
    "oblong": (lambda c: usual(c[:5]), "another model"),
    "nan": (lambda c: usual(c.clone().fill_diagonal_(float("nan"))), "not finite"),
    "asymmetric": (lambda c: usual(lopsided(c)), "mom2.mom2 in .*not symmetric"),
    "negative": (lambda c: usual(-c), "negative or all zero"),
    "zero": (lambda c: usual(0 * c), "negative or all zero"),
    "scale": (lambda c: usual(c * 1e9), r"mom2.mom2 in .*does not fit this model.*times"),
    "sum without count": (lambda c: {"mom2": (c * 1e6).numpy()}, "mom2 in .*a sum without a count"),
    "integers": (lambda c: {"mom2": c.numpy().astype(int)}, "holds int64"),
    "count": (lambda c: {**usual(c), "mom2__count": 0}, "mom2.count in .*number of tokens"),
    "count text": (lambda c: {**usual(c), "mom2__count": "many"}, "mom2.count in .*number of tokens"),
    "fields": (
        lambda c: {"mean.mean": c[0].numpy(), "mean.count": 3},
        r"no field mom2.mom2 .*it holds mean\.mean, mean\.count",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused(anatomy, means, tmp_path, name):
    make, message = BAD[name]
    path = write(tmp_path, anatomy, 1, **make(means[1]))
    with pytest.raises(EditError, match=message) as caught:
        load(tmp_path, anatomy)
    assert str(path) in str(caught.value)


class Exploding:
    """Leaves a trace if it is ever unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("how", ["object", "pickle", "cut", "empty", "npy", "folder"])
def test_nothing_is_ever_unpickled_and_damage_is_told(anatomy, means, tmp_path, how):
    trace = tmp_path / "trace"
    path = write(tmp_path, anatomy, 1, **usual(means[1]))
    if how == "object":
        write(tmp_path, anatomy, 1, mom2__mom2=np.array([Exploding(trace)], dtype=object), mom2__count=1)
    elif how == "pickle":
        path.write_bytes(pickle.dumps(Exploding(trace)))
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-2000])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "npy":
        with path.open("wb") as file:
            np.save(file, means[1].numpy())
    else:
        path.unlink()
        path.mkdir()
    with pytest.raises(EditError, match=r"cannot be read as an \.npz file|one array without a name") as caught:
        load(tmp_path, anatomy)
    assert str(path) in str(caught.value) and not trace.exists()


def test_the_random_state_and_the_store_are_left_alone(anatomy, means, tmp_path):
    write(tmp_path, anatomy, 1, **usual(means[1]))
    state = torch.get_rng_state()
    found = second_moments(
        anatomy, Encoder(tiny_tokenizer()), (1,), None, None, None, lambda *_: None, str(tmp_path), lambda _: None
    )
    assert torch.equal(state, torch.get_rng_state()) and set(found) == {1}


def test_a_run_says_what_it_imports_and_logs_what_it_collects(tmp_path, caplog):
    model = save_tiny(tmp_path / "model", "gpt2")
    anatomy = Anatomy.of(tiny_model("gpt2"))
    for layer, moment in collect(anatomy, ROWS, (0, 1), 10**9).items():
        write(tmp_path / "stats", anatomy, layer, **usual(moment.mean))
    with caplog.at_level(logging.INFO):
        module = editor(str(model), tmp_path / "cache", moments_from=str(tmp_path / "stats"))
        trainer(tmp_path / "a").fit(module, stream(tmp_path, 2))
    assert "Second moment of layer 1:" in caplog.text and module.moment_scalars == {} and module.edits == 2
    assert not (tmp_path / "cache" / "second-moment").exists()

    module = editor(str(model), tmp_path / "cache")
    trainer(tmp_path / "b", logger=CSVLogger(tmp_path / "b"), log_every_n_steps=1).fit(module, stream(tmp_path, 2))
    with next((tmp_path / "b").rglob("metrics.csv")).open() as file:
        rows = [row for row in csv.DictReader(file) if row["moments/convergence/layer_0"]]
    assert len(rows) == 1 and rows[0]["step"] == "0"
    assert {name: float(rows[0][name]) for name in module.moment_scalars} == pytest.approx(module.moment_scalars)
    assert 0 < module.moment_scalars["moments/convergence/layer_1"] < 1
    assert 1 <= module.moment_scalars["moments/effective_tokens/layer_0"] <= 600
