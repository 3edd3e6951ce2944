"""Studies of streams: tables and figures of hand-made results, and whole studies over tiny streams."""

import io
import json
import logging
import math
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from PIL import Image
from stream import write_facts
from tiny import save_tiny

from lit_edit.__main__ import main
from lit_edit.errors import EditError
from lit_edit.figures import PALETTE, render
from lit_edit.studies.collapse import Collapse
from lit_edit.studies.condition import Condition
from lit_edit.studies.folder import StudyFolder
from lit_edit.studies.fronts import front, hypervolume, lead
from lit_edit.studies.measures import abilities, collapse_point, drift
from lit_edit.studies.methods import Methods
from lit_edit.studies.order import Order
from lit_edit.studies.pareto import Pareto
from lit_edit.studies.runner import run
from lit_edit.studies.seeds import along, band, over_seeds, student
from lit_edit.studies.streams import by_method, told_to
from lit_edit.studies.tau import Tau

ROOT = Path(__file__).resolve().parents[2]
GUARD = [{"class_path": "REVIVE", "init_args": {"tau": 0.2}}]


@pytest.fixture
def base(tmp_path):
    """A base configuration that is only named, never run."""
    path = tmp_path / "base.yaml"
    path.write_text("model: {}\n")
    return str(path)


# ---------------------------------------------------------------------------------------------- hand-made results


def made(about, skills=((0, 1.0), (10, 0.8), (20, 0.4)), efficacy=0.9, unrelated=0.6, perplexity=(10.0, 20.0), **extra):
    """A result as :func:`lit_edit.studies.streams.told` gives it."""
    edits = [at for at, _ in skills]
    last = edits[-1]
    scores = {f"{m}/success/teacher_forced": [[0, 0.0], [last, efficacy]] for m in ("efficacy", "paraphrase", "neighbourhood")}
    layers = {
        f"drift/{name}/layer_{layer}": [[at, value + layer] for at in edits[1:]]
        for layer in (0, 1)
        for name, value in (("relative_norm", 2.0), ("condition_number", 30.0), ("delta_norm", 4.0), ("ls", 0.0), ("ss", 0.0))
    }
    return {
        "about": about,
        "edits": last,
        "intervals": {"edit/final/efficacy/success/teacher_forced": [0.85, 0.95]},
        "changes": {"probe/unrelated_facts/accuracy/teacher_forced": [-0.5, -0.3], "probe/copying/accuracy/x": [-0.7, -0.5]},
        "probes": {
            "copying": {"shown": "probe/copying/accuracy/x", "higher_is_better": True},
            "text": {"shown": "probe/text/perplexity", "higher_is_better": False},
            "unrelated_facts": {"shown": "probe/unrelated_facts/accuracy/teacher_forced", "higher_is_better": True},
        },
        "validations": {
            **scores,
            "probe/copying/accuracy/x": [list(pair) for pair in skills],
            "probe/text/perplexity": [[0, perplexity[0]], *([at, perplexity[1]] for at in edits[1:])],
            "probe/unrelated_facts/accuracy/teacher_forced": [[0, 1.0], [last, unrelated]],
        },
        "undefined": {},
        "batches": layers,
        **extra,
    }


def test_abilities_are_relative_to_the_unedited_model_and_a_perplexity_counts_the_other_way_round():
    ability = abilities("unrelated_facts")
    result = made({}, skills=((0, 0.5), (10, 0.4), (20, 0.2)), perplexity=(10.0, 20.0))
    assert ability.curve(result) == [(0, 1.0), (10, pytest.approx((0.8 + 0.5) / 2)), (20, pytest.approx((0.4 + 0.5) / 2))]
    assert collapse_point(ability.curve(result)) == 20
    assert collapse_point(ability.curve(made({}, perplexity=(10.0, 10.0)))) is None
    # A model whose perplexity is no number has lost the ability, and is not judged by what is left to look at.
    lost = made({}, undefined={"probe/text/perplexity": [20]})
    del lost["validations"]["probe/text/perplexity"][-1]
    assert ability.curve(lost)[-1] == (20, pytest.approx((0.4 + 0.0) / 2))
    # A probe at 0 before the first edit has nothing to lose.
    nothing = made({}, skills=((0, 0.0), (10, 0.0)), perplexity=(10.0, 20.0))
    assert ability.curve(nothing)[-1] == (10, 0.5)
    assert ability.curve(made({}, probes={})) == []


def test_interval_of_the_mean_ability_joins_those_of_its_probes():
    result = made({}, perplexity=(10.0, 10.0))
    result["changes"]["probe/text/perplexity"] = [-1.0, 2.0]
    found = abilities("unrelated_facts").estimate([result])
    mean = (0.4 + 1.0) / 2
    below = math.hypot(0.4 - 0.3, 1.0 - 10 / 12) / 2
    above = math.hypot(0.5 - 0.4, 10 / 9 - 1.0) / 2
    assert found.over == "records"
    assert (found.value, found.low, found.high) == pytest.approx((mean, mean - below, mean + above))


def test_t_intervals_against_known_values():
    # scipy.stats.t.ppf(0.975, df)
    known = {1: 12.706205, 2: 4.302653, 4: 2.776445, 10: 2.228139, 30: 2.042272, 31: 2.039513, 60: 2.000298, 1000: 1.962339}
    for freedom, value in known.items():
        assert student(freedom) == pytest.approx(value, abs=2e-4)
    found = over_seeds([0.7, 0.8, 0.9])
    assert (found.value, found.low, found.high) == pytest.approx((0.8, 0.8 - 0.248414, 0.8 + 0.248414), abs=1e-5)
    assert over_seeds([0.7, 0.8, 0.9], (0.0, 1.0)).high == 1.0, "a rate does not leave [0, 1]"
    assert over_seeds([0.3]).low is None and over_seeds([]).value is None


def test_bands_span_what_all_runs_reached_and_interpolate_between_their_edits():
    found = band([[(0, 1.0), (10, 0.0)], [(0, 0.0), (5, 1.0), (20, 1.0)]])
    assert found.edits == [0, 5, 10] and found.mean == [0.5, 0.75, 0.5]
    assert found.low == [0.0, 0.5, 0.0] and found.high == [1.0, 1.0, 1.0], "few runs: smallest to largest"
    many = band([[(0, value)] for value in (1.0, 2.0, 3.0, 4.0, 5.0)])
    assert many.low[0] == pytest.approx(3 - 2.7764 * math.sqrt(2.5 / 5), abs=1e-3), "five runs: t-interval"
    assert band([[(0, 1.0), (0, 3.0)]]).mean == [3.0], "of a number of edits that comes twice, the later value"
    assert band([]).edits == []
    with pytest.raises(IndexError):
        along([(0.0, 1.0)], 2.0)


def test_fronts_of_random_points_against_brute_force():
    points = torch.rand(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    points = [tuple(point) for point in points]
    kept = [p for p in points if not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in points)]
    assert front(points) == sorted(kept) and 1 < len(kept) < 40
    grid = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    x, y = torch.meshgrid(grid, grid, indexing="ij")
    under = torch.zeros_like(x, dtype=torch.bool)
    for efficacy, preserved in points:
        under |= (x <= efficacy) & (y <= preserved)
    assert hypervolume(points) == pytest.approx(float(under.double().mean()), abs=5e-3)


def test_lead_is_the_mean_height_over_the_other_front():
    reference = [(0.4, 0.9), (0.6, 0.8), (0.9, 0.3)]
    higher = [(e, p + 0.05) for e, p in reference]
    assert lead(higher, reference) == pytest.approx(0.05) and lead(reference, higher) == pytest.approx(-0.05)
    along_it = [(0.5, 0.85), (0.75, 0.55)]  # other settings on the very same line
    assert lead(along_it, reference) < 0, "fewer settings, a chord under the bend"
    assert lead([(0.5, 0.85), (0.6, 0.8), (0.75, 0.55)], reference) == pytest.approx(0.0, abs=1e-12)
    # What is worse in both is no setting: below 0.5 the reference preserves 0.9 as well, and the lead there is 0.1.
    flat = [(0.1, 0.9), (0.5, 0.9)]
    assert lead([(0.1, 1.0), (0.5, 1.0)], flat) == pytest.approx(0.1)
    assert lead([(0.1, 0.9), (0.5, 1.0)], [(0.1, 0.9), (0.5, 0.8)]) == pytest.approx((0.1 + 0.2) / 2)
    assert lead([(0.1, 1.0), (0.2, 0.95)], reference) is None, "no common efficacy, no comparison"
    assert lead([], reference) is None


def test_layers_are_joined_and_measures_that_are_missing_are_left_out():
    result = made({})
    assert drift("relative_norm", "norm", 1.0).curve(result) == [(0, 1.0), (10, 2.5), (20, 2.5)]
    assert drift("condition_number", "norm", of="max").curve(result) == [(10, 31.0), (20, 31.0)]
    assert drift("ss_matched", "SS", 1.0).curve(result) == []
    result["batches"]["drift/delta_norm/layer_1"][1][1] = None
    assert drift("delta_norm", "norm").curve(result) == [(10, 4.5)], "infinite at 20 edits"


def collapse_results():
    sound = ((0, 1.0), (10, 1.0), (20, 0.9))
    about = [{"method": method, "seed": seed} for method in ("MEMIT", "MEMIT + REVIVE") for seed in (0, 1)]
    calm = {"perplexity": (10.0, 10.0)}
    return {
        "a": made(about[0], perplexity=(10.0, 40.0), efficacy=0.8),
        "b": made(about[1], skills=((0, 1.0), (10, 0.3), (20, 0.1)), perplexity=(10.0, 40.0), efficacy=0.6),
        "c": made(about[2], skills=sound, **calm),
        "d": made(about[3], perplexity=(10.0, 40.0)),
    }


def test_collapse_table(base):
    study = Collapse(base, {"MEMIT": {}, "MEMIT + REVIVE": {}}, [0, 1], {"data.seed": "$seed"})
    rows = {(row["measure"], row["method"]): row for row in study.table(collapse_results())}
    row = rows["efficacy", "MEMIT"]
    assert row["value"] == pytest.approx(0.7) and row["low"] == 0.0 and row["high"] == 1.0 and row["95 % over"] == "2 seeds"
    assert row["unedited"] == 0.0 and rows["abilities", "MEMIT"]["unedited"] == 1.0
    point = rows["collapse point [edits]", "MEMIT"]
    assert point["value"] == 15.0 and point["collapsed"] == "2 of 2 runs", "at 20 and at 10 edits"
    guarded = rows["collapse point [edits]", "MEMIT + REVIVE"]
    assert guarded["value"] is None and guarded["collapsed"] == "1 of 2 runs"
    single = {(row["measure"], row["method"]): row for row in study.table({"c": collapse_results()["c"]})}
    assert single["collapse point [edits]", "MEMIT + REVIVE"]["collapsed"] == "never"
    row = single["efficacy", "MEMIT + REVIVE"]
    assert (row["low"], row["high"], row["95 % over"]) == (0.85, 0.95, "records")
    row = single["unrelated facts", "MEMIT + REVIVE"]
    assert (row["low"], row["high"]) == pytest.approx((0.5, 0.7)), "the unedited number and the change since"
    assert study.table({}) == []


def pareto_study(base):
    guards = {"no guard": None, "REVIVE": GUARD, "random": GUARD}
    return Pareto(base, [1.0, 10.0, 100.0], guards, seeds=[0, 1, 2], options={"data.seed": "$seed"})


def pareto_results(study, gain):
    results = {}
    for arm in study.arms():
        step = {1.0: 0, 10.0: 1, 100.0: 2}[arm.about["lam"]]
        efficacy, kept = 0.9 - 0.1 * step, 0.4 + 0.2 * step + 0.01 * arm.about["seed"]
        more = {"no guard": 0.0, "REVIVE": gain, "random": -0.02}[arm.about["guard"]]
        skills = ((0, 1.0), (20, kept + more))
        results[arm.key] = made(arm.about, skills, efficacy, kept + more, perplexity=(10.0, 10.0))
    return results


def test_pareto_answers_with_a_number_and_an_interval(base):
    study = pareto_study(base)
    assert len({arm.key for arm in study.arms()}) == 27
    rows = {(row["measure"], row["guard"]): row for row in study.table(pareto_results(study, 0.05)) if row["lambda"] == "front"}
    row = rows["lead in unrelated facts", "REVIVE"]
    assert (row["value"], row["low"], row["high"]) == pytest.approx((0.05,) * 3) and row["95 % over"] == "3 seeds"
    assert rows["lead in abilities", "REVIVE"]["value"] == pytest.approx(0.025), "one of two abilities is kept better"
    assert rows["lead in unrelated facts", "random"]["value"] == pytest.approx(-0.02)
    gain = rows["hypervolume, unrelated facts", "REVIVE"]["value"] - rows["hypervolume, unrelated facts", "no guard"]["value"]
    assert gain == pytest.approx(0.05 * 0.9), "the whole front is lifted"
    half = {
        key: one for key, one in pareto_results(study, 0.05).items() if one["about"]["seed"] == 0 and one["about"]["lam"] < 50
    }
    assert not any(row["measure"].startswith("lead") for row in study.table(half)), "fronts that lack a setting wait"


def methods_study(base):
    methods = {"MEMIT": {}, "RECT": {"model.guards": [{"class_path": "RECT"}]}}
    return Methods(base, methods, {"no guard": [], "REVIVE": GUARD}, seeds=[0, 1, 2], options={"data.seed": "$seed"})


def methods_results(study):
    """The guard costs a tenth of the efficacy and keeps a fifth more, of RECT a little less for every seed."""
    results = {}
    for arm in study.arms():
        about, guarded = arm.about, arm.about["guard"] == "REVIVE"
        less = 0.01 * about["seed"] if about["base_method"] == "RECT" else 0.0
        more = 0.2 - less if guarded else 0.0
        results[arm.key] = made(about, ((0, 1.0), (20, 0.4 + more)), 0.9 - 0.1 * guarded, 0.6 + more, seconds_per_edit=0.1)
    return results


def test_methods_run_with_their_own_guards_first(base):
    arms = {arm.key: arm.options for arm in methods_study(base).arms()}
    assert len(arms) == 12 and arms["MEMIT, seed 0"]["model.guards"] is None
    assert [guard["class_path"] for guard in arms["RECT + REVIVE, seed 2"]["model.guards"]] == ["RECT", "REVIVE"]
    with pytest.raises(EditError, match=r"'RECT' is 'guards/rect\.yaml'; a list of classes is needed"):
        Methods(base, {"RECT": {"model.guards": "guards/rect.yaml"}}, {"no guard": []})
    with pytest.raises(EditError, match="name at least one"):
        Methods(base, {"MEMIT": {}}, {})


def test_gains_compare_every_seed_with_itself(base):
    study = methods_study(base)
    rows = {(row["measure"], row["method"], row["guard"]): row for row in study.table(methods_results(study))}
    row = rows["gain in efficacy", "MEMIT", "REVIVE"]
    assert (row["value"], row["low"], row["high"]) == pytest.approx((-0.1,) * 3) and row["95 % over"] == "3 seeds"
    row = rows["gain in unrelated facts", "RECT", "REVIVE"]
    half = 4.3027 * 0.01 / math.sqrt(3)
    assert (row["value"], row["low"], row["high"]) == pytest.approx((0.19, 0.19 - half, 0.19 + half))
    assert rows["efficacy", "RECT", "REVIVE"]["value"] == pytest.approx(0.8)
    assert rows["seconds per edit", "MEMIT", "no guard"]["value"] == pytest.approx(0.1)
    assert rows["collapse point [edits]", "MEMIT", "no guard"]["collapsed"] == "3 of 3 runs"
    some = {key: one for key, one in methods_results(study).items() if key != "MEMIT, seed 1"}
    row = next(row for row in study.table(some) if row["measure"] == "gain in efficacy" and row["method"] == "MEMIT")
    assert row["95 % over"] == "2 seeds"


def order_study(base):
    return Order(base, {"MEMIT": {}, "MEMIT + REVIVE": {"model.guards": GUARD}}, [0, 1])


def tau_study(base):
    return Tau(base, [0.1, 0.3], {"tau": 0.1, "basis": "full"}, {"compact": {"basis": "compact"}})


def test_order_table_gives_the_spread(base):
    rows = {(row["measure"], row["method"]): row for row in order_study(base).table(collapse_results())}
    assert (rows["efficacy", "MEMIT"]["smallest"], rows["efficacy", "MEMIT"]["largest"]) == (0.6, 0.8)
    point = rows["collapse point [edits]", "MEMIT"]
    assert (point["smallest"], point["largest"], point["value"]) == (10, 20, 15.0)


def test_arms_of_the_sweeps(base):
    arms = {arm.key: arm.options for arm in tau_study(base).arms()}
    assert list(arms) == ["no guard", "tau 0.1", "tau 0.3", "compact"]
    assert arms["no guard"] == {"model.guards": None}
    assert arms["compact"]["model.guards"][0]["init_args"] == {"tau": 0.1, "basis": "compact"}
    arms = {arm.key: arm.options for arm in order_study(base).arms()}
    assert arms["MEMIT + REVIVE, order 1"] == {"model.guards": GUARD, "data.order": "shuffled", "data.seed": 1, "model.seed": 0}


def coloured(picture, colour) -> int:
    """Pixels of a colour."""
    pixels = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8).view(-1, 3).int()
    wanted = torch.tensor([int(colour[at : at + 2], 16) for at in (1, 3, 5)])
    return int(((pixels - wanted).abs().amax(1) < 12).sum())


FIGURES = {
    "collapse": lambda base: Collapse(base, {"MEMIT": {}, "MEMIT + REVIVE": {}}),
    "condition": lambda base: Condition(base, {"MEMIT": {}, "MEMIT + REVIVE": {}}),
    "methods": methods_study,
    "order": order_study,
    "pareto": pareto_study,
    "tau": tau_study,
}


def results_for(name, study):
    if name == "pareto":
        return pareto_results(study, 0.05)
    if name == "methods":
        return methods_results(study)
    if name == "tau":
        return {arm.key: made(arm.about, efficacy=0.5 + 0.1 * at) for at, arm in enumerate(study.arms())}
    return collapse_results()


@pytest.mark.parametrize("name", FIGURES)
def test_figures_show_every_method_and_survive_missing_results(name, base):
    study = FIGURES[name](base)
    results = results_for(name, study)
    drawn = study.figures(results)
    assert list(drawn) == (["methods", "courses"] if name == "methods" else [name])
    for one in drawn.values():
        picture = Image.open(io.BytesIO(render(one, "png", dpi=80)))
        assert picture.width > 330 and picture.height > 150
        for colour in PALETTE[:2]:
            assert coloured(picture, colour) > 150, "lines, not only a legend entry"
    first = next(iter(results))
    for some in ({}, {first: results[first]}):
        render(study.figures(some)[name], "svg")
        study.table(some)


# ---------------------------------------------------------------------------------------------- whole studies


class Break(Callback):
    """Ends a run after its second batch, unless a file is there."""

    def __init__(self, unless: str) -> None:
        self.unless = unless

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 2 and not Path(self.unless).exists():
            raise RuntimeError("the power went out")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny model, eight facts about it, and a base configuration."""
    folder = tmp_path_factory.mktemp("streams")
    config = {
        "model": {
            "pretrained": str(save_tiny(folder / "model", "gpt2")),
            "layers": [0, 1],
            "editor": {"class_path": "MEMIT", "init_args": {"lam": 10.0}},
            "targets": {"steps": 3, "contexts": 1, "context_tokens": 4},
            "moment_tokens": 500,
            "cache_dir": str(folder / "cache"),
        },
        "data": {
            "path": write_facts(folder / "facts.jsonl", 8),
            "batch_size": 2,
            "order": "shuffled",
            "probes": [{"class_path": "Perplexity", "init_args": {"limit": 2}}],
        },
        "trainer": {"val_check_interval": 2},
        "checkpoint": {"every_n_train_steps": 1},
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(config))
    (folder / "guards").mkdir()
    (folder / "guards" / "revive.yaml").write_text(yaml.safe_dump(GUARD))
    study = {
        "base": "base.yaml",
        "arms": {"MEMIT": {"model.guards": None}, "guarded": {"model.guards": "guards/revive.yaml"}},
        "seeds": [0, 1],
        "options": {"data.seed": "$seed"},
        "unrelated": "none",
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return folder


def measured(result):
    """A result without clock times."""
    kept = {key: value for key, value in result.items() if key not in ("seconds_per_edit", "batches")}
    return {**kept, "batches": {name: curve for name, curve in result["batches"].items() if not name.startswith("time/")}}


@pytest.fixture(scope="module")
def finished(place):
    """The study, run with one worker; what it printed, and what its figure folder holds."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", printed)
        code = main(
            ["study", "collapse", "--config", str(place / "study.yaml"), "--run_dir", str(place / "one"), "--workers", "[cpu]"]
        )
    assert code == 0, printed.getvalue()
    return place / "one", printed.getvalue()


def test_a_study_leaves_points_table_and_pictures(finished):
    folder, _ = finished
    content = json.loads((folder / "results.json").read_text())
    assert list(content["results"]) == ["MEMIT, seed 0", "MEMIT, seed 1", "guarded, seed 0", "guarded, seed 1"]
    for result in content["results"].values():
        assert [at for at, _ in result["validations"]["efficacy/success/teacher_forced"]] == [0, 4, 8]
        assert [at for at, _ in result["batches"]["drift/relative_norm/layer_1"]] == [2, 4, 6, 8]
        assert result["finished"] and result["rejected"] == 0 and result["edits"] == 8
    methods = by_method(content["results"])
    assert methods["MEMIT"][0]["after"] != methods["MEMIT"][1]["after"], "another order for another seed"
    assert (folder / "results.csv").read_text().startswith("measure,method,unedited,value,low,high,95 % over")
    with Image.open(folder / "collapse.png") as picture:
        assert coloured(picture, PALETTE[0]) > 300 and coloured(picture, PALETTE[1]) > 300
    assert "<svg" in (folder / "collapse.svg").read_text()
    assert not list(folder.glob("points/*/checkpoints")), "checkpoints of finished arms are removed"


def test_what_a_run_says_goes_to_its_log_and_not_into_the_bar(finished):
    folder, printed = finished
    assert "4/4" in printed and "GPU available" not in printed and "Seed set" not in printed and "max_epochs" not in printed
    assert "8 edits in batches of 2, MEMIT + REVIVE" in (folder / "points" / "guarded_seed_1" / "log.txt").read_text()


def test_handlers_of_libraries_write_to_the_log_and_then_where_they_did_before(tmp_path, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    logger = logging.getLogger("lit_edit_test_of_handlers")
    logger.propagate = False
    early, other = logging.StreamHandler(), logging.StreamHandler(io.StringIO())
    monkeypatch.setattr(logger, "handlers", [early, other])
    with pytest.raises(KeyError), told_to(tmp_path / "log.txt"):
        logger.warning("inside")
        late = logging.StreamHandler()
        logger.addHandler(late)
        logger.warning("again")
        warnings.warn("LightningCLI's args parameter is ...", stacklevel=1)
        raise KeyError
    logger.warning("outside")
    assert (tmp_path / "log.txt").read_text() == "inside\nagain\nagain\n"
    assert screen.getvalue().count("outside") == 1 and "inside" not in screen.getvalue()
    assert other.stream.getvalue() == "inside\nagain\noutside\n", "a stream that somebody chose stays"
    assert late.stream is not None and not late.stream.closed


def test_the_same_command_again_measures_nothing(finished, place, monkeypatch):
    monkeypatch.setattr(Collapse, "measure", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(Collapse, "begin", lambda *_: pytest.fail("prepared again"))
    assert main(["study", "collapse", "--config", str(place / "study.yaml"), "--run_dir", str(finished[0])]) == 0


def test_two_workers_find_what_one_does_and_share_one_preparation(finished, place, tmp_path, monkeypatch):
    config = yaml.safe_load((place / "study.yaml").read_text())
    config["base"] = str(place / "base.yaml")
    config["options"]["model.cache_dir"] = str(tmp_path / "cache")
    del config["arms"]["MEMIT"]  # one arm a worker is enough
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config))
    seen = {}
    begin = Collapse.begin

    def noted(self, points, devices):
        begin(self, points, devices)
        seen.update({path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")})

    monkeypatch.setattr(Collapse, "begin", noted)
    arguments = ["--config", str(tmp_path / "study.yaml"), "--run_dir", str(tmp_path / "two"), "--workers", "[cpu, cpu]"]
    assert main(["study", "collapse", *arguments]) == 0
    one, two = (json.loads((folder / "results.json").read_text())["results"] for folder in (finished[0], tmp_path / "two"))
    assert len(two) == 2 and {key: measured(one[key]) for key in two} == {key: measured(two[key]) for key in two}
    assert {path.parent.name for path in seen} == {"second-moment", "spectrum"} and len(seen) == 4
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")} == seen


def test_an_interrupted_arm_goes_on_from_its_checkpoint(finished, place, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    flag = tmp_path / "power"
    callback = [{"class_path": f"{__name__}.Break", "init_args": {"unless": str(flag)}}]
    options = {"trainer.callbacks": callback, "data.seed": 0}
    study = Collapse(str(place / "base.yaml"), {"MEMIT": {"model.guards": None}}, None, options)
    folder = StudyFolder(tmp_path / "study", study, "collapse")
    with pytest.raises(RuntimeError, match="power"):
        run(folder, ["cpu"], progress=False)
    arm = tmp_path / "study" / "points" / "MEMIT"
    assert (arm / "checkpoints" / "last.ckpt").exists() and len((arm / "journal.jsonl").read_text().splitlines()) == 2
    flag.touch()
    folder = StudyFolder(tmp_path / "study", study, "collapse")
    run(folder, ["cpu"], progress=False)
    assert "csv-2" in {path.name for path in arm.iterdir()}, "it went on, and did not begin anew"
    whole = json.loads((finished[0] / "results.json").read_text())["results"]["MEMIT, seed 0"]
    assert measured({**folder.done["MEMIT"], "about": None}) == measured({**whole, "about": None})


def test_a_run_whose_batches_are_all_rejected_has_a_result(place, tmp_path):
    study = Collapse(str(place / "base.yaml"), {"MEMIT": {"model.max_change": 1e-9}}, unrelated="none")
    folder = StudyFolder(tmp_path / "study", study, "collapse")
    run(folder, ["cpu"], progress=False)
    result = folder.done["MEMIT"]
    assert result["rejected"] == 4 and result["edits"] == 0 and result["finished"]
    folder.write()
    row = next(row for row in study.table(folder.results()) if row["measure"] == "abilities")
    assert row["value"] == pytest.approx(1.0), "nothing was written, nothing is lost"


# ---------------------------------------------------------------------------------------------- bad input

WRONG = {
    "an option that there is not": ({"arms": {"mine": {"model.editro": 1}}}, "arm 'mine, seed 0' cannot be run:"),
    "a missing fragment": (
        {"arms": {"mine": {"model.guards": "guards/nix.yaml"}}},
        "model.guards names guards/nix.yaml, which is",
    ),
    "a value out of range": (
        {"arms": {"fine": {}, "mine": {"model.editor.init_args.lam": -1.0}}},
        "arm 'mine, seed 0' cannot be run: MEMIT's lam is -1",
    ),
    "seeds without effect": ({"options": {}, "arms": {"mine": {}}}, "nothing in arm 'mine' depends on its seed"),
    "a seed twice": ({"seeds": [1, 1]}, "seeds [1, 1] name one twice"),
    "no arm": ({"arms": {}}, "needs at least one arm"),
    "two arms in one folder": ({"arms": {"a b": {}, "a_b": {}}}, "'a b, seed 0' and 'a_b, seed 0'"),
    "a base that is not there": ({"base": "nix.yaml"}, "nix.yaml"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_mistakes_end_in_one_sentence_that_names_the_arm(mistake, place, tmp_path, capsys):
    changed, told = WRONG[mistake]
    config = {**yaml.safe_load((place / "study.yaml").read_text()), "base": str(place / "base.yaml"), **changed}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config))
    assert main(["study", "collapse", "--config", str(tmp_path / "study.yaml"), "--run_dir", str(tmp_path / "study")]) == 2
    captured = capsys.readouterr().err
    assert told in captured and captured.count("\n") == 1, captured
    assert not (tmp_path / "study" / "points").exists(), "nothing was run"


def test_two_arms_of_one_name_are_refused_where_yaml_would_drop_one(place, tmp_path, capsys):
    (tmp_path / "study.yaml").write_text(f"base: {place}/base.yaml\narms:\n  mine: {{}}\n  other: {{}}\n  mine: {{}}\n")
    assert main(["study", "collapse", "--config", str(tmp_path / "study.yaml"), "--run_dir", str(tmp_path / "study")]) == 2
    assert "study.yaml, line 5: there are two entries called 'mine'" in capsys.readouterr().err


def test_sweeps_refuse_what_would_mislead(base, tmp_path):
    limited = tmp_path / "limited.yaml"
    limited.write_text("data: {limit: 5}\n")
    with pytest.raises(EditError, match="every order would cut off other facts"):
        Order(str(limited), {"a": {}}, [0, 1])
    with pytest.raises(EditError, match="none of them twice"):
        Pareto(base, [1.0, 1.0], {"no guard": None})
    with pytest.raises(EditError, match="needs a tau"):
        Tau(base, [0.1], {"energy": "sigma"})
    with pytest.raises(EditError, match="must not be called 'no guard'"):
        Tau(base, [0.1], variants={"no guard": {}})


@pytest.mark.parametrize("name", FIGURES)
def test_shipped_configurations_name_runs_that_can_be_built(name, tmp_path, monkeypatch):
    from lit_edit.studies.cli import parser_of, study_class

    monkeypatch.chdir(ROOT)
    kind = study_class(name)
    parser = parser_of(name, kind)
    made = parser.instantiate_classes(parser.parse_args(["--config", f"configs/studies/{name}.yaml"]))
    study = kind(**{key: made[key] for key in vars(made) if key not in ("config", "run_dir", "workers")})
    points = study.points()
    assert len(points) >= 5
    by_settings = {json.dumps(point.settings["options"], sort_keys=True, default=str): point for point in points}
    study.begin([*by_settings.values()][:: max(1, len(by_settings) // 5)], [torch.device("cpu")])


def test_a_file_that_the_two_readers_of_yaml_see_differently_is_refused(place, tmp_path, capsys):
    text = f'{{"base": "{place}/base.yaml", "arms": {{"mine": {{}}}}}}\n'
    (tmp_path / "study.yaml").write_bytes(b"\xef\xbb\xbf" * 2 + text.encode())
    assert main(["study", "collapse", "--config", str(tmp_path / "study.yaml"), "--run_dir", str(tmp_path / "study")]) == 2
    captured = capsys.readouterr().err
    assert "study.yaml is no YAML: " in captured or "study.yaml: it is no YAML: " in captured
    assert captured.count("\n") == 1 and not (tmp_path / "study").exists()
