"""Does a run in an object store survive machines that vanish? Kills at random moments, the cache deleted each time.

    python -m tests.campaign.remote_store --seed=0 [--kills=10] [--folder=DIR]

Needs s3fs and a `moto_server` (see tests/object_store.py). A small run of simulated cells has data and run folder in
the store. It is killed (SIGKILL to all its processes) at random moments, everything on the machine is deleted, and it
goes on elsewhere. In the end its state, ledger, metrics and predictions are those of an undisturbed local run, and the
store holds nothing that is not needed. Exit status: 0 if so, 1 otherwise. Takes about ten minutes on two cores.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from tests.object_store import SERVER, serving
from tests.running import ENVIRONMENT, ROOT, command
from tests.test_interruptions import ARGUMENTS as SHORT
from tests.test_interruptions import CONFIG, assert_no_orphans, assert_same

ARGUMENTS = (*SHORT, "--config.epochs=80")
BUCKET = "campaign"
LEASE = 4


def prepare(folder: pathlib.Path, environment: dict[str, str]) -> None:
    """Draws cells and prepares them twice: into `folder`/prepared, and into the store."""
    from input_pipeline import simulate

    simulate.hpa(folder / "raw", num_train=150, num_test=7, size=64, seed=1, workers=1)
    for out in (str(folder / "prepared"), f"s3://{BUCKET}/prepared"):
        arguments = ["--study=hpa", f"--source={folder / 'raw'}", f"--out={out}", "--workers=1"]
        subprocess.run(
            [sys.executable, "-m", "input_pipeline.prepare", *arguments], cwd=ROOT, env=environment, check=True
        )


def start(url: str, data: str, environment: dict[str, str], log: pathlib.Path) -> subprocess.Popen:
    """Starts the run with all that it says in `log`."""
    return subprocess.Popen(
        command(CONFIG, url, *ARGUMENTS, f"--config.data.dir={data}"),
        cwd=ROOT,
        stdout=open(log, "a"),
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )


def finish(url: str, data: str, environment: dict[str, str], log: pathlib.Path) -> float:
    """Runs to the end; returns the seconds."""
    began = time.monotonic()
    status = start(url, data, environment, log).wait(timeout=1200)
    if status:
        raise AssertionError(f"the run ended with {status}; see {log}: {log.read_text()[-2000:]}")
    return time.monotonic() - began


class Campaign:
    """One run in the store and what happens to it."""

    def __init__(self, folder: pathlib.Path, environment: dict[str, str], seed: int) -> None:
        self.folder, self.environment, self.random = folder, environment, random.Random(seed)
        self.log = folder / "log"
        self.data, self.runs = f"s3://{BUCKET}/prepared", 0
        self.kills = self.in_store = 0

    @property
    def url(self) -> str:
        return f"s3://{BUCKET}/runs/{self.runs}"

    def machine(self) -> dict[str, str]:
        """The environment of a machine that has nothing yet."""
        cache = self.folder / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        return self.environment | {"RESEARCH_CACHE": str(cache)}

    def kill(self, longest: float) -> None:
        """Runs on a new machine, which vanishes at a random moment."""
        delay = self.random.uniform(0.1, 1.0) * longest
        process = start(self.url, self.data, self.machine(), self.log)
        try:
            process.wait(timeout=delay)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert_no_orphans(process.pid)
        local = self.folder.glob("cache/runs/*/run/checkpoints/*/*/manifest.json")
        trained = max((int(path.parent.name) for path in local if path.parent.name.isdigit()), default=0)
        shutil.rmtree(self.folder / "cache", ignore_errors=True)
        if process.returncode == 0:  # finished before the kill: the next one begins anew
            print(f"finished before {delay:.1f} s; a new run begins", flush=True)
            self.compare()
            self.runs += 1
            return
        if process.returncode != -signal.SIGKILL:
            raise AssertionError(f"ended with {process.returncode}; see {self.log}: {self.log.read_text()[-2000:]}")
        self.kills += 1
        found = self.steps()
        self.in_store += bool(found)
        where = f"newest checkpoint there {trained or 'none'}, in the store {found or 'none'}"
        print(f"kill {self.kills} after {delay:5.1f} s: {where}", flush=True)

    def steps(self) -> list[int]:
        """The steps whose checkpoints the newest generation holds."""
        from input_pipeline.remote import Store
        from research.remote.generations import manifests, read_manifest

        store = Store(self.url)
        for generation in manifests(store)[:1]:
            files = read_manifest(store, generation).files
            return sorted({int(name.split("/")[2]) for name in files if name.startswith("checkpoints/")})
        return []

    def compare(self) -> None:
        """The run in the store is the undisturbed one, and nothing superfluous lies there."""
        from input_pipeline.remote import Store
        from research.remote.__main__ import fetch
        from research.remote.generations import manifests, read_manifest

        out = self.folder / "fetched"
        shutil.rmtree(out, ignore_errors=True)
        fetch(self.url, out)
        assert_same(out, self.folder / "reference")
        store = Store(self.url)
        kept = manifests(store)
        needed = set().union(*(read_manifest(store, generation).parts for generation in kept))
        objects = {name.rpartition("/")[2] for name in store.names(".mirror/objects")}
        assert len(kept) <= 2 and objects == needed, (kept, objects ^ needed)
        assert json.loads(store.read("report/metrics.json")), "the copies for people are missing"


def main() -> int:
    """Runs the campaign."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--folder", type=pathlib.Path, help="where runs and logs lie (default: temporary)")
    flags = parser.parse_args()
    if not SERVER:
        print("moto_server is not installed; see tests/object_store.py", file=sys.stderr)
        return 1
    folder = flags.folder or pathlib.Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    with serving(BUCKET) as variables:
        os.environ.update(variables)
        environment = ENVIRONMENT | variables | {"RESEARCH_REMOTE_LEASE": str(LEASE)}
        campaign = Campaign(folder, environment, flags.seed)
        prepare(folder, campaign.machine())
        longest = finish(str(folder / "reference"), str(folder / "prepared"), campaign.machine(), campaign.log)
        print(f"undisturbed local run: {longest:.0f} s", flush=True)
        while campaign.kills < flags.kills:
            campaign.kill(longest + LEASE)
        seconds = finish(campaign.url, campaign.data, campaign.machine(), campaign.log)
        campaign.compare()
    secret = variables["AWS_SECRET_ACCESS_KEY"] in campaign.log.read_text()
    print(
        f"seed {flags.seed}: {campaign.kills} machines vanished ({campaign.in_store} times with checkpoints in the "
        f"store), {campaign.runs + 1} run(s) finished, the last in {seconds:.0f} s; state, ledger, metrics and "
        f"predictions equal to the undisturbed run; secrets in the log: {'YES' if secret else 'none'}"
    )
    return int(secret)


if __name__ == "__main__":
    sys.exit(main())
