"""Two entries of one name in a YAML file: its reader keeps the last one and says nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lit_edit.errors import EditError
from lit_edit.options.documents import PlainLoader, load_yaml


class _Strict(PlainLoader):
    """Refuses what the plain loader would overwrite."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """See the class."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                where = f"{self.name}, line {key.start_mark.line + 1}"
                raise EditError(
                    f"{where}: there are two entries called {key.value!r}, of which only one would count; rename one"
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def refuse_repeated(path: str | Path) -> None:
    """Raise an :class:`EditError` if two entries of one mapping in a YAML file have one name: an arm would be lost."""

    def strict(text: str) -> Any:
        loader = _Strict(text)
        loader.name = str(path)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()

    try:
        load_yaml(Path(path).read_text(encoding="utf-8"), strict)
    except yaml.YAMLError as error:  # the parser of the command line is a little more lenient
        raise EditError(f"{path} is no YAML: {error}") from None
