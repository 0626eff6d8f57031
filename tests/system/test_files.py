"""Files are whole or not there, what a crash leaves is swept up, and a folder belongs to one process at a time."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unicorn_monai.system.files import _HOST, Occupied, atomic, flush, sweep

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
HOLD = """
import sys, time
from pathlib import Path
from unicorn_monai.system.files import Occupied
with Occupied(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]) if len(sys.argv) > 2 else 60)
"""


def test_a_file_has_its_name_when_it_is_whole(tmp_path):
    with atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        assert [path.name for path in tmp_path.iterdir()] == [temporary.name]
        temporary.write_text("whole")
    assert (tmp_path / "a.txt").read_text() == "whole"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failed_write_leaves_what_was_there(tmp_path):
    (tmp_path / "a.txt").write_text("before")
    with contextlib.suppress(OSError), atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise OSError(28, "the disk is full")
    assert (tmp_path / "a.txt").read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1


def ended() -> int:
    """Number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_ended_processes_left_is_swept_up_and_nothing_else(tmp_path):
    day_ago = time.time() - 90_000
    left = [f".tmp-{_HOST}-{ended()}-a.nii.gz", f".tmp-{_HOST}-{os.getpid()}-b", ".tmp-elsewhere-1-old", ".tmp-7-c"]
    kept = [f".tmp-{_HOST}-{os.getppid()}-a", ".tmp-elsewhere-1-new", "a.nii.gz"]
    for name in left + kept:
        (tmp_path / name).write_text("")
    for name in left[2:]:
        os.utime(tmp_path / name, (day_ago, day_ago))
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    sweep(tmp_path / "nowhere")


def test_folders_within_are_swept_when_asked(tmp_path):
    left = tmp_path / "models" / "deep" / f".tmp-{_HOST}-{ended()}-model.pt"
    left.parent.mkdir(parents=True)
    left.write_text("half")
    sweep(tmp_path)
    assert left.exists()
    sweep(tmp_path, below=True)
    assert not left.exists()


def test_a_file_is_on_the_disk_before_its_name_and_its_name_before_one_goes_on(tmp_path, monkeypatch):
    flushed: list[str] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda d: (flushed.append(str(Path(f"/proc/self/fd/{d}").readlink())), sync(d)))
    with atomic(tmp_path / "a.py") as temporary:
        temporary.write_bytes(Path(__file__).read_bytes())
    assert (tmp_path / "a.py").read_bytes() == Path(__file__).read_bytes()
    assert [Path(path).name.startswith(".tmp-") for path in flushed] == [True, False]
    assert flushed[1] == str(tmp_path)
    with atomic(tmp_path / "b", lasting=False) as temporary:
        temporary.write_text("b")
    assert len(flushed) == 3
    with pytest.raises(FileNotFoundError):
        flush(tmp_path / "nowhere")


def test_a_second_process_is_refused_and_told_who_is_there(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / ".lock")], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        message = rf"Another process is working in '{tmp_path}' \(process {holder.pid} on .*\)\. Wait for it, or stop"
        with pytest.raises(ValueError, match=message), Occupied(tmp_path / ".lock"):
            pass
        holder.kill()  # which removes no file
        holder.wait()
        assert (tmp_path / ".lock").exists()
        with Occupied(tmp_path / ".lock"):
            assert str(os.getpid()) in (tmp_path / ".lock").read_text()
    finally:
        holder.kill()
        holder.wait()
    assert list(tmp_path.iterdir()) == []


def test_one_process_cannot_enter_twice_but_again(tmp_path):
    for _ in range(2):
        with (
            Occupied(tmp_path / ".lock"),
            pytest.raises(ValueError, match=r"Another process is working in .*this one"),
            Occupied(tmp_path / ".lock", "the folder"),
        ):
            pass
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [None, ValueError("no")])
def test_what_a_library_leaves_beside_a_file_goes_with_the_folder(tmp_path, error):
    with (
        pytest.raises(ValueError, match="no") if error else contextlib.nullcontext(),
        atomic(tmp_path / "a", apart=True) as file,
    ):
        file.write_text("whole")
        file.with_name(".tmpAbCdEf").write_text("of safetensors, when it is killed")
        if error:
            raise error
    assert [path.name for path in tmp_path.iterdir()] == ([] if error else ["a"])


@pytest.mark.parametrize("apart", [False, True])
def test_a_failure_is_told_with_the_final_name(tmp_path, apart):
    path = tmp_path / "missing" / "a"
    with pytest.raises(FileNotFoundError) as failure, atomic(path, apart=apart) as file:
        file.write_text("")
    assert failure.value.filename == str(path)


@pytest.mark.parametrize("below", [False, True])
def test_the_folder_of_a_killed_process_is_swept_with_all_in_it(tmp_path, below):
    for pid, name in ((ended(), "gone"), (os.getppid(), "stays")):
        (tmp_path / f".tmp-{_HOST}-{pid}-{name}").mkdir()
        (tmp_path / f".tmp-{_HOST}-{pid}-{name}" / ".tmpAbCdEf").write_text("half")
    sweep(tmp_path, below)
    assert [path.name.rsplit("-", 1)[1] for path in tmp_path.iterdir()] == ["stays"]


def test_a_folder_with_a_temporary_name_is_left_alone(tmp_path):
    (tmp_path / ".tmp-app").mkdir()
    os.utime(tmp_path / ".tmp-app", (0, 0))
    sweep(tmp_path)
    assert (tmp_path / ".tmp-app").is_dir()


@pytest.mark.parametrize("look", [1, 2, 3])
def test_a_lock_that_its_holder_removes_meanwhile_is_made_anew(tmp_path, look):
    class Removed(type(tmp_path)):
        looks = 0

        def stat(self, **options):
            Removed.looks += self.name == ".lock"
            if self.name == ".lock" and Removed.looks == look:
                self.unlink()
            return super().stat(**options)

    with Occupied(Removed(tmp_path / ".lock"), place=tmp_path):
        assert (tmp_path / ".lock").is_file()
