"""Callbacks: they look, and change nothing."""

from lit_edit.callbacks.board import BoardKeeper
from lit_edit.callbacks.checkpoint import StreamCheckpoint
from lit_edit.callbacks.collapse import CollapseGuard
from lit_edit.callbacks.drift import SpectralDrift
from lit_edit.callbacks.generations import Generations
from lit_edit.callbacks.immediate import ImmediateScores
from lit_edit.callbacks.journal import JournalKeeper
from lit_edit.callbacks.predictions import Predictions
from lit_edit.callbacks.published import PublishedZsRE
from lit_edit.callbacks.replicas import ReplicaCheck
from lit_edit.callbacks.report import Report
from lit_edit.callbacks.retention import RetentionScores
from lit_edit.progress import EditProgressBar, PlainProgress, QuietProgress

__all__ = [
    "BoardKeeper",
    "CollapseGuard",
    "EditProgressBar",
    "Generations",
    "ImmediateScores",
    "JournalKeeper",
    "PlainProgress",
    "Predictions",
    "PublishedZsRE",
    "QuietProgress",
    "ReplicaCheck",
    "Report",
    "RetentionScores",
    "SpectralDrift",
    "StreamCheckpoint",
]
