"""Synthetic images: what is asked for, the generator, the writer of data sets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unicorn_monai.system.lazy import offered

if TYPE_CHECKING:
    from unicorn_monai.synthesis.generator import Generator, downsampling
    from unicorn_monai.synthesis.requests import Request, Requests
    from unicorn_monai.synthesis.sheets import ReconstructionSheet, SampleSheet
    from unicorn_monai.synthesis.writer import SampleWriter, Synthesizer

__all__ = [
    "Generator",
    "ReconstructionSheet",
    "Request",
    "Requests",
    "SampleSheet",
    "SampleWriter",
    "Synthesizer",
    "downsampling",
]
_HOMES = {
    "Generator": "synthesis.generator",
    "ReconstructionSheet": "synthesis.sheets",
    "Request": "synthesis.requests",
    "Requests": "synthesis.requests",
    "SampleSheet": "synthesis.sheets",
    "SampleWriter": "synthesis.writer",
    "Synthesizer": "synthesis.writer",
    "downsampling": "synthesis.generator",
}


def __getattr__(name: str) -> Any:
    return offered(__name__, _HOMES, name)
