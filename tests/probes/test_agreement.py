"""Weighted F1, Matthews correlation and accuracy against numbers worked out by hand."""

import math

import pytest
import torch

from lit_edit.probes.agreement import accuracy, confusion, label_numbers, matthews, weighted_f1


def counts(right, predicted, classes=2):
    return confusion(torch.tensor(right).double(), torch.tensor(predicted).double(), classes)


def test_two_classes_by_hand():
    # TP = 3, FN = 1, FP = 2, TN = 4
    right, predicted = [1] * 4 + [0] * 6, [1, 1, 1, 0, 1, 1, 0, 0, 0, 0]
    found = counts(right, predicted)
    assert accuracy(found) == pytest.approx(7 / 10)
    assert weighted_f1(found) == pytest.approx(0.4 * 6 / 9 + 0.6 * 8 / 11)
    assert matthews(found) == pytest.approx((3 * 4 - 2 * 1) / math.sqrt(5 * 4 * 6 * 5))


def test_invalid_answers_are_a_class_that_is_never_right():
    found = label_numbers(torch.tensor([1, 1, 0, 0]), torch.tensor([1, -1, 0, -1]), 2)
    # each class: precision 1, recall 1/2; the -1 class has no weight
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["accuracy"] == found["invalid"] == 0.5
    # N = 4, hits 2, sum t p = 2*1 + 2*1, sum p^2 = 4 + 1 + 1, sum t^2 = 8
    assert found["mcc"] == pytest.approx((4 * 2 - 4) / math.sqrt((16 - 6) * (16 - 8)))


def test_three_classes_by_hand():
    found = counts([0, 0, 1, 1, 2], [0, 1, 1, 1, 0], 3)
    assert weighted_f1(found) == pytest.approx((2 * 2 / 4 + 2 * 4 / 5 + 0) / 5)
    # hits 3; t = 2 2 1, p = 2 3 0
    assert matthews(found) == pytest.approx((5 * 3 - 10) / math.sqrt((25 - 13) * (25 - 9)))


def test_constant_predictions_have_no_correlation_and_nothing_is_nan():
    assert matthews(counts([0, 1], [1, 1])) == 0.0
    assert weighted_f1(counts([0, 0], [1, 1])) == 0.0
    assert all(math.isnan(value) for value in label_numbers(torch.zeros(0), torch.zeros(0), 2).values())


def test_inverted_labels_have_correlation_minus_one():
    assert matthews(counts([0, 1, 0, 1], [1, 0, 1, 0])) == -1.0
