"""Does a table of PanCanAtlas's full size fit into memory, plain and packed, and give the same bytes each time?"""

import gzip
import shutil
import subprocess
import sys

import numpy as np
import pytest

NUM_GENES, NUM_SAMPLES = 20_531, 11_069
MAX_RESIDENT_MEBIBYTES = 3 * 1024

_READ = """
import hashlib, pathlib, resource, sys, time
from input_pipeline import raw
from input_pipeline.expression import reading
start = time.monotonic()
found = reading.read(raw.open_source(sys.argv[1]), {"samples": "all"}, pathlib.Path(sys.argv[2]))
seconds = time.monotonic() - start
assert found.values.shape == (int(sys.argv[3]), int(sys.argv[4])), found.values.shape
digest = hashlib.sha256()
for start in range(0, len(found.values), 512):
    digest.update(found.values[start : start + 512].tobytes())
print(digest.hexdigest(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, seconds)
"""


def write_table(root):
    """Lines drawn from 200 different ones, of about 9 characters a cell, some with missing or negative values."""
    generator = np.random.default_rng(0)
    root.mkdir()
    names = [f"TCGA-{i // 1000:02d}-A{i % 1000:03d}" for i in range(NUM_SAMPLES)]
    lines = []
    for number in range(200):
        cells = [f"{value:.4f}" for value in np.exp(generator.normal(generator.normal(5, 1.5), 1.2, NUM_SAMPLES))]
        for index in generator.integers(0, NUM_SAMPLES, 600) if number % 5 == 0 else []:
            cells[index] = "NA" if number % 2 else "-0.3312"
        lines.append("\t".join(cells))
    with (root / "EBPlusPlusAdjustPANCAN_IlluminaHiSeq_RNASeqV2.geneExp.tsv").open("w") as file:
        file.write("\t".join(["gene_id", *(f"{name}-01A-11R-A29S-07" for name in names)]) + "\n")
        for gene in range(NUM_GENES):
            file.write(f"{'?' if gene < 29 else f'GENE{gene}'}|{gene + 100}\t{lines[gene * 7919 % 200]}\n")
    pairs = (f"{name},{('BRCA', 'LUAD', 'OV')[i % 3]}\n" for i, name in enumerate(names))
    (root / "labels.csv").write_text("patient,type\n" + "".join(pairs))


def read(root, scratch):
    """Digest of the values, peak resident MiB and seconds of one reading in a process of its own."""
    scratch.mkdir()
    sizes = [str(NUM_SAMPLES), str(NUM_GENES)]
    done = subprocess.run(
        [sys.executable, "-c", _READ, str(root), str(scratch), *sizes], stdout=subprocess.PIPE, text=True, check=True
    )
    shutil.rmtree(scratch)
    digest, resident, seconds = done.stdout.split()
    return digest, float(resident), float(seconds)


@pytest.mark.slow
def test_full_size(tmp_path):
    write_table(tmp_path / "raw")
    first = read(tmp_path / "raw", tmp_path / "scratch")
    [table] = (tmp_path / "raw").glob("*.tsv")
    with table.open("rb") as plain, gzip.open(f"{table}.gz", "wb", compresslevel=1) as packed:
        shutil.copyfileobj(plain, packed, 2**20)
    table.unlink()
    second = read(tmp_path / "raw", tmp_path / "scratch")
    print(f"plain {first[1]:.0f} MiB, {first[2]:.0f} s; gzip {second[1]:.0f} MiB, {second[2]:.0f} s")
    assert first[0] == second[0]
    assert max(first[1], second[1]) < MAX_RESIDENT_MEBIBYTES
    shutil.rmtree(tmp_path / "raw")
