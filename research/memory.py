"""How does the process get its memory from the system?

XLA on CPU asks for the memory of a step's temporary arrays anew in each step (0.5 GB for resnet50, batch 16 at 128 px),
and Linux hands it out as 140,000 pages of 4 kB, each with an interruption: a fifth of the processor time of a step on a
virtual machine. With pages of 2 MB there are some hundred. glibc asks for those only if it is told so before the
process starts.
"""

import os
import pathlib
import sys

_TUNABLE = "glibc.malloc.hugetlb"
_SETTING = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_huge_pages() -> None:
    """Starts the program over, with glibc told to ask for huge pages, where that can help and has not been settled.

    To be called first of all. The new program has the process number, arguments, and files of the old one. Somebody who
    sets `GLIBC_TUNABLES=glibc.malloc.hugetlb=0` has settled it.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if _TUNABLE in tunables or not _offered():
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, f"{_TUNABLE}=1")))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _offered() -> bool:
    """Whether Linux gives huge pages to those who ask (and not to everybody), and glibc is 2.35 or newer."""
    try:
        library, version = os.confstr("CS_GNU_LIBC_VERSION").split()
        numbers = tuple(int(part) for part in version.split(".")[:2])
        return library == "glibc" and numbers >= (2, 35) and "[madvise]" in _SETTING.read_text()
    except (AttributeError, OSError, ValueError):  # not Linux, or not glibc
        return False
