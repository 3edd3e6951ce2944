"""Points of a weight study, measured on the CPU."""

from pathlib import Path

import torch

CPU = torch.device("cpu")


def measured(study, points=None):
    return {point.key: study.measure(point, CPU, Path()) for point in (study.points() if points is None else points)}
