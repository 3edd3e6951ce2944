"""Generated answers against accepted ones, and negated prompts."""

import math

import matplotlib
import pytest
import torch
from torchmetrics import MetricCollection

from lit_edit.metrics.answers import GeneratedAnswers, containment, exact_match, negation_prompt, normalised
from lit_edit.request import EditRequest

matplotlib.use("Agg")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("  The Hague. ", "hague"),
        ("an apple; a day", "apple day"),
        ("U.S.A.", "usa"),
        ("theatre and Anthem", "theatre and anthem"),
        ("\u201cZürich\u201d \u2013 it\u2019s", "zürich its"),
        ("Zu\u0308rich", "zürich"),
        ("$3.50 + <x>", "350 x"),
        ("The The", "the the"),
        ("A", "a"),
        ("...", ""),
        ("", ""),
        ("東京。", "東京"),
        ("a\n\tb", "b"),
    ],
)
def test_normalisation_by_hand(text, wanted):
    assert normalised(text) == wanted
    assert normalised(wanted) == wanted


def test_exact_match():
    assert exact_match(" Paris.\n", ["Rome", "the paris"])
    assert not exact_match("Paris, France", ["Paris"])
    assert not exact_match("", ["Paris"]) and not exact_match("", [""]) and not exact_match("Paris", [])


@pytest.mark.parametrize(
    ("text", "answers", "wanted"),
    [
        ("It is Paris, of course", ["Paris"], True),
        ("a Parisian, comparison", ["Paris"], False),
        ("in New\nYork City", ["New York"], True),
        ("York, New", ["New York"], False),
        ("the USA", ["US"], False),
        ("1066 and 11", ["1"], False),
        ("C++ rocks", ["C++"], True),
        ("anything", ["", "..."], False),
        ("anything", [], False),
        ("", ["x"], False),
        ("Rome or Paris", ["Oslo", "Paris"], True),
        ("日本の首都は東京です", ["東京"], True),
        ("the (of) .*", [".*"], False),
    ],
)
def test_containment(text, answers, wanted):
    assert containment(text, answers) is wanted


def test_exact_matches_are_contained():
    for text, answer in (("The Hague", "hague"), ("東京。", "東京"), ("C++", "c"), ("é!", "É")):
        assert exact_match(text, [answer]) and containment(text, [answer])


def test_rates_are_means_over_records():
    generated = [["Paris, France", "Rome"], ["Rome"], []]
    accepted = [[["Paris"], ["Rome"]], [["Rome", "Roma"]], []]
    exact, inside = GeneratedAnswers("exact_match"), GeneratedAnswers("containment")
    for metric in (exact, inside):
        metric.update(generated, accepted)
    assert float(exact.compute()) == 0.75  # (1/2 + 1) / 2, not 2/3
    assert float(inside.compute()) == 1.0
    exact.update([["x"], ["x"]], [[["y"]], [["y"]]])
    assert float(exact.compute()) == 0.375


def test_metric_of_nothing_errors_and_plot():
    metric = GeneratedAnswers()
    metric.update([[]], [[]])
    assert math.isnan(float(metric.compute()))
    assert metric.plot(torch.tensor(0.5)) is not None
    with pytest.raises(ValueError, match="its own list"):
        metric.update([["a"]], [[]])
    with pytest.raises(ValueError, match="not 'fuzzy'"):
        GeneratedAnswers("fuzzy")


def test_a_collection_keeps_the_two_apart():
    both = MetricCollection({"exact": GeneratedAnswers("exact_match"), "inside": GeneratedAnswers("containment")})
    both.update([["Paris"]], [[["Paris"]]])  # a tie
    both.update([["Paris, France"]], [[["Paris"]]])
    assert {name: float(value) for name, value in both.compute().items()} == {"exact": 0.5, "inside": 1.0}


@pytest.mark.parametrize(
    ("prompt", "subject", "wanted"),
    [
        ("{} was born in", "Ada", "It is not true that Ada was born in"),
        ("The mother tongue of {} is", "The Who", "It is not true that the mother tongue of The Who is"),
        ("In {}, they understand", "Oslo", "It is not true that in Oslo, they understand"),
        ("Paris is the twin city of {} and", "Rome", "It is not true that Paris is the twin city of Rome and"),
        ("What is the twin city of {}? It is", "Rome", "What is the twin city of Rome? It is not"),
        ("Where was {} born?", "Ada", "Where was Ada born? The answer is not"),
        ("{} was recorded by", "Who?", "It is not true that Who? was recorded by"),
        ("The capital of France is", "", "It is not true that the capital of France is"),
    ],
)
def test_negations(prompt, subject, wanted):
    assert negation_prompt(EditRequest(prompt, subject, "new")) == wanted
