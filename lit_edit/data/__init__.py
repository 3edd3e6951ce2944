"""Where edits come from: one reader per schema, and the stream that Lightning iterates.

Reading is layered, each layer a file: ``source`` turns a path into rows, a ``Reader`` turns one row into one (or more)
:class:`~lit_edit.request.EditRequest`, ``ingest`` keeps the accounts of both, ``loader`` cuts requests into batches,
and ``stream`` is the ``LightningDataModule`` around them.
"""

from lit_edit.data.counterfact import CounterFact
from lit_edit.data.easyedit import EasyEdit
from lit_edit.data.given import Facts
from lit_edit.data.jsonlines import JsonLines
from lit_edit.data.mquake import MQuAKE
from lit_edit.data.qaedit import QAEdit
from lit_edit.data.reader import Reader
from lit_edit.data.source import FactSource
from lit_edit.data.stream import EditStream
from lit_edit.data.world import WorldFacts
from lit_edit.data.zsre import ZsRE

__all__ = [
    "CounterFact",
    "EasyEdit",
    "EditStream",
    "FactSource",
    "Facts",
    "JsonLines",
    "MQuAKE",
    "QAEdit",
    "Reader",
    "WorldFacts",
    "ZsRE",
]
