"""Editors: which change makes the keys write the residuals."""

from lit_edit.editors.alphaedit import AlphaEdit
from lit_edit.editors.base import Editor
from lit_edit.editors.emmet import EMMET
from lit_edit.editors.encore import ENCORE
from lit_edit.editors.locate import LeastSquaresEditor, LocateThenEdit
from lit_edit.editors.memit import MEMIT

__all__ = ["EMMET", "ENCORE", "MEMIT", "AlphaEdit", "Editor", "LeastSquaresEditor", "LocateThenEdit"]
