"""Does gene expression go from tables to a report and to genes, and do mistakes on the way end in one sentence?"""

import csv
import os
import subprocess
import sys

import pytest

from input_pipeline.cli import UserError
from research.genes.__main__ import main
from tests import running

CONFIG = "configs/cancer_genes.py:smoke"


def genes(workdir, *arguments):
    """Runs `python -m research.genes`."""
    command = [sys.executable, "-m", "research.genes", f"--workdir={workdir}", *arguments]
    settings = {"cwd": running.ROOT, "env": running.ENVIRONMENT, "capture_output": True, "text": True}
    return subprocess.run(command, timeout=600, **settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("cancer_genes") / "run"
    result = running.run(CONFIG, workdir)
    assert result.returncode == 0, result.stderr[-2000:]
    return workdir


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_report_has_the_linear_rivals(finished):
    text = (finished / "report" / "index.html").read_text(encoding="utf-8")
    assert "SIMULATED DATA" in text
    for words in ("logistic regression on genes", "linear SVM on genes"):
        assert words in text
    assert {row["status"] for row in running.ledger(finished)} == {"finished"}
    assert len(os.listdir(finished / "layouts")) == 2  # both trials draw alike


def test_genes_are_ranked_and_checked(finished, tmp_path):
    names = [line.split("|")[0] for line in (finished / "data/prepared/expression.genes.txt").read_text().splitlines()]
    sets = tmp_path / "sets.gmt"
    sets.write_text("".join(f"SET{i}\tna\t" + "\t".join(names[i * 20 : i * 20 + 20]) + "\n" for i in range(5)))
    result = genes(finished, "--trial=MLP", "--limit=4", f"--sets={sets}")
    assert result.returncode == 0, result.stderr[-2000:]
    table = rows_of(finished / "report" / "genes.csv")
    assert {"type", "rank", "gene", "attribution", "low", "high", "f_rank", "planted"} <= table[0].keys()
    ranks = [int(row["rank"]) for row in table if row["type"] == table[0]["type"]]
    assert ranks == list(range(1, 201))
    folder = finished / "report" / "genes"
    assert {"top_genes.png", "heatmap.png", "deletion.csv", "layout.png", "precision.csv"} <= set(os.listdir(folder))
    precision = {row["ranking"]: float(row["mean"]) for row in rows_of(folder / "precision.csv")}
    assert precision["integrated gradients"] > 3 * precision["random genes"]
    assert "genes/top_genes.png" in (finished / "report" / "genes.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("arguments", "words"), [
    (("--trial=nobody",), "no trial nobody"),
    (("--role=unlabelled",), "--role"),
    (("--sets=nowhere.gmt",), "nowhere.gmt"),
    (("--planted=nowhere.csv",), "nowhere.csv"),
    (("--baseline=black",), "black"),
    (("--tolerance=0",), "--tolerance"),
])  # fmt: skip
def test_mistakes_are_one_sentence(finished, arguments, words):
    with pytest.raises(UserError, match=words):
        main([f"--workdir={finished}", *arguments])
