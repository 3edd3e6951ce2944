"""The lower bounds that .ci/lower installs are those of pyproject.toml."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TOOLS = ("mypy", "ruff", "types-", "pytest-cov")  # check or measure the code and do not run it
RUN_WITH = [
    need
    for need in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"] + PROJECT["optional-dependencies"]["peft"]
    if not need.startswith(TOOLS)
]


def lowest(need: str) -> str:
    """``name==version`` of the lowest version that a requirement allows."""
    wanted = Requirement(need)
    (bound,) = (one.version for one in wanted.specifier if one.operator == ">=")
    return f"{wanted.name}=={bound}"


def test_constraints_are_the_lower_bounds():
    lines = (ROOT / ".ci/lower-bounds.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == [lowest(need) for need in RUN_WITH]


@pytest.mark.parametrize("need", RUN_WITH)
def test_every_dependency_is_bounded_on_both_sides(need):
    assert {one.operator for one in Requirement(need).specifier} == {">=", "<"}


def test_the_readme_tells_the_bounds_of_python_and_torch():
    said = re.search(r"Python (\S+) or newer; torch (\S+) to (\S+)\.", (ROOT / "README.md").read_text(encoding="utf-8"))
    torch = next(Requirement(need).specifier for need in PROJECT["dependencies"] if need.startswith("torch>"))
    bounds = {one.operator: one.version for one in torch}
    past = bounds["<"].split(".")
    newest = f"{past[0]}.{int(past[1]) - 1}"
    assert (f">={said[1]}", said[2], said[3]) == (PROJECT["requires-python"], bounds[">="], newest)
