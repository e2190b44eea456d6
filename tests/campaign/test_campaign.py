"""Each campaign with a few attempts, as a command: python -m pytest -m slow tests/campaign/test_campaign.py.

The campaigns proper are longer: see the docstring of each script, and its default count.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.running import ENVIRONMENT, ROOT

pytestmark = pytest.mark.slow
SMALL = {
    "kills": ("--count=3", "--points=0"),
    "signals": ("--count=3",),
    "damage": ("--count=40", "--runs=1"),
    "disk": ("--count=1",),
    "leaks": ("--count=3000",),
    "elastic": ("--count=1",),
    "bad_input": ("--count=25",),
    "fuzz": ("--minutes=0.05",),
}


@pytest.mark.parametrize("name", SMALL)
def test_nothing_fails(name, tmp_path):
    if name == "disk" and os.geteuid():
        pytest.skip("mounting file systems needs root")
    out = tmp_path / "summary.json"
    arguments = [*SMALL[name], f"--out={out}", f"--folder={tmp_path / 'work'}"]
    process = subprocess.run(
        [sys.executable, "-m", f"tests.campaign.{name}", *arguments], cwd=ROOT, env=ENVIRONMENT, timeout=1800,
        capture_output=True, text=True,
    )  # fmt: skip
    assert out.exists(), process.stderr[-2000:]
    summary = json.loads(out.read_text())
    print(summary)
    assert not summary["what_failed"] and summary["attempts"] and process.returncode == 0
