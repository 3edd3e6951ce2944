"""The journal of a run: what every batch was asked to write, what became of it, and what it did to the weights.

:class:`Journal` writes it while the run goes on; :mod:`lit_edit.journal.book` reads one that may come from elsewhere.
"""

from lit_edit.journal.journal import Journal
from lit_edit.journal.records import Applied, finite

__all__ = ["Applied", "Journal", "finite"]
