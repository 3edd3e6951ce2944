"""Which models are there whose names are like one that was not found."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

_LOOKED_AT = 2000
"""Entries of a folder that are looked at: a mistyped name must not read a whole disk."""


def suggestion(pretrained: str) -> str:
    """``"; did you mean A or B?"`` with the nearest model folders and downloaded hub ids, empty where none is near."""
    found = list(dict.fromkeys([*map(str, near_folders(pretrained)), *_near(pretrained, downloaded())]))[:3]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def near_folders(pretrained: str) -> list[Path]:
    """Model folders that a path may have meant: each part that does not exist is replaced by the names most like it.

    A bare name is also looked for one folder further down.
    """
    path = Path(pretrained).expanduser()
    places = [Path(path.anchor)] if path.is_absolute() else [Path()]
    for part in path.relative_to(path.anchor).parts:
        places = [place / name for place in places for name in _like(place, part)]
    if len(path.parts) == 1:
        places += [place / name for place in _folders(Path()) for name in _like(place, path.name)]
    return [place for place in places if (place / "config.json").is_file()]


def downloaded() -> list[str]:
    """Hub ids of the models in the download cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    names = [place.name.removeprefix("models--") for place in _folders(Path(HF_HUB_CACHE)) if place.name.startswith("models--")]
    return sorted(name.replace("--", "/") for name in names)


def _like(place: Path, part: str) -> list[str]:
    if part in (".", "..") or (place / part).is_dir():
        return [part]
    return _near(part, [folder.name for folder in _folders(place)])


def _near(name: str, names: list[str]) -> list[str]:
    lower = {other.lower(): other for other in names}
    return [lower[match] for match in get_close_matches(name.lower(), lower, n=2, cutoff=0.7)]


def _folders(place: Path) -> Iterator[Path]:
    try:
        yield from (entry for entry in islice(place.iterdir(), _LOOKED_AT) if entry.is_dir())
    except OSError:  # not there, or not ours to read
        return
