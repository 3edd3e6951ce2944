"""Numbered facts, and a probe of numbers."""

from lit_edit.data import FactSource
from lit_edit.request import EditRequest


class Facts(FactSource):
    """``n`` numbered facts."""

    def __init__(self, n):
        self.n = n

    def requests(self):
        return (EditRequest("{} is in", f"S{i}", f"T{i}") for i in range(self.n))


class Probe:
    """The little that the stream asks of a probe."""

    def __init__(self, n, name="counting"):
        self.n = n
        self.name = name

    def items(self):
        return list(range(self.n))


def subjects(requests):
    return [request.subject for request in requests]
