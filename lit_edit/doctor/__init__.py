"""Whether a model can be edited, and what is off where not: ``lit-edit doctor`` and :func:`examine`."""

from lit_edit.doctor.examiner import examine
from lit_edit.doctor.finding import Examination, Finding, Verdict

__all__ = ["Examination", "Finding", "Verdict", "examine"]
