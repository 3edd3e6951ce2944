"""Editors: which change writes a batch of facts."""

from lit_edit.editors.alphaedit import AlphaEdit
from lit_edit.editors.base import Editor
from lit_edit.editors.betaedit import BetaEdit
from lit_edit.editors.deltaedit import DeltaEdit
from lit_edit.editors.emmet import EMMET
from lit_edit.editors.encore import ENCORE
from lit_edit.editors.evoedit import EvoEdit
from lit_edit.editors.finetune import FT, FTL, FTM
from lit_edit.editors.locate import LeastSquaresEditor, LocateThenEdit
from lit_edit.editors.lyaplock import LyapLock
from lit_edit.editors.memit import MEMIT
from lit_edit.editors.mend import MEND
from lit_edit.editors.nse import NSE
from lit_edit.editors.preserving import PreservingEditor
from lit_edit.editors.rlsedit import RLSEdit
from lit_edit.editors.rome import ROME
from lit_edit.editors.ultraedit import UltraEdit

__all__ = [
    "EMMET",
    "ENCORE",
    "FT",
    "FTL",
    "FTM",
    "MEMIT",
    "MEND",
    "NSE",
    "ROME",
    "AlphaEdit",
    "BetaEdit",
    "DeltaEdit",
    "Editor",
    "EvoEdit",
    "LeastSquaresEditor",
    "LocateThenEdit",
    "LyapLock",
    "PreservingEditor",
    "RLSEdit",
    "UltraEdit",
]
