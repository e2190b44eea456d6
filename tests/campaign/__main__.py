"""The table of all campaigns, from the summaries that they wrote: python -m tests.campaign SUMMARY.json [...]"""

import json
import pathlib
import sys


def main() -> int:
    """Prints one row per summary; returns 1 if an attempt of one of them failed."""
    rows = [json.loads(pathlib.Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:]]
    if not rows:
        print(__doc__, file=sys.stderr)
        return 2
    print("| campaign | attempts | failures | seed | seconds | how they ended |\n|---|---|---|---|---|---|")
    for row in rows:
        ended = ", ".join(f"{name} {count}" for name, count in row["outcomes"].items())
        cells = (row["campaign"], row["attempts"], row["failures"], row["seed"], f"{row['seconds']:.0f}", ended)
        print(f"| {' | '.join(map(str, cells))} |")
    return 1 if any(row["failures"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
