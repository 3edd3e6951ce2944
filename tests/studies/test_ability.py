"""What is left of the general ability, and how sure that is."""

import math

import pytest
import torch
from tiny import normal

from lit_edit.probes import Probe
from lit_edit.probes.base import AnswerProbe
from lit_edit.studies.ability import Ability


class Fixed(Probe):
    columns = ("value",)
    shown = "value/known"

    def __init__(self, name: str, higher_is_better: bool = True) -> None:
        self.name, self.higher_is_better = name, higher_is_better

    def items(self):
        return range(40)

    def measure(self, scorer, items):
        raise NotImplementedError

    def summarise(self, outcomes):
        return {self.shown: float(outcomes.mean())}


def rows(value: float, spread: float = 0.0) -> torch.Tensor:
    return torch.full((40, 1), value, dtype=torch.float64) + spread * normal(40, 1)


def test_ability_retained_is_the_mean_of_shares():
    probes = [Fixed("more"), Fixed("less", higher_is_better=False), Fixed("nothing to lose")]
    ability = Ability(probes, {"more": rows(0.8), "less": rows(20.0), "nothing to lose": rows(0.0)}, resamples=50)
    same = ability.retained([ability.sample({"more": rows(0.8), "less": rows(20.0), "nothing to lose": rows(0.5)})])
    assert (same.value, same.low, same.high) == (1.0, 1.0, 1.0)
    worse = ability.sample({"more": rows(0.4), "less": rows(80.0), "nothing to lose": rows(0.0)})
    assert ability.retained([worse]).value == pytest.approx((0.5 + 0.25) / 2)
    broken = ability.sample({"more": rows(0.0), "less": rows(math.nan), "nothing to lose": rows(0.0)})
    assert ability.retained([broken]).value == 0.0
    assert ability.retained([worse, broken]).value == pytest.approx(0.375 / 2)
    assert ability.spread([worse, broken]) == pytest.approx(0.375 / 2**0.5) and math.isnan(ability.spread([worse]))
    over_seeds = ability.retained([worse, broken])
    assert (over_seeds.low, over_seeds.high) == (0.0, pytest.approx(0.375)), "seeds are drawn, too"


def test_intervals_are_of_paired_changes():
    noisy = rows(0.5, spread=0.2)
    ability = Ability([Fixed("a")], {"a": noisy}, resamples=300)
    shifted = ability.number("a", [ability.sample({"a": noisy - 0.1})])
    mean = float(noisy.mean()) - 0.1
    assert (shifted.value, shifted.low, shifted.high) == tuple(pytest.approx(mean, abs=1e-9) for _ in range(3)), "items cancel"
    other = ability.number("a", [ability.sample({"a": rows(mean).clone()})])
    half = 1.96 * float(noisy.std()) / 40**0.5
    assert other.low == pytest.approx(mean - half, abs=half / 3) and other.high == pytest.approx(mean + half, abs=half / 3)


def test_the_most_frequent_answer():
    probe = AnswerProbe("p", [("a", "x"), ("b", "x"), ("c", "y"), ("d", "z")])
    ability = Ability([probe], {"p": torch.ones(4, 1, dtype=torch.float64)}, resamples=20)
    assert ability.guess("p") == ability.guesses() == 0.5
    assert Ability([Fixed("a"), probe], {"a": rows(1.0), "p": torch.ones(4, 1)}, resamples=20).guesses() is None
