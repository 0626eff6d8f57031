"""No module changes anything outside itself when it is imported: who imports it, decides what a process does."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import unicorn_monai

ROOT = Path(unicorn_monai.__file__).parents[1]
WITHOUT_MONAI_LABEL = ("app_folder", "client", "gate", "label_files", "launch")
LOOK = '''
import importlib, json, sys

def state():
    """What a module could change for everybody, as far as a process can be asked."""
    import atexit, logging, multiprocessing, os, random, resource, signal, sys, threading, warnings
    import numpy, torch
    from monai.data.meta_obj import get_track_meta
    from PIL import Image, ImageFile

    backends = torch.backends
    loggers = {name: logging.getLogger(name) for name in list(logging.root.manager.loggerDict)} | {"": logging.root}
    told = {name: (log.level, log.propagate, log.disabled, [str(h) for h in log.handlers + log.filters])
            for name, log in loggers.items()}
    return {
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "path": list(sys.path),
        "hooks": [str(h) for h in (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.displayhook)],
        "streams": [str(s) for s in (sys.stdin, sys.stdout, sys.stderr)],
        "warnings": [str(f) for f in warnings.filters] + [str(warnings.formatwarning), str(warnings.showwarning)],
        "loggers": {name: value for name, value in told.items() if value != (0, True, False, [])},
        "last logger": [str(logging.lastResort), str(logging.lastResort.formatter)],
        "signals": {str(s): str(signal.getsignal(s)) for s in signal.valid_signals()},
        "exit": atexit._ncallbacks(),
        "threads": threading.active_count(),
        "limits": [resource.getrlimit(r) for r in (resource.RLIMIT_DATA, resource.RLIMIT_AS, resource.RLIMIT_NOFILE)],
        "processes": str(multiprocessing.get_start_method(allow_none=True)),
        "pictures": [Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES],
        "random": [hash(random.getstate()), str(numpy.random.get_state()), torch.initial_seed()],
        "numpy": [str(numpy.geterr()), str(numpy.get_printoptions())],
        "torch": [torch.get_num_threads(), str(torch.get_default_dtype()), torch.is_grad_enabled(),
                  torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
                  backends.cudnn.benchmark, backends.cudnn.deterministic, backends.cudnn.allow_tf32,
                  backends.cuda.matmul.allow_tf32, torch.multiprocessing.get_sharing_strategy(),
                  [str(g) for g in torch.serialization.get_safe_globals()]],
        "track meta": get_track_meta(),
    }

others, own = json.load(sys.stdin)
for name in others:
    importlib.import_module(name)
before = state()
for name in own:
    importlib.import_module(name)
after = state()
print(json.dumps({key: [before[key], after[key]] for key in before if before[key] != after[key]}))
'''


def modules(package: str) -> list[str]:
    found = [path.relative_to(ROOT).with_suffix("") for path in sorted((ROOT / package).rglob("*.py"))]
    return [".".join(path.parts).removesuffix(".__init__") for path in found if path.name != "__main__.py"]


def imported(module: str) -> set[str]:
    """What a module imports from elsewhere when it is imported itself."""
    path = ROOT / Path(*module.split("."))
    tree = ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())
    names = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.module}
    return {name for name in names if not name.startswith(("unicorn_monai", "data_prep"))}


def changes(others: list[str], own: list[str]) -> dict:
    """What changes in a fresh process when modules are imported, after those of others that they need."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("MLFLOW")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOOK],
        input=json.dumps([others, own]),
        env=environment | {"PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_module_changes_anything_when_it_is_imported():
    own = [name for package in ("unicorn_monai", "data_prep") for name in modules(package)]
    missing = {name for name in own for other in imported(name) if find_spec(other.partition(".")[0]) is None}
    assert all(name.startswith("unicorn_monai.monailabel.") for name in missing), "an extra of its own"
    label = {name for name in own if name.startswith("unicorn_monai.monailabel.")}
    own = [name for name in own if name not in label or name.rpartition(".")[2] in WITHOUT_MONAI_LABEL]
    assert len(own) > 100
    others = sorted({other for name in own for other in imported(name)})
    assert changes(others, own) == {}


def test_a_change_would_be_seen(tmp_path, monkeypatch):
    (tmp_path / "loud.py").write_text(
        "import logging, os, sys, warnings\n"
        "os.environ['LOUD'] = '1'\n"
        "sys.excepthook = print\n"
        "logging.getLogger('mlflow').setLevel(logging.WARNING)\n"
        "warnings.filterwarnings('ignore', 'this')\n"
    )
    found = changes([], ["sys"])
    assert found == {}
    monkeypatch.chdir(tmp_path)
    assert changes([], ["loud"]).keys() == {"environment", "hooks", "loggers", "warnings"}
