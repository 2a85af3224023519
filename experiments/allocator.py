"""Memory settings of the C library that make CPU training faster, in force from the start of a process.

A step frees and asks again for hundreds of megabytes. glibc gives them back to the kernel, which hands them out again in
zeroed pages of 4 KB; in pages of 2 MB, kept by the process, that costs a fraction. These tunables are read at start-up only,
so a program sets them and starts itself once more. Elsewhere than on glibc the variable has no effect.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

VARIABLE = "GLIBC_TUNABLES"
SETTINGS = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184"


def tuned(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` with the settings, unless it has settings of its own."""
    return {VARIABLE: SETTINGS, **environment}


def tuned_restart() -> None:
    """Start this very program again with the settings, where they are not in force and could matter."""
    if sys.platform == "linux" and VARIABLE not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], tuned(os.environ))
