"""Editing metrics: a pure core, thin torchmetrics around it."""

from lit_edit.metrics.edit_scores import EditScores
from lit_edit.metrics.functional import harmonic_mean, record_mean
from lit_edit.metrics.record_rate import RecordRate

__all__ = ["EditScores", "RecordRate", "harmonic_mean", "record_mean"]
