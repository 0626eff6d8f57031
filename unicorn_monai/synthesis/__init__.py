"""Synthetic images: what is asked for, the generator, the writer of data sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unicorn_monai.system.lazy import offers

if TYPE_CHECKING:
    from unicorn_monai.synthesis.generator import Generator
    from unicorn_monai.synthesis.requests import Request, Requests
    from unicorn_monai.synthesis.sheets import samples_of
    from unicorn_monai.synthesis.writer import SampleWriter, Synthesizer

__getattr__, __all__ = offers(__name__, __file__)
