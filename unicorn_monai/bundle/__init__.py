"""MONAI bundles: found, installed, referred to, checked, run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unicorn_monai.system.lazy import offered

if TYPE_CHECKING:
    from unicorn_monai.bundle.chain import check_chain, check_labels, ready, trained_on
    from unicorn_monai.bundle.image_sizes import check_sides
    from unicorn_monai.bundle.installation import bundle_root, configured, install, load_config, sibling
    from unicorn_monai.bundle.references import (
        arguments,
        default_device,
        definition,
        from_bundle,
        metadata_of,
        weights_metadata,
        weights_sha256,
        with_weights,
    )
    from unicorn_monai.bundle.root import own_root
    from unicorn_monai.bundle.run import run_bundle
    from unicorn_monai.bundle.settings import PRECISIONS, check_settings
    from unicorn_monai.bundle.verify import findings, seal

__all__ = [
    "PRECISIONS",
    "arguments",
    "bundle_root",
    "check_chain",
    "check_labels",
    "check_settings",
    "check_sides",
    "configured",
    "default_device",
    "definition",
    "findings",
    "from_bundle",
    "install",
    "load_config",
    "metadata_of",
    "own_root",
    "ready",
    "run_bundle",
    "seal",
    "sibling",
    "trained_on",
    "weights_metadata",
    "weights_sha256",
    "with_weights",
]
_HOMES = {
    "PRECISIONS": "bundle.settings",
    "arguments": "bundle.references",
    "bundle_root": "bundle.installation",
    "check_chain": "bundle.chain",
    "check_labels": "bundle.chain",
    "check_settings": "bundle.settings",
    "check_sides": "bundle.image_sizes",
    "configured": "bundle.installation",
    "default_device": "bundle.references",
    "definition": "bundle.references",
    "findings": "bundle.verify",
    "from_bundle": "bundle.references",
    "install": "bundle.installation",
    "load_config": "bundle.installation",
    "metadata_of": "bundle.references",
    "own_root": "bundle.root",
    "ready": "bundle.chain",
    "run_bundle": "bundle.run",
    "seal": "bundle.verify",
    "sibling": "bundle.installation",
    "trained_on": "bundle.chain",
    "weights_metadata": "bundle.references",
    "weights_sha256": "bundle.references",
    "with_weights": "bundle.references",
}


def __getattr__(name: str) -> Any:
    return offered(__name__, _HOMES, name)
