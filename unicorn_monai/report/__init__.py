"""What a run found, for people: the report, tables, figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unicorn_monai.system.lazy import offered

if TYPE_CHECKING:
    from unicorn_monai.report.report import write_report
    from unicorn_monai.report.tables import summarise

__all__ = [
    "summarise",
    "write_report",
]
_HOMES = {
    "summarise": "report.tables",
    "write_report": "report.report",
}


def __getattr__(name: str) -> Any:
    return offered(__name__, _HOMES, name)
