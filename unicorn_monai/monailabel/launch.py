"""Start the server: what MONAI Label reads from its environment is set before it is imported."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from unicorn_monai.bundle.expressions import require_literal
from unicorn_monai.data.layout import HEADER
from unicorn_monai.monailabel.app_folder import make_app
from unicorn_monai.monailabel.label_files import IMAGES

logger = logging.getLogger("unicorn_monai")

NO_DEPS = "monailabel==0.8.5 pydicom-seg==0.4.1 torchvision==0.28.0"  # requirements-label.txt, which no wheel carries
LOOPBACK = ("127.0.0.1", "localhost", "::1")
FOLDERS = ("model", "lib", "logs", "bin")  # MONAI Label expects them


def label_studies(
    studies: Path, run: Path | None, setup: str | None, host: str, port: int, folder: Path | None, names: Iterable[str]
) -> None:
    """Make the app of a folder of studies, or go on with it, and serve it: the command ``unicorn-monai label``.

    ``run`` and ``setup`` as in `make_app`; the app's ``folder`` lies in the user's own unless it is given. ``names`` of
    the server beside ``host``: what a proxy or a router calls it.
    """
    require_monailabel()
    require_studies(studies)
    folder = folder or _app_folder_of(studies)
    for name, path in {"--studies": studies, "--app": folder}.items():
        require_literal(str(path.resolve()), name)
    content = make_app(folder, run, setup)
    logger.info(f"app: {folder} (run {content['run']}, weights {content['setup']})")
    logger.info(f"network: {content['setup']}, {content.get('why') or 'chosen when the app was made'}")
    if host not in LOOPBACK:
        logger.warning(
            f"Everybody who reaches {host}:{port} can read, change and delete the studies: the server has no "
            "authentication unless MONAI_LABEL_AUTH_ENABLE and a realm are configured (docs/monai_label.md)."
        )
    configure(folder, studies, port)
    import uvicorn
    from monailabel.utils.others.generic import init_log_config

    from unicorn_monai.monailabel.gate import names_of
    from unicorn_monai.monailabel.server import build

    log = json.loads(Path(init_log_config(None, str(folder), "app.log", root_level="INFO")).read_text())
    for formatter in log["formatters"].values():
        formatter["class"] = "unicorn_monai.system.PrintableFormatter"
    uvicorn.run(build({*names_of(host), *names}), host=host, port=port, log_config=log, access_log=False)


def _app_folder_of(studies: Path) -> Path:
    """Where the app of a folder of studies lives: in the user's own folder for application data."""
    name = hashlib.sha256(str(studies.resolve()).encode()).hexdigest()[:8]
    mac = sys.platform == "darwin"
    own = "~/Library/Application Support" if mac else os.environ.get("XDG_CONFIG_HOME", "~/.config")
    return Path(own).expanduser() / "unicorn-monai" / "label" / f"{studies.resolve().name}-{name}"


def configure(app_dir: Path, studies: Path, port: int = 8000) -> None:
    """Tell MONAI Label, and the processes that it starts, what to serve."""
    os.environ |= {
        "MONAI_LABEL_APP_DIR": str(app_dir.resolve()),
        "MONAI_LABEL_STUDIES": str(studies.resolve()),
        "MONAI_LABEL_SERVER_PORT": str(port),
        "MONAI_LABEL_SESSIONS": "false",
        "MONAI_LABEL_DATASTORE_FILE_EXT": json.dumps([f"*{suffix}" for suffix in IMAGES]),
        "PYTHONPATH": os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(app_dir.resolve())]),
    }
    for folder in FOLDERS:
        (app_dir / folder).mkdir(exist_ok=True)


def require_monailabel() -> None:
    """Refuse to start without MONAI Label."""
    if find_spec("monailabel") is None:
        raise ValueError(
            "MONAI Label is not installed in this environment. The extra `label` brings what it needs, but not itself, "
            "since it wants other versions than this package. In an environment of its own, install this package with "
            f"that extra, then: pip install --no-deps {NO_DEPS} (docs/monai_label.md)"
        )


def require_studies(studies: Path) -> None:
    """Refuse a folder that MONAI Label would find no image in: none, or a data set, whose images lie one deeper."""
    if not studies.is_dir():
        raise ValueError(f"The studies '{studies}' are no folder. Give the folder that holds the images.")
    if (studies / HEADER).is_file():
        raise ValueError(
            f"'{studies}' is a data set; MONAI Label looks for images in the folder itself. Give a copy of "
            f"'{studies / 'images'}', since labels are written into it."
        )
