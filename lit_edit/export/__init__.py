"""Exporting a run: a whole Hugging Face model, the exact change alone, or a LoRA adapter.

:func:`export_model` writes; :class:`EditDelta` reads a change that may come from elsewhere and puts it on a model.
"""

from lit_edit.export.edit_delta import EditDelta
from lit_edit.export.export import Exported, export_model

__all__ = ["EditDelta", "Exported", "export_model"]
