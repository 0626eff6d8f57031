"""What is told where MONAI Label itself is missing, and that it is the same everywhere."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from unicorn_monai.monailabel.launch import NO_DEPS, require_monailabel

ROOT = Path(__file__).parent.parent.parent


def test_what_the_extra_leaves_out_is_named_with_the_same_versions_everywhere():
    lines = (ROOT / "requirements-label.txt").read_text().splitlines()
    assert " ".join(line for line in lines if line and not line.startswith("#")) == NO_DEPS
    for name in ("docs/monai_label.md", "pyproject.toml"):
        assert f"pip install --no-deps {NO_DEPS}" in (ROOT / name).read_text(), name


@pytest.mark.skipif(find_spec("monailabel") is not None, reason="MONAI Label is here")
def test_without_monai_label_the_command_that_installs_it_is_told():
    with pytest.raises(ValueError, match=f"not installed in this environment.*pip install --no-deps {NO_DEPS}"):
        require_monailabel()
