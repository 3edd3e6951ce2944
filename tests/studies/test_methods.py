"""Methods with and without guards: which runs there are, and what a guard adds."""

import math

import pytest
from handmade import methods_results, methods_study

from lit_edit.errors import EditError
from lit_edit.studies.methods import Methods


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
