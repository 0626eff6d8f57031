"""Data sets on fsspec's file system in memory: written, read, changed, interrupted; plain paths need no fsspec."""

from __future__ import annotations

import json
import shutil
import sys
import uuid

import fsspec
import numpy as np
import pytest

from described import described_writer
from tiny_synthesis import label_maps, synthesizer
from unicorn_monai.data import remote as storage
from unicorn_monai.data.checks import check, problems
from unicorn_monai.data.items import datalist, image_size
from unicorn_monai.data.layout import HEADER, label_names
from unicorn_monai.data.remote import absolute, is_url, local_side
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.images.files import read_array
from unicorn_monai.synthesis.writer import Synthesizer

LABELS = {0: "vitreous", 1: "retina"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(storage.CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def memory():
    return fsspec.filesystem("memory")


@pytest.fixture
def url():
    return f"memory://{uuid.uuid4().hex}/set"


def image(k):
    return (np.arange(8, dtype=np.uint8)[:, None] * 5 + np.arange(9, dtype=np.uint8) + k).astype(np.uint8)


def write(root, indices=range(3), **options):
    label = np.tile(np.arange(8, dtype=np.uint8)[:, None] // 4, (1, 9))
    with described_writer(root, name="n", device="d", labels=LABELS, **options) as writer:
        for k in indices:
            if k not in writer:
                writer.add("training", image(k), label, subject=f"s{k}", index=k)


def files(memory, url):
    root = url.removeprefix("memory:/")
    return sorted(path.removeprefix(root + "/") for path in memory.find(root))


EXPECTED = [HEADER, *(f"{kind}/00000{k}.nii.gz" for kind in ("images", "labels") for k in range(3))]


def test_a_data_set_is_written_and_read_back(memory, url, tmp_path):
    write(url)
    assert files(memory, url) == EXPECTED
    write(tmp_path / "plain")
    for entry in EXPECTED:
        assert memory.cat_file(f"{url}/{entry}") == (tmp_path / "plain" / entry).read_bytes()
    items = datalist(url, "training", ("image", "label"))
    assert [item["subject"] for item in items] == ["s0", "s1", "s2"]
    assert all(np.array_equal(read_array(item["image"]), image(k)) for k, item in enumerate(items))
    assert label_names(url) == ["vitreous", "retina"]
    assert image_size(url) == (8, 9)
    assert check(url) == check(tmp_path / "plain")


def test_written_files_do_not_stay_on_the_local_disk(url):
    write(url)
    left = [path.name for path in local_side(url).rglob("*") if path.is_file()]
    assert left == [HEADER]


def test_several_sets_are_read_together(url, tmp_path):
    write(url)
    write(tmp_path / "plain", range(2))
    assert len(datalist([url, str(tmp_path / "plain")], "training")) == 5


def test_what_is_there_is_not_fetched_again_and_what_changed_is(memory, url):
    write(url)
    first = [item["image"] for item in datalist(url, "training")]
    times = [local.stat().st_mtime_ns for local in map(type(local_side(url)), first)]
    assert [item["image"] for item in datalist(url, "training")] == first
    assert [local.stat().st_mtime_ns for local in map(type(local_side(url)), first)] == times
    other = memory.cat_file(f"{url}/images/000002.nii.gz")
    memory.pipe_file(f"{url}/images/000000.nii.gz", other)
    assert np.array_equal(read_array(datalist(url, "training")[0]["image"]), image(2))


def test_looking_again_asks_for_one_list_and_not_for_every_file(memory, url, monkeypatch):
    def asked() -> list[str]:
        told: list[str] = []
        with monkeypatch.context() as patch:
            for name in ("find", "info", "get_file"):
                method = getattr(type(memory), name)
                patch.setattr(type(memory), name, lambda *a, m=method, n=name, **k: told.append(n) or m(*a, **k))
            datalist(url, "training")
        return told

    write(url, range(5))
    assert asked().count("get_file") == 11, "images, label maps and the header"
    again = asked()
    assert again.count("find") <= 2, "the header, then the files it names"
    assert "get_file" not in again
    assert again.count("info") <= 2


def test_a_download_that_is_interrupted_leaves_what_was_there_before(memory, url, monkeypatch):
    write(url)
    local = local_side(url) / "images" / "000000.nii.gz"
    datalist(url, "training")
    before = local.read_bytes()
    memory.pipe_file(f"{url}/images/000000.nii.gz", memory.cat_file(f"{url}/images/000002.nii.gz"))

    def torn(self, remote, path, **options):
        type(local)(path).write_bytes(b"half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "get_file", torn)
        with pytest.raises(KeyboardInterrupt):
            datalist(url, "training")
    assert local.read_bytes() == before
    assert not [path for path in local.parent.iterdir() if path.name.startswith(".tmp")]
    assert np.array_equal(read_array(datalist(url, "training")[0]["image"]), image(2))


def interrupted(root):
    with DatasetWriter(root, About(name="n", device="d", labels=LABELS)) as writer:
        writer.add("training", image(0), subject="s0")
        raise RuntimeError("power cut")


def test_an_interrupted_data_set_is_continued(memory, url):
    with pytest.raises(RuntimeError, match="power cut"):
        interrupted(url)
    assert files(memory, url) == ["images/000000.nii.gz"]
    with pytest.raises(ValueError, match=f"'{url}' holds no dataset.json"):
        datalist(url, "training")
    write(url, resume=True)
    assert files(memory, url) == [entry for entry in EXPECTED if entry != "labels/000000.nii.gz"]
    assert len(datalist(url, "training")) == 3


def test_a_finished_data_set_is_not_written_over(url):
    write(url)
    with pytest.raises(ValueError, match="already holds a data set"):
        write(url)


def test_a_data_set_that_was_removed_can_be_written_anew(memory, url):
    write(url)
    memory.rm(url, recursive=True)
    write(url)
    assert files(memory, url) == EXPECTED


@pytest.mark.parametrize("entry", ["../../../evil.nii.gz", "/etc/hostname"])
def test_a_list_leads_no_file_out_of_the_local_folder(memory, url, cache, entry):
    write(url)
    header = json.loads(memory.cat_file(f"{url}/{HEADER}"))
    header["training"][0]["image"] = entry
    memory.pipe_file(f"{url}/{HEADER}", json.dumps(header).encode())
    with pytest.raises(ValueError, match="leaves the data set folder"):
        datalist(url, "training")
    assert not list(cache.parent.rglob("evil*"))


def test_a_missing_file_is_named(memory, url):
    write(url)
    memory.rm(f"{url}/images/000001.nii.gz")
    with pytest.raises(ValueError, match=r"images/000001\.nii\.gz', listed as 'image' in .* does not exist"):
        datalist(url, "training")


def test_a_file_that_vanished_is_told_by_the_check(memory, url):
    write(url)
    memory.rm(f"{url}/labels/000001.nii.gz")
    assert any("does not exist" in str(problem) for problem in problems(url))


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("s3://bucket/set", "s3://bucket/set"),
        ("s3:/bucket/set/", "s3://bucket/set"),  # as pathlib writes it
        ("memory://a", "memory://a"),
    ],
)
def test_a_url_is_known_however_pathlib_wrote_it(path, found):
    assert is_url(path)
    assert absolute(path) == found
    assert local_side(path) == local_side(found)


@pytest.mark.parametrize("path", ["a/b", "/a/b", "C:/a", "a:b", "./s3:/b", ""])
def test_a_plain_path_is_none(path):
    assert not is_url(path)
    assert str(local_side(path)) == (path.removeprefix("./") or ".")


def test_an_unknown_kind_of_url_is_named():
    with pytest.raises(ValueError, match="Cannot open 'gopher://host/set'"):
        datalist("gopher://host/set", "training")


def test_a_plain_path_needs_no_fsspec(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    write(tmp_path / "plain")
    assert len(datalist(tmp_path / "plain", "training")) == 3


# ---------------------------------------------------------------- synthesis


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    return label_maps(tmp_path_factory.mktemp("maps") / "labels")


def test_a_synthesis_into_a_url_is_that_of_a_folder(memory, url, maps, tmp_path, cache, monkeypatch):
    synthesizer(maps, tmp_path / "plain").run()
    write_item, left = Synthesizer._write, 5

    def until_the_lights_go_out(self, *arguments):
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        write_item(self, *arguments)

    work = synthesizer(maps, url)
    with monkeypatch.context() as patch:
        patch.setattr(Synthesizer, "_write", until_the_lights_go_out)
        with pytest.raises(KeyboardInterrupt):
            work.run()
    assert len(files(memory, url)) == 8  # images and label maps of four; no list of items yet
    synthesizer(maps, url).run()
    expected = {str(path.relative_to(tmp_path / "plain")) for path in (tmp_path / "plain").rglob("*.*")}
    assert set(files(memory, url)) == expected
    for entry in expected:
        assert memory.cat_file(f"{url}/{entry}") == (tmp_path / "plain" / entry).read_bytes(), entry
    assert len(datalist(url, "training", ("image", "label"))) == 6


def test_a_finished_synthesis_is_left_as_it_is_on_a_machine_that_has_not_seen_it(memory, url, maps, cache):
    synthesizer(maps, url).run()
    before = {entry: memory.info(f"{url}/{entry}")["created"] for entry in files(memory, url)}
    shutil.rmtree(cache)
    with pytest.raises(ValueError, match="already holds a data set"):
        synthesizer(maps, url).run()
    shutil.rmtree(cache)
    synthesizer(maps, url, resume=True).run()
    assert {entry: memory.info(f"{url}/{entry}")["created"] for entry in files(memory, url)} == before
    shutil.rmtree(cache)
    with pytest.raises(ValueError, match="was begun with the settings"):
        synthesizer(maps, url, count=4, resume=True).run()


def test_a_header_that_never_left_is_sent_later(memory, url, monkeypatch):
    send = storage.Remote.send

    def stopped(self, entries, keep=False):
        if HEADER in entries:
            raise KeyboardInterrupt
        send(self, entries, keep)

    with monkeypatch.context() as until_then:
        until_then.setattr(storage.Remote, "send", stopped)
        with pytest.raises(KeyboardInterrupt):
            write(url, total=3)
    assert HEADER not in files(memory, url)
    write(url, resume=True, total=3)
    assert files(memory, url) == EXPECTED
