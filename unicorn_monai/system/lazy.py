"""Names that a package offers and loads when they are asked for (PEP 562): ``import`` of a room stays fast.

    if TYPE_CHECKING:
        from unicorn_monai.room.module import name
    __getattr__, __all__ = offers(__name__, __file__)

What it offers is said once, by the imports for type-checkers, which are read here and not run.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def offers(package: str, file: str) -> tuple[Callable[[str], Any], list[str]]:
    """The ``__getattr__`` and the ``__all__`` of a package whose ``__init__.py`` is ``file``."""
    block = next(node for node in ast.parse(Path(file).read_text(encoding="utf-8")).body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: str(node.module) for node in imports for alias in node.names}

    def found(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(import_module(homes[name]), name)

    return found, sorted(homes)
