"""An image is decided by (run seed, index): the same in any batch, process, order and after any interruption.

Synthesis has no loader and so no workers; the settings are batch 1, 2, 4, 8 x 1 or 2 processes x resumed or not x a
deterministic or a stochastic sampler, 32 in all. Every process makes its share without hearing of the others, so they
are run one after the other here; `test_bundles.py` runs them by torchrun.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tiny_synthesis import label_maps, synthesizer
from unicorn_monai.data.items import datalist
from unicorn_monai.data.layout import HEADER
from unicorn_monai.images.files import read_array, write_array
from unicorn_monai.synthesis.writer import Synthesizer
from unicorn_monai.training.steps import autocast_settings


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> Path:
    return label_maps(tmp_path_factory.mktemp("labels") / "labels")


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def make(labels: Path, root: Path, monkeypatch, count: int, batch: int, ranks: int, resumed: bool, stochastic: bool):
    """A finished data set; ``resumed``: every process is interrupted first, within a batch where that is possible."""
    write, left = Synthesizer._write, 0

    def until_the_lights_go_out(self, *arguments):
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        write(self, *arguments)

    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    for interrupted in [True, False] if resumed else [False]:
        for rank in range(ranks):
            monkeypatch.setenv("RANK", str(rank))
            with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
                if interrupted:
                    left = 3 // ranks
                    patch.setattr(Synthesizer, "_write", until_the_lights_go_out)
                synthesizer(labels, root, batch, count, stochastic).run()
            assert not (interrupted and (root / HEADER).exists())
    return root


def compare(labels: Path, root: Path, monkeypatch, count: int, settings, stochastic: bool) -> None:
    """Byte for byte at equal batch size, else at most 0.1 % of the pixels by at most one grey level."""
    alone = {}
    for batch in {batch for batch, _, _ in settings} | {1}:
        alone[batch] = make(labels, root / f"alone{batch}", monkeypatch, count, batch, 1, False, stochastic)
    for batch, ranks, resumed in settings:
        name = f"{batch}-{ranks}-{resumed}"
        made = make(labels, root / name, monkeypatch, count, batch, ranks, resumed, stochastic)
        assert content(made) == content(alone[batch]), name
    pictures = {
        batch: np.stack([read_array(item["image"]) for item in datalist(folder, ("training", "validation"))])
        for batch, folder in alone.items()
    }
    assert pictures[1].std() > 10, "the images are not of one colour"
    assert len(np.unique(pictures[1].reshape(len(pictures[1]), -1), axis=0)) == len(pictures[1])
    for batch, images in pictures.items():
        difference = np.abs(images.astype(int) - pictures[1].astype(int))
        assert difference.max() <= 1, batch
        assert (difference > 0).mean() <= 0.001, batch


@pytest.mark.parametrize("stochastic", [False, True], ids=["deterministic", "stochastic"])
def test_an_image_is_the_same_however_it_was_made(labels, tmp_path, monkeypatch, stochastic):
    settings = [(4, 2, False), (4, 1, True), (2, 2, True)]
    compare(labels, tmp_path, monkeypatch, 6, settings, stochastic)


@pytest.mark.slow
@pytest.mark.parametrize("stochastic", [False, True], ids=["deterministic", "stochastic"])
def test_an_image_is_the_same_in_all_settings(labels, tmp_path, monkeypatch, stochastic):
    settings = [(batch, ranks, resumed) for batch in (1, 2, 4, 8) for ranks in (1, 2) for resumed in (False, True)]
    compare(labels, tmp_path, monkeypatch, 43, settings, stochastic)  # 43 for training and 21 for validation


def test_a_data_set_of_other_settings_is_not_gone_on_with(labels, tmp_path, monkeypatch):
    def interrupted(self, writer, request, *rest):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(Synthesizer, "_write", interrupted)
        synthesizer(labels, tmp_path / "set").run()
    with pytest.raises(ValueError, match="was begun with the settings"):
        synthesizer(labels, tmp_path / "set", count=4).run()
    with pytest.raises(ValueError, match="was begun with the settings"):
        synthesizer(labels, tmp_path / "set", stochastic=True).run()
    for told in ("'precision': 'bfloat16'", "'compile': True"):  # they round in another way
        other = synthesizer(labels, tmp_path / "set")
        if "compile" in told:
            other.generator.inferer.compile = True
        else:
            other.generator.autocast = autocast_settings("cpu", "bfloat16")
        with pytest.raises(ValueError, match=f"was begun with the settings .* not .*{told}"):
            other.run()
    synthesizer(labels, tmp_path / "set").run()
    with pytest.raises(ValueError, match="already holds a data set"):
        synthesizer(labels, tmp_path / "set").run()
    before = content(tmp_path / "set")
    synthesizer(labels, tmp_path / "set", resume=True).run()
    assert content(tmp_path / "set") == before
    other = synthesizer(labels, tmp_path / "set", resume=True)
    other.generator.ldm.scheduler.steps_offset = 1
    with pytest.raises(ValueError, match=r"was begun with the settings .*'steps_offset': 0.* not .*'steps_offset': 1"):
        other.run()
    header = json.loads((tmp_path / "set" / HEADER).read_text())
    del header["settings"]["sampler"]  # as older ones are
    (tmp_path / "set" / HEADER).write_text(json.dumps(header))
    other.run()
    header["settings"]["steps"] += 1
    (tmp_path / "set" / HEADER).write_text(json.dumps(header))
    with pytest.raises(ValueError, match="was begun with the settings"):
        other.run()


def test_label_maps_are_known_by_their_content_wherever_they_lie(labels, tmp_path):
    shutil.copytree(labels, tmp_path / "elsewhere")
    before = synthesizer(labels, tmp_path / "set").requests.identity()
    assert synthesizer(tmp_path / "elsewhere", tmp_path / "set").requests.identity() == before
    path = Path(datalist(tmp_path / "elsewhere", "training", ("image", "label"))[0]["label"])
    label = read_array(path).copy()
    label[0, 0] += 1
    write_array(path, label)
    assert synthesizer(tmp_path / "elsewhere", tmp_path / "set").requests.identity() != before


@pytest.mark.parametrize("common", [True, False])
def test_a_synthesis_does_not_go_on_where_the_label_maps_have_another_spacing(labels, tmp_path, common):
    shutil.copytree(labels, tmp_path / "elsewhere")
    before = synthesizer(labels, tmp_path / "set").settings()
    header = json.loads((tmp_path / "elsewhere" / HEADER).read_text())
    (header if common else header["training"][0])["spacing_mm"] = [0.0041, 0.012]
    (tmp_path / "elsewhere" / HEADER).write_text(json.dumps(header))
    assert synthesizer(tmp_path / "elsewhere", tmp_path / "set").settings() != before
