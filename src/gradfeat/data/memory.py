"""How much main memory is free."""

from __future__ import annotations

import os


def free_memory() -> int:
    """Return the main memory that is free for use, bytes (4 GiB where the system does not say)."""
    try:
        with open("/proc/meminfo") as lines:  # Linux: with what caches of files would give back
            kibibytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
        return int(kibibytes) << 10
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 4 << 30
