"""One data set, several writers: each has a share, nobody waits, and the last one writes the header."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from described import described_writer
from unicorn_monai.data.items import datalist
from unicorn_monai.data.journal import JOURNAL, MOST_ITEMS, Rows, begun, cut_torn_line
from unicorn_monai.data.layout import HEADER
from unicorn_monai.data.writer import DatasetWriter

ARGUMENTS = {"name": "n", "device": "d", "labels": {0: "a", 1: "b"}, "settings": {"seed": 1}}
TOTAL = 7


def writer(root: Path, rank: int, processes: int = 2, **changes) -> DatasetWriter:
    return described_writer(root, **{"total": TOTAL} | ARGUMENTS | changes, resume=True, share=(rank, processes))


def write(writer: DatasetWriter, indices) -> list[int]:
    written = []
    for i in indices:
        if i not in writer:
            split = "training" if i < 5 else "validation"
            picture = np.full((4, 6), i, np.uint8)
            writer.add(split, picture, picture % 2, subject=f"s{i}", index=i)
            written.append(i)
    return written


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def alone(tmp_path) -> dict[str, bytes]:
    """The data set as one process writes it."""
    with writer(tmp_path / "alone", 0, 1) as all_:
        write(all_, range(TOTAL))
    return content(tmp_path / "alone")


def test_the_header_is_plain_json_with_a_line_for_each_item(alone, tmp_path):
    lines = (tmp_path / "alone" / HEADER).read_text().splitlines()
    assert sum('"image": "images/' in line for line in lines) == TOTAL
    header = json.loads("\n".join(lines))
    assert [len(header[split]) for split in ("training", "validation", "test")] == [5, 2, 0]
    assert header["training"][3] == {"image": "images/000003.nii.gz", "label": "labels/000003.nii.gz", "subject": "s3"}
    assert header["labels"] == {"0": "a", "1": "b"}
    assert list(alone) == [name for name in alone if not name.startswith(".")]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_processes_write_what_one_does(alone, tmp_path, order):
    root = tmp_path / "set"
    for rank in order:
        assert not (root / HEADER).exists()
        with writer(root, rank) as part:
            assert write(part, range(rank, TOTAL, 2)) == list(range(rank, TOTAL, 2))
    assert content(root) == alone


def test_two_processes_write_at_the_same_time(alone, tmp_path):
    root = tmp_path / "set"
    with writer(root, 0) as first, writer(root, 1) as second:
        for i in range(TOTAL):
            write((first, second)[i % 2], [i])
    assert content(root) == alone


def test_two_that_finish_at_the_same_time_write_the_same_header(alone, tmp_path):
    root = tmp_path / "set"
    with writer(root, 0) as first:
        write(first, range(0, TOTAL, 2))
        first.commit()
        with writer(root, 1) as second:
            write(second, range(1, TOTAL, 2))
        assert (root / HEADER).exists(), "the second found everything there"
    assert content(root) == alone


def test_one_that_is_overtaken_while_it_reads_the_journals_leaves_the_header_to_the_other(alone, tmp_path, monkeypatch):
    root = tmp_path / "set"
    in_order = DatasetWriter._in_order

    def overtaken(self):
        monkeypatch.setattr(DatasetWriter, "_in_order", in_order)
        with writer(root, 1):
            pass
        return in_order(self)

    with contextlib.suppress(KeyboardInterrupt), writer(root, 1) as second:
        write(second, range(1, TOTAL, 2))
        raise KeyboardInterrupt
    with writer(root, 0) as first:
        write(first, range(0, TOTAL, 2))
        monkeypatch.setattr(DatasetWriter, "_in_order", overtaken)
    assert first.finished
    assert content(root) == alone


def test_a_journal_that_somebody_removed_is_missed(tmp_path):
    with writer(tmp_path, 0, 1, total=None) as part:
        write(part, [0, 1])
        part.commit()
        (tmp_path / JOURNAL).unlink()
        with pytest.raises(FileNotFoundError, match=JOURNAL):
            part.close()
        part.finished = True  # nothing to write any more
    assert not (tmp_path / HEADER).exists()


def test_a_process_that_comes_when_all_is_done_leaves_it_alone(alone, tmp_path):
    with writer(tmp_path / "alone", 1) as late:
        assert write(late, range(TOTAL)) == []
    assert content(tmp_path / "alone") == alone
    with pytest.raises(ValueError, match="was begun with the settings"):
        writer(tmp_path / "alone", 1, settings={"seed": 2})


def test_an_interrupted_share_is_finished_by_other_numbers_of_processes(alone, tmp_path):
    root = tmp_path / "set"
    for rank, some in ((0, [0, 2]), (1, [1, 3])):
        with contextlib.suppress(KeyboardInterrupt), writer(root, rank) as part:
            write(part, some)
            raise KeyboardInterrupt
    assert begun(root)
    with (root / "items-00001.jsonl").open("ab") as journal:
        journal.write(b'{"index": 5, "split": "trai')
    (root / ".lock-1-of-2").write_text("a process that was killed")
    with writer(root, 0, 1) as part:
        assert write(part, range(TOTAL)) == [4, 5, 6]
    assert content(root) == alone
    assert not begun(root)
    assert begun(root, finished_too=True)


def test_a_second_run_in_the_folder_is_refused(tmp_path):
    root = tmp_path / "set"
    with contextlib.suppress(KeyboardInterrupt), writer(root, 0):
        for rank, processes in ((0, 2), (0, 1), (2, 3)):
            with pytest.raises(ValueError, match=r"Another process is working in '.*set'"):
                writer(root, rank, processes)
        with writer(root, 1):
            pass
        raise KeyboardInterrupt
    with writer(root, 0, 1):
        pass


def test_items_are_read_back_in_order_without_being_kept(tmp_path):
    with writer(tmp_path / "set", 0, 1) as all_:
        write(all_, [3, 0, 6])
        assert [(index, row["subject"]) for index, row in all_.rows()] == [(0, "s0"), (3, "s3"), (6, "s6")]
        assert len(all_) == 3
        assert 2 not in all_
        write(all_, range(TOTAL))
    assert [item["subject"] for item in datalist(tmp_path / "set", ("training", "validation"))] == [
        f"s{i}" for i in range(TOTAL)
    ]


def test_a_line_comes_after_its_files_are_on_the_disk_with_their_names(tmp_path, monkeypatch):
    flushed: list[str] = []
    sync = os.fsync

    def noting(descriptor: int) -> None:
        sync(descriptor)
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink().name.split("-")[-1])

    with writer(tmp_path / "set", 0, 1) as all_:
        monkeypatch.setattr(os, "fsync", noting)
        lines = (tmp_path / "set" / JOURNAL).read_bytes()
        write(all_, [0, 1])
        assert (tmp_path / "set" / JOURNAL).read_bytes() == lines
        assert all(index in all_ for index in (0, 1))
        all_.commit()
        assert (tmp_path / "set" / JOURNAL).read_bytes().count(b"\n") == 3
        assert flushed == ["000000.nii.gz"] * 2 + ["000001.nii.gz"] * 2 + ["images", "labels", JOURNAL]
        all_.commit()
        assert len(flushed) == 7, "nothing is new"
        write(all_, range(TOTAL))
        flushed.clear()
    assert flushed == ["images", "labels", JOURNAL, HEADER, "set"]


def test_items_before_a_failure_are_kept(tmp_path):
    with contextlib.suppress(KeyboardInterrupt), writer(tmp_path / "set", 0, 1) as part:
        write(part, [0, 1])
        raise KeyboardInterrupt
    with writer(tmp_path / "set", 0, 1) as part:
        assert write(part, range(TOTAL)) == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 5000, 20_000])
def test_a_torn_line_is_cut_off_however_long(tmp_path, length):
    journal = tmp_path / JOURNAL
    for before in (b"", b'{"index": 0}\n', b"x" * 5000 + b"\n"):
        journal.write_bytes(before + b"y" * length)
        cut_torn_line(journal)
        assert journal.read_bytes() == before


def test_a_journal_is_not_written_before_it_is_opened(tmp_path):
    with pytest.raises(ValueError, match="not open for writing"):
        Rows(tmp_path).append({"index": 0})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"index": TOTAL, "split": "training", "image": "a.png"}, r"Item 7 in '.*items.jsonl': expected 0 to 6"),
        ({"index": -1, "split": "training", "image": "a.png"}, "Item -1 in"),
        ({"index": "1", "split": "training", "image": "a.png"}, "expected an item with 'index', 'split' and 'image'"),
        ({"index": 1.0, "split": "training", "image": "a.png"}, "expected an item"),
        ({"index": 1, "image": "a.png"}, "expected an item"),
        (5, r"items.jsonl' has the line b'5\\n'; expected an item"),
    ],
    ids=["too large", "negative", "text", "fraction", "no split", "no table"],
)
def test_a_line_that_no_writer_wrote_is_refused_with_its_file(tmp_path, line, message):
    with contextlib.suppress(KeyboardInterrupt), writer(tmp_path, 0, 1) as part:
        write(part, [0, 1])
        raise KeyboardInterrupt
    with (tmp_path / JOURNAL).open("a") as journal:
        journal.write(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=message):
        writer(tmp_path, 0, 1)


def test_a_huge_index_does_not_fill_the_memory(tmp_path):
    (tmp_path / JOURNAL).write_text(json.dumps({"index": 10**15, "split": "training", "image": "a.png"}) + "\n")
    with pytest.raises(ValueError, match=f"expected 0 to {MOST_ITEMS - 1}"):
        writer(tmp_path, 0, 1, total=None)
    (tmp_path / JOURNAL).unlink()
    with writer(tmp_path, 0, 1, total=None) as alone:
        with pytest.raises(ValueError, match=f"expected an index from 0 to {MOST_ITEMS - 1}"):
            alone.add("training", np.full((4, 6), 1, np.uint8), subject="s", index=10**15)
        write(alone, [0])
    assert not (tmp_path / "images" / f"{10**15}.nii.gz").exists()


def test_what_an_item_says_does_not_change_its_place(tmp_path):
    with writer(tmp_path, 0, 1, total=3) as all_:
        write(all_, range(3))
    header = json.loads((tmp_path / HEADER).read_text())
    header["training"][1] |= {"index": 6, "split": "test"}
    (tmp_path / HEADER).write_text(json.dumps(header))
    with writer(tmp_path, 0, 1, total=None) as more:
        assert [index for index in range(TOTAL) if index in more] == [0, 1, 2]
    assert len(datalist(tmp_path, "training")) == 3
