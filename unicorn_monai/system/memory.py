"""Keep freed memory for the next tensors.

Under Linux the memory of large tensors is else given back to the system when they are freed, and the next ones get
pages that have to be mapped and filled with zeros first: up to a tenth of a training of small networks on a CPU
(docs/benchmarks.md). Results are the same.
"""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
_LARGEST = 32 * 2**20  # bytes; the largest threshold that glibc takes


def keep_freed_memory() -> bool:
    """Tell the C library's allocator to keep what is freed, for tensors of up to 32 MiB; larger ones are given back.

    Holds for the rest of the process, whose memory then stays at its peak.

    Returns:
        Whether it did: other systems than Linux with glibc are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    allocator = ctypes.CDLL(None)
    return bool(allocator.mallopt(_MMAP_THRESHOLD, _LARGEST) and allocator.mallopt(_TRIM_THRESHOLD, -1))
