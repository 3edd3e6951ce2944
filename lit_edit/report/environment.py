"""What a run ran on, as far as its numbers depend on it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from lit_edit import __version__

PACKAGES = ("torch", "lightning", "transformers", "datasets", "safetensors")
"""Libraries whose version can change a number."""


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, device and threads, as plain JSON; nothing that names the machine or its user.

    Args:
        device: where the model is.

    Returns:
        ``lit_edit``, ``python`` and every one of :data:`PACKAGES` with its version (``None`` if it is not there), ``device``
        (an accelerator by the name of its model, else the kind), ``cuda`` (version or ``None``) and ``threads`` of torch.

    Example:
        >>> environment(torch.device("cpu"))["device"]
        'cpu'
    """
    return {
        "lit_edit": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
