"""Studies of streams: tables and figures of hand-made results."""

import io
import math

import pytest
import torch
from handmade import (
    FIGURES,
    GUARD,
    collapse_results,
    coloured,
    made,
    order_study,
    pareto_results,
    pareto_study,
    results_for,
    spectra_results,
    spectra_study,
    tau_study,
)
from PIL import Image

from lit_edit.figures import PALETTE, render
from lit_edit.studies.collapse import Collapse
from lit_edit.studies.fronts import front, hypervolume, lead
from lit_edit.studies.measures import abilities, collapse_point, drift
from lit_edit.studies.seeds import along, band, over_seeds, student


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


def test_spectra_sets_leads_beside_steepness(base):
    study = spectra_study(base)
    results = spectra_results(study)
    assert [study.steepness(results, model) for model in ("flat", "steep")] == [0.1, 0.4]
    rows = {(row["measure"], row["model"]): row for row in study.table(results) if row["lambda"] == "front"}
    assert [rows["lead in unrelated facts", model]["value"] for model in ("flat", "steep")] == pytest.approx([0.0, 0.1])
    assert rows["lead in abilities", "steep"]["value"] == pytest.approx(0.05), "one of two abilities is kept better"
    assert rows["lead in abilities", "steep"]["leading 5 %"] == 0.4
    flat = {key: one for key, one in results.items() if one["about"]["model"] == "flat"}
    assert {row["model"] for row in study.table(flat)} == {"flat"} and study.steepness(flat, "steep") is None


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


@pytest.mark.parametrize("name", FIGURES)
def test_figures_show_every_method_and_survive_missing_results(name, base):
    study = FIGURES[name](base)
    results = results_for(name, study)
    drawn = study.figures(results)
    assert list(drawn) == (["methods", "courses"] if name == "methods" else [name])
    for one in drawn.values():
        picture = Image.open(io.BytesIO(render(one, "png", dpi=80)))
        assert picture.width > 330 and picture.height > 150
        for colour in PALETTE[name == "spectra" : 2]:  # there the first guard is the level that others are measured from
            assert coloured(picture, colour) > 150, "lines, not only a legend entry"
    first = next(iter(results))
    for some in ({}, {first: results[first]}):
        render(study.figures(some)[name], "svg")
        study.table(some)
