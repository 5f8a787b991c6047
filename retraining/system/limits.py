"""Refuses to start where the system grants a process too little memory for TensorFlow."""

import os
import sys

# Address space, most of which is never used: 3.3 GiB for a run with Inception-v3 on two cores.
LEAST_BYTES = 3 << 30
BYTES_PER_CORE = 256 << 20  # that the threads of TensorFlow reserve
DATA_SHARE = 0.5  # of it that `ulimit -d` counts: 1.4 GiB in that run


def refuse_small_limits() -> None:
    """Ends the program with one line if there is a `problem`."""
    if found := problem():
        sys.exit(f"{os.path.basename(sys.argv[0])}: {found}")


def problem() -> str | None:
    """Returns why `ulimit -v` or `ulimit -d` is too low, or None.

    TensorFlow itself fails to load then, or ends the process without a word.
    """
    if sys.platform == "win32":
        return None  # it has no such limits
    import resource

    address_space = LEAST_BYTES + BYTES_PER_CORE * (os.cpu_count() or 1)
    kinds = (("-v", resource.RLIMIT_AS, 1), ("-d", resource.RLIMIT_DATA, DATA_SHARE))
    for flag, kind, share in kinds:
        least = int(share * address_space)
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY and soft < least:
            return (
                f"this process may have {soft / 1e9:.1f} GB of memory, and TensorFlow needs "
                f"{least / 1e9:.1f}; raise the limit: ulimit {flag} {least >> 10}"
            )
    return None
