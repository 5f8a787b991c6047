"""Asks the operating system how much memory is free."""

import os
import re

GROUP = "/sys/fs/cgroup"  # that of a container (control groups, version 2)


def free_memory() -> int | None:
    """Returns the bytes that a program can take without swapping; None if the system hides it."""
    known = [free for free in (_available(), _left_in_container()) if free is not None]
    return min(known, default=None)


def _available() -> int | None:
    """Returns Linux's estimate, which counts caches as free, or what other systems call free."""
    if found := re.search(r"^MemAvailable: *(\d+) kB$", _text("/proc/meminfo"), re.MULTILINE):
        return int(found[1]) << 10
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _left_in_container() -> int | None:
    caches = re.search(r"^inactive_file (\d+)$", _text(f"{GROUP}/memory.stat"), re.MULTILINE)
    try:
        used = int(_text(f"{GROUP}/memory.current")) - int(caches[1] if caches else 0)
        return max(0, int(_text(f"{GROUP}/memory.max")) - used)
    except ValueError:  # no such file, or `max`
        return None


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except (OSError, UnicodeError):
        return ""
