"""The cores that this process may use."""

import os
from pathlib import Path


def usable_cpus() -> int:
    """The cores that this process may use: of the machine, its affinity, its container's share."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(found, int(quota) // int(period)))
    except (OSError, ValueError):  # no such share, or "max"
        return found
