"""Synthetic images: what is asked for, the generator, the writer of data sets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unicorn_monai.system.lazy import offered

if TYPE_CHECKING:
    from unicorn_monai.synthesis.generator import Generator
    from unicorn_monai.synthesis.requests import Request, Requests
    from unicorn_monai.synthesis.sheets import samples_of
    from unicorn_monai.synthesis.writer import SampleWriter, Synthesizer

__all__ = [
    "Generator",
    "Request",
    "Requests",
    "SampleWriter",
    "Synthesizer",
    "samples_of",
]
_HOMES = {
    "Generator": "synthesis.generator",
    "Request": "synthesis.requests",
    "Requests": "synthesis.requests",
    "SampleWriter": "synthesis.writer",
    "Synthesizer": "synthesis.writer",
    "samples_of": "synthesis.sheets",
}


def __getattr__(name: str) -> Any:
    return offered(__name__, _HOMES, name)
