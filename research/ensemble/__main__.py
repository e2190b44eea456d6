"""Puts trials together into ensembles, from their saved predictions; nothing is trained but weights and stackers.

    python -m research.ensemble --runs=RUN[,RUN…] --out=DIR [--methods=all] [--most=N] [--metric=accuracy]
        [--compare_with_test_selection]

Members, weights and the number K of members are chosen on `calibration` alone; `test` is scored once. Writes into DIR
ensembles.csv (a row per method and K), weights.json, predictions/ (files like those of trials), ensembles.png and
index.html; with --compare_with_test_selection also test_selection.csv and test_selection.png, which say how much
choosing on the test set, as the original study did, would have flattered. Exit status: 0 finished, 2 a mistake.
"""

import argparse
import json
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Sequence

from input_pipeline import cli, tabular
from input_pipeline.cli import UserError
from research.evaluation.metrics import COUNT_METRICS


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m research.ensemble", description=__doc__, formatter_class=text)
    add = parser.add_argument
    add("--runs", required=True, help="run folders, separated by commas")
    add("--out", required=True, help="folder for the results; new, or of an earlier call")
    add("--methods", default="all", help="majority, mean, weighted, rank, greedy, logistic, dense; or all that suit")
    add("--most", type=int, default=0, help="largest K; 0 = the number of members")
    add("--metric", default="", help="what ranks and is compared; default accuracy, with several labels macro_f1")
    add("--compare_with_test_selection", action="store_true", help="choose everything on test as well")
    values = parser.parse_args(arguments)
    if values.most < 0:
        raise UserError(f"--most={values.most} is impossible; give 1 or more, or 0 for all members.")
    if values.metric and values.metric not in COUNT_METRICS:
        raise UserError(f"--metric={values.metric} is unknown; choose of {', '.join(COUNT_METRICS)}.")
    return values


def prepare_out(out: pathlib.Path) -> None:
    """Refuses a folder in which something else would be overwritten."""
    if (out / "trials.csv").exists():
        raise UserError(f"--out={out} is a run folder; name a folder of its own for the ensembles.")
    if (out / "predictions").exists() and not (out / "ensembles.csv").exists():
        raise UserError(f"--out={out} holds predictions of something else; name a new folder.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses, reads the runs, fits, scores, writes."""
    values = parse(arguments)
    out = pathlib.Path(values.out)
    prepare_out(out)
    from research.ensemble import evaluating, fitting, library, pages  # imports JAX; mistakes above answer without

    runs = [pathlib.Path(part.strip()) for part in values.runs.split(",") if part.strip()]
    if not runs:
        raise UserError("--runs names no folder; give the --workdir of one or several studies.")
    found = library.open_runs(runs)
    methods, notes = fitting.available(found, values.methods)
    notes = [f"Left out: {note}." for note in notes]
    notes += [f"Not finished, so no member: {', '.join(found.left_out)}."] if found.left_out else []
    most = min(values.most or len(found.members), len(found.members))
    metric = values.metric or ("macro_f1" if found.multi_label else "accuracy")
    for line in notes:
        print(line)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".ensemble.", dir=out) as scratch:
        own, fits, scored = _chosen(found, methods, most, metric, pathlib.Path(scratch), False)
        rows, selection = evaluating.rows(own, scored, found, metric), []
        table = rows
        if values.compare_with_test_selection:
            with tempfile.TemporaryDirectory(dir=scratch) as other:
                theirs, _, flattered = _chosen(found, methods, most, metric, pathlib.Path(other), True)
            table = rows + evaluating.test_rows(theirs, flattered, scored, found, metric)
            selection = evaluating.flattering(theirs, flattered, own, scored, found, metric)
        _replace(pathlib.Path(scratch) / "predictions", out / "predictions")
    tabular.write_csv(out / "ensembles.csv", evaluating.COLUMNS, table)
    cli.atomic_write(out / "weights.json", _weights(found, own, fits, runs, metric))
    pages.draw(rows, methods, metric, out / pages.PICTURE)
    stale = [out / pages.SELECTION_PICTURE, out / "test_selection.csv"]
    if selection:
        tabular.write_csv(stale[1], list(selection[0]), selection)
        pages.draw_selection(selection, metric, stale[0])
    else:
        for file in stale:
            file.unlink(missing_ok=True)
    title = f"Ensembles of {', '.join(run.resolve().name for run in runs)}"
    command = " ".join(["python -m research.ensemble", *(sys.argv[1:] if arguments is None else arguments)])
    text = pages.page(title, command, rows, selection, found, fits, methods, notes, metric)
    cli.atomic_write(out / "index.html", text)
    print("\n".join(pages.sentences(rows, found, metric)))
    if selection:
        print(pages.selection_sentence(selection, metric))
    print(f"Finished: {out / 'index.html'}")
    return 0


def _chosen(found, methods, most: int, metric: str, folder: pathlib.Path, on_test: bool):
    """(ensembles, fits of the parts, scores on test), everything chosen on calibration, or on test."""
    from research.ensemble import evaluating, fitting

    fits = [fitting.fit(found, part, methods, most, metric, on_test) for part in found.parts]
    own = evaluating.gather(fits, methods, metric)
    place = folder / "predictions"
    place.mkdir()
    for ensemble in own.ensembles:
        evaluating.write(ensemble, found, place, on_test)
    return own, fits, evaluating.scored(own.ensembles, found, folder)


def _replace(new: pathlib.Path, old: pathlib.Path) -> None:
    """Puts a complete folder in the place of an earlier one."""
    if old.exists():
        shutil.rmtree(old)
    new.replace(old)


def _weights(found, own, fits, runs, metric: str) -> str:
    """JSON of what rebuilds every ensemble, a line each: members, temperatures, weights, a stacker's parameters."""
    ensembles = {}
    for ensemble in own.ensembles:
        parts = []
        for part, fit, pick in zip(found.parts, fits, ensemble.picks, strict=True):
            parts.append({
                "fold": part.fold, "method": pick.method, "k": pick.k,
                "members": [found.members[m] for m in pick.members],
                "temperatures": [float(fit.temperatures[m]) for m in pick.members],
                "weights": pick.weights, "fitted": pick.settled,
            })  # fmt: skip
        ensembles[ensemble.name] = parts
    head = {"runs": [str(run) for run in runs], "metric": metric, "classes": list(found.class_names)}
    lines = [f"{json.dumps(name)}: {json.dumps(parts)}" for name, parts in ensembles.items()]
    start = json.dumps(head | {"chosen": own.choices}, indent=1).removesuffix("\n}")
    return start + ',\n "ensembles": {\n' + ",\n".join(lines) + "\n }\n}\n"


if __name__ == "__main__":
    cli.run(main)
