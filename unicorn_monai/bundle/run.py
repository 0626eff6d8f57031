"""Bundle configurations, run from Python."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.data import get_track_meta, set_track_meta

from unicorn_monai.bundle.expressions import require_literal
from unicorn_monai.bundle.installation import find_entry
from unicorn_monai.bundle.root import ENTRY, root_above, with_root
from unicorn_monai.system.files import PathLike


def run_bundle(
    config_file: PathLike, workflow_type: str = "train", handlers: Sequence[Any] = (), **overrides: Any
) -> ConfigWorkflow:
    """Run a bundle configuration in this process, as ``python -m monai.bundle run`` would.

    Args:
        config_file: the configuration.
        workflow_type: "train" or "infer".
        handlers: Ignite handlers to attach to the trainer, and to the evaluator of its validation, e.g. for tracking.
        **overrides: settings, ``id=value``; texts and lists of them are data, never expressions or references. What the
            configuration does not have, or MONAI would not take as it is, is refused.
    """
    config_file = Path(config_file).absolute()
    plain = {key: value for key, value in overrides.items() if not isinstance(value, dict)}
    require_literal({"config_file": str(config_file)} | plain, config_file.name)
    config = ConfigParser.load_config_file(config_file)
    for key in overrides:
        if key.split("::")[0] not in config:
            raise ValueError(f"'{config_file}' has no entry '{key}', only {sorted(config)}. Check the spelling.")
        find_entry(config, key, config_file)
    if isinstance(config.get(ENTRY), dict):  # it finds itself; so do parts that are built outside the workflow
        overrides.setdefault(ENTRY, with_root(config, root_above(config_file))[ENTRY])
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)  # it warns that the next line is as it is
    workflow = ConfigWorkflow(
        config_file=str(config_file),
        meta_file=str(config_file.with_name("metadata.json")),
        logging_file=False,  # type: ignore[arg-type]  # the caller's logging stays as it is
        workflow_type=workflow_type,
        **overrides,
    )
    tracked = get_track_meta()
    try:
        workflow.initialize()
        engines = ["train::trainer", *(["validate::evaluator"] if "evaluator" in config.get("validate", {}) else [])]
        for handler in handlers:
            for engine in engines:
                handler.attach(workflow.parser.get_parsed_content(engine))
        workflow.run()
        workflow.finalize()
    finally:
        set_track_meta(tracked)  # trainings switch it off: MONAI's transforms then take a quarter of the time
    return workflow
