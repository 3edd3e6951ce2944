"""What retention is computed from: cohorts, ages, the area under the curve."""

import math

import pytest

from lit_edit.callbacks.cohorts import Check, Cohorts, quota, retention_curve


def look(cohorts, batch, score):
    cohorts.checks.append(Check(batch, batch, {at: score(at) for at in cohorts.positions()}))


def test_numbers_by_hand():
    cohorts = Cohorts(most=10, per_cohort=20)
    cohorts.add(1, [0, 1])
    cohorts.add(2, [2, 3])
    cohorts.checks.append(Check(2, 4, {0: 1.0, 1: 0.0, 2: 1.0, 3: 1.0}))
    cohorts.add(3, [4, 5])
    cohorts.add(4, [6, 7])
    cohorts.checks.append(Check(4, 8, {0: 0.0, 1: 0.0, 2: 1.0, 3: 0.0, 4: 1.0, 5: 0.5, 6: 1.0, 7: 1.0}))
    assert cohorts.matrix() == [[0.5, 1.0, None, None], [0.0, 0.5, 0.75, 1.0]]
    assert [row[:2] for row in cohorts.ages()] == [[1, 0], [3, 2]]
    # R(0) = (1 + 1) / 2, R(1) = (0.5 + 0.75) / 2, R(2) = 0.5, R(3) = 0
    assert retention_curve(cohorts.matrix(), cohorts.ages()) == {0: 1.0, 1: 0.625, 2: 0.5, 3: 0.0}
    assert cohorts.numbers() == {"first": 0.0, "latest": 1.0, "mean": 0.5625, "auc": pytest.approx(2.125 / 4)}


@pytest.mark.parametrize("per_cohort", [1, 3, 4, 20])
@pytest.mark.parametrize("most", [1, 4, 5])
def test_joined_cohorts_keep_the_same_edits_at_every_checkpoint(per_cohort, most):
    cohorts, size = Cohorts(most, per_cohort), 6
    before: set[int] = set()
    for batch in range(1, 40):
        cohorts.add(batch, range((batch - 1) * size, batch * size))
        new = set(range((batch - 1) * size, batch * size))
        assert set(cohorts.positions()) - new <= before, "nothing is followed that was not followed from its beginning"
        look(cohorts, batch, lambda at: (at * 7 % 10) / 10)
        before = set(cohorts.positions())
        groups = cohorts.groups()
        assert len(groups) <= most and all(sum(len(one.positions) for one in group) <= per_cohort for group in groups)
        assert cohorts.span & (cohorts.span - 1) == 0
    if per_cohort >= size:
        full = [len(one.positions) for one in cohorts.groups()[0]]
        assert max(full) - min(full) <= 1, "the batches of a cohort are followed evenly"
    # Scores depend on the edit alone here: a finished cohort has the same score at every checkpoint.
    for column, group in enumerate(cohorts.groups()):
        values = {
            row[column] for row, check in zip(cohorts.matrix(), cohorts.checks, strict=True) if check.batch >= group[-1].batch
        }
        assert len(values) == 1
    kept = [at for check in cohorts.checks for at in check.values]
    assert set(kept) <= before, "what is followed no more is forgotten"


def test_a_batch_that_wrote_nothing_is_no_cohort():
    cohorts = Cohorts(4, 5)
    cohorts.add(1, [])
    look(cohorts, 1, lambda at: 1.0)
    assert cohorts.numbers() == {} and cohorts.matrix() == [[]]
    cohorts.add(2, [3, 4])
    look(cohorts, 2, lambda at: 1.0)
    assert cohorts.matrix() == [[None], [1.0]] and cohorts.numbers()["auc"] == 1.0


def test_a_broken_score_is_not_hidden():
    cohorts = Cohorts(4, 5)
    cohorts.add(1, [0])
    look(cohorts, 1, lambda at: math.nan)
    assert math.isnan(cohorts.numbers()["mean"]) and math.isnan(cohorts.numbers()["auc"])


def test_memory_is_all_there_is():
    cohorts = Cohorts(3, 2)
    for batch in range(1, 9):
        cohorts.add(batch, range(batch * 4, batch * 4 + 4))
        look(cohorts, batch, lambda at: at / 100)
    other = Cohorts(3, 2)
    other.remember(cohorts.memory())
    for both in (cohorts, other):
        both.add(9, [40, 41, 42])
        look(both, 9, lambda at: at / 100)
    assert other.table() == cohorts.table()


@pytest.mark.parametrize(("span", "most"), [(1, 5), (2, 5), (8, 5), (8, 20), (7, 3)])
def test_quotas_sum_to_all(span, most):
    assert sum(quota(index, span, most) for index in range(span)) == most
