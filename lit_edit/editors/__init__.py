"""Editors: which change makes the keys write the residuals."""

from lit_edit.editors.base import Editor, LeastSquaresEditor
from lit_edit.editors.memit import MEMIT

__all__ = ["MEMIT", "Editor", "LeastSquaresEditor"]
