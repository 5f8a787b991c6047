"""Names the kinds of arithmetic, and tells which one the processor prefers."""

import itertools
import os

PRECISIONS = ("auto", "float32", "bfloat16")


def native_precision() -> str:
    """Returns `bfloat16` if the processor multiplies it natively, otherwise `float32`.

    It looks for the flags that Linux reports for Intel's AMX and AVX-512 and AMD's Zen 4. On other
    systems, float32 is the safe answer.
    """
    flags = processor().get("flags", "").split()
    native = {"amx_bf16", "avx512_bf16"} & set(flags) and not onednn_is_capped()
    return "bfloat16" if native else "float32"


def processor() -> dict[str, str]:
    """Returns what Linux reports of the first core, such as `model name`; empty elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            lines = (line.split(":", 1) for line in itertools.takewhile(str.strip, file))
            return {line[0].strip(): line[-1].strip() for line in lines}
    except OSError:
        return {}


def onednn_is_capped() -> bool:
    """Returns whether ONEDNN_MAX_CPU_ISA keeps oneDNN from instructions for bfloat16.

    oneDNN then cannot compute in it at all; its documentation lists the values ("CPU Dispatcher
    Control").
    """
    cap = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    return not any(word in cap for word in ("ALL", "DEFAULT", "BF16", "FP16", "AMX", "AVX10"))
