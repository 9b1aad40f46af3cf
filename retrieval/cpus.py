"""The cores and the memory that this process may use: its container's share, by either version of control groups."""

import os
from contextlib import suppress
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
QUOTAS = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))
MEMORIES = ("memory.max", "memory/memory.limit_in_bytes")


def usable_cpus() -> int:
    """The cores that this process may use: of the machine, its affinity, its container's share."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for files in QUOTAS:
        with suppress(OSError, ValueError):  # no such share, or "max"
            quota, period = map(int, " ".join((GROUPS / file).read_text() for file in files).split())
            if quota > 0:
                found = min(found, quota // period)
    return max(1, found)


def usable_memory() -> int:
    """Bytes: of the machine, or what its container may have."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in MEMORIES:
        with suppress(OSError, ValueError):
            found = min(found, int((GROUPS / file).read_text()))
    return found
