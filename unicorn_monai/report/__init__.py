"""What a run found, for people: the report, tables, figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unicorn_monai.system.lazy import offers

if TYPE_CHECKING:
    from unicorn_monai.report.report import write_report
    from unicorn_monai.report.tables import summarise

__getattr__, __all__ = offers(__name__, __file__)
