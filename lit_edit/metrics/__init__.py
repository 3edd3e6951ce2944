"""Editing metrics: a pure core, thin torchmetrics around it."""

from lit_edit.metrics.answers import GeneratedAnswers, containment, exact_match, negation_prompt, normalised
from lit_edit.metrics.consistency import Consistency
from lit_edit.metrics.edit_scores import EditScores
from lit_edit.metrics.fluency import Fluency
from lit_edit.metrics.functional import harmonic_mean, record_means
from lit_edit.metrics.record_rate import RecordRate
from lit_edit.metrics.statistics import Interval, bootstrap, mean_interval, paired_change
from lit_edit.metrics.text import TfIdf, ngram_entropy, text_entropy

__all__ = [
    "Consistency",
    "EditScores",
    "Fluency",
    "GeneratedAnswers",
    "Interval",
    "RecordRate",
    "TfIdf",
    "bootstrap",
    "containment",
    "exact_match",
    "harmonic_mean",
    "mean_interval",
    "negation_prompt",
    "ngram_entropy",
    "normalised",
    "paired_change",
    "record_means",
    "text_entropy",
]
