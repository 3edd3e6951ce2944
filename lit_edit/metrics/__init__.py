"""Editing metrics: a pure core, thin torchmetrics around it."""

from lit_edit.metrics.edit_scores import EditScores
from lit_edit.metrics.functional import harmonic_mean, record_means
from lit_edit.metrics.record_rate import RecordRate
from lit_edit.metrics.statistics import Interval, bootstrap, mean_interval, paired_change

__all__ = [
    "EditScores",
    "Interval",
    "RecordRate",
    "bootstrap",
    "harmonic_mean",
    "mean_interval",
    "paired_change",
    "record_means",
]
