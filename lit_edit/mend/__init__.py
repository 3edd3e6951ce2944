"""MEND's hyper-network: what turns an edit's gradient into an update that edits, and how it is trained.

:mod:`lit_edit.mend.network` is the network, :mod:`lit_edit.mend.file` its file; both need torch alone.
:mod:`lit_edit.mend.training` and :mod:`lit_edit.mend.data` train it, :mod:`lit_edit.mend.cli` is ``lit-edit train-mend``.
"""

from lit_edit.mend.file import Trained, load_network, save_network
from lit_edit.mend.network import HyperNetwork

__all__ = ["HyperNetwork", "Trained", "load_network", "save_network"]
