"""Names that a package offers and loads when they are asked for (PEP 562): ``import`` of a room stays fast."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any


def offered(package: str, homes: Mapping[str, str], name: str) -> Any:
    """What a package offers under a name.

    Args:
        package: its full name, for the message.
        homes: name -> module, below ``unicorn_monai``, that defines it.
        name: what is asked for.

    Raises:
        AttributeError: it offers nothing under that name.
    """
    if name not in homes:
        raise AttributeError(f"module '{package}' has no attribute '{name}'")
    return getattr(import_module(f"unicorn_monai.{homes[name]}"), name)
