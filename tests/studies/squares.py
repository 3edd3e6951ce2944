"""A study that takes no time, in a module that worker processes import quickly."""

import os

import torch

from lit_edit.errors import EditError
from lit_edit.figures import figure
from lit_edit.studies.base import Point, Study


class Squares(Study):
    """Multiplies squares.

    Args:
        numbers: one point each.
        factor: of all points.
        broken: numbers at which measuring fails, and how.
    """

    question = "What are the squares?"

    def __init__(self, numbers: list[int], factor: int = 1, broken: dict[str, str] | None = None) -> None:
        self.numbers, self.factor, self.broken = numbers, factor, broken or {}
        self._measured = 0

    def common(self):
        return {"factor": self.factor}

    def points(self):
        return [Point(f"{number} squared", {"number": number}) for number in self.numbers]

    def measure(self, point, device, folder):
        number = point.settings["number"]
        self._measured += 1
        with (folder / "log").open("a") as file:
            file.write(f"{os.getpid()} {self._measured} {device}\n")
        how = self.broken.get(str(number))
        if how == "told":
            raise EditError(f"{number} has no square")
        if how == "error":
            raise ZeroDivisionError("by nothing")
        if how == "death":
            os._exit(1)
        return {
            "square": self.factor * number**2,
            "random": float(torch.randn(1, generator=torch.Generator().manual_seed(number))),
        }

    def table(self, results):
        return [{"point": key, "square": result["square"]} for key, result in results.items()]

    def figures(self, results):
        made, (panel,) = figure(3, 2)
        panel.plot([result["square"] for result in results.values()])
        return {"squares": made}
