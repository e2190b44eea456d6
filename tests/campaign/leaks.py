"""Do memory and open files stay flat over many steps?

    python -m tests.campaign.leaks [--count=10000] [--seed=0] [--out=summary.json] [--folder=DIR]

One run of `--count` steps of a tiny network, with a log line every 50 steps, an evaluation every 500 and a checkpoint
every 1000. Resident memory and open files of the process are read ten times a second. Memory at the end (the median of
the last tenth) may lie at most 3 % or 24 MB above that of the second fifth, open files not at all; and the numbers of
threads likewise. The history of the log lines (a few hundred bytes a row) is part of that memory.
"""

import contextlib
import os
import pathlib
import statistics
import sys
import time

from tests.campaign import common
from tests.running import metric_rows

SHARE, BYTES = 1.03, 24 * 2**20


def sample(number: int) -> tuple[int, int, int]:
    """Resident bytes, open files and threads of a process."""
    pages = int(pathlib.Path(f"/proc/{number}/statm").read_text().split()[1])
    files, threads = (len(os.listdir(f"/proc/{number}/{name}")) for name in ("fd", "task"))
    return pages * os.sysconf("SC_PAGE_SIZE"), files, threads


def steps_done(workdir: pathlib.Path) -> int:
    """Of the run, from its log."""
    with contextlib.suppress(OSError, ValueError):
        rows = metric_rows(workdir)
        return rows[-1]["step"] if rows else 0
    return 0


def campaign(count: int, seed: int, folder: pathlib.Path) -> common.Tally:
    """See the docstring of this file."""
    changes = {"steps": count, "log_every": "50 steps", "evaluate_every": "500 steps",
               "checkpoint_every": "1000 steps", "data__augment__mixup": 0.2, "seed": seed}  # fmt: skip
    study = common.study("long", folder / "long", **changes)
    tally = common.Tally("leaks", seed, 1)
    workdir, log = folder / "long" / "run", folder / "long" / "log"
    with tally.attempt(f"{count} steps"):
        process = study.start(workdir, log)
        seen: list[tuple[int, int, int]] = []
        training = False
        while process.poll() is None:
            time.sleep(0.1)
            training = training or steps_done(workdir) > 0
            if training and study.activity() in ("step", "evaluate", "save"):
                with contextlib.suppress(OSError, IndexError):
                    seen.append(sample(process.pid))
        if process.returncode or steps_done(workdir) != count:
            raise common.Fault(f"status {process.returncode}: {log.read_text()[-500:]!r}")
        judge(seen, tally)
    return tally


def judge(seen: list[tuple[int, int, int]], tally: common.Tally) -> None:
    """Compares the end with the second fifth."""
    part = len(seen) // 10
    early, late = seen[2 * part : 4 * part], seen[-part:]
    figures = [[statistics.median(column) for column in zip(*rows, strict=True)] for rows in (early, late)]
    (memory, files, threads), (memory_late, files_late, threads_late) = figures
    print(
        f"memory {memory / 2**20:.1f} MiB, at the end {memory_late / 2**20:.1f}; open files {files:.0f}, at the end "
        f"{files_late:.0f}; threads {threads:.0f}, at the end {threads_late:.0f}; {len(seen)} samples."
    )
    if memory_late > max(SHARE * memory, memory + BYTES):
        raise common.Fault(f"memory grew from {memory:.0f} to {memory_late:.0f} bytes")
    if files_late > files or threads_late > threads:
        raise common.Fault(f"open files {files} became {files_late}, threads {threads} became {threads_late}")
    tally.count("flat")


if __name__ == "__main__":
    sys.exit(common.main("leaks", __doc__, campaign, 10_000))
