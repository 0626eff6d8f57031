"""MONAI bundles: found, installed, referred to, checked, run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unicorn_monai.system.lazy import offers

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

__getattr__, __all__ = offers(__name__, __file__)
