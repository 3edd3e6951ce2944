"""Continual knowledge editing of language models as a PyTorch Lightning trainer.

Public names load on first use, so that ``import lit_edit`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_edit.data import EditStream, Facts
    from lit_edit.doctor import Examination, examine
    from lit_edit.editors import MEMIT, Editor
    from lit_edit.errors import EditError
    from lit_edit.export import EditDelta, Exported, export_model
    from lit_edit.guards import REVIVE, Guard
    from lit_edit.module import ContinualEditor
    from lit_edit.plan.planning import plan_run
    from lit_edit.plan.result import Plan
    from lit_edit.plan.settings import RunSettings
    from lit_edit.request import EditBatch, EditRequest
    from lit_edit.targets import TargetOptions

_WHERE = {
    "ContinualEditor": "lit_edit.module",
    "EditBatch": "lit_edit.request",
    "EditDelta": "lit_edit.export",
    "EditError": "lit_edit.errors",
    "EditRequest": "lit_edit.request",
    "EditStream": "lit_edit.data",
    "Editor": "lit_edit.editors",
    "Examination": "lit_edit.doctor",
    "Exported": "lit_edit.export",
    "Facts": "lit_edit.data",
    "Guard": "lit_edit.guards",
    "MEMIT": "lit_edit.editors",
    "Plan": "lit_edit.plan.result",
    "REVIVE": "lit_edit.guards",
    "RunSettings": "lit_edit.plan.settings",
    "TargetOptions": "lit_edit.targets",
    "examine": "lit_edit.doctor",
    "export_model": "lit_edit.export",
    "plan_run": "lit_edit.plan.planning",
}

__all__ = [
    "MEMIT",
    "REVIVE",
    "ContinualEditor",
    "EditBatch",
    "EditDelta",
    "EditError",
    "EditRequest",
    "EditStream",
    "Editor",
    "Examination",
    "Exported",
    "Facts",
    "Guard",
    "Plan",
    "RunSettings",
    "TargetOptions",
    "examine",
    "export_model",
    "plan_run",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'lit_edit' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
