"""Freed memory stays with the process, so that the next training step needs no new pages."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from unicorn_monai.system.networks import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()
network = torch.nn.Sequential(*(torch.nn.Conv2d(16, 16, 3, padding=1) for _ in range(8)))
for step in range(20):
    if step == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    network(torch.randn(8, 16, 64, 64)).square().mean().backward()  # 2 MiB for each result
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_a_training_step_gets_the_pages_of_the_one_before():
    def faults(how: str) -> int:
        return int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True).stdout)

    kept, left = faults("keep"), faults("leave")
    assert kept < 0.1 * left, (kept, left)


def test_other_systems_are_left_as_they_are(monkeypatch):
    from unicorn_monai.system.networks import keep_freed_memory

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
