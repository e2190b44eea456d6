"""A mistake ends with one sentence that names it, exit status 2, no traceback, and nothing half-written."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

from tests.running import ENVIRONMENT, ROOT, command

SMOKE = "configs/hpa.py:smoke"
TINY = ("--config.epochs=0", "--config.steps=2", "--config.image_size=24", "--config.evaluation.baselines=False",
        "--config.evaluation.explain=", "--config.evaluation.bootstrap=20")  # fmt: skip


def shell(arguments: list[str], **options) -> subprocess.CompletedProcess:
    return subprocess.run(arguments, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, **options)


def assert_refused(result: subprocess.CompletedProcess, *words: str) -> None:
    """Exit status 2 and one sentence with all `words`."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    print(lines)
    assert result.returncode == 2, (result.returncode, result.stdout, result.stderr)
    assert len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    for word in words:
        assert word in lines[0], lines[0]


def prepare(study: str, source, out, *arguments: str) -> subprocess.CompletedProcess:
    return shell(
        [
            sys.executable,
            "-m",
            "input_pipeline.prepare",
            f"--study={study}",
            f"--source={source}",
            f"--out={out}",
            "--workers=1",
            *arguments,
        ]
    )


def train(workdir, *arguments: str, config: str = SMOKE, **options) -> subprocess.CompletedProcess:
    return shell(command(config, workdir, *arguments), **options)


def write_images(folder: pathlib.Path, count: int, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        noise = cv2.resize(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8), (45, 37), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{i}.png"), noise)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A small prepared data set of three classes."""
    root = tmp_path_factory.mktemp("small")
    for number, name in enumerate(("a", "b", "c")):
        write_images(root / "raw" / name, 20, number)
    result = prepare("folder", root / "raw", root / "prepared")
    assert result.returncode == 0, result.stderr
    return root / "prepared"


def single(dataset) -> tuple[str, ...]:
    """Arguments that train the blood-cell config on `dataset`."""
    return (f"--config.data.dir={dataset}", "--config.batch_size=8", *TINY)


def test_missing_folder(tmp_path):
    result = train(tmp_path / "run", f"--config.data.dir={tmp_path / 'nowhere'}")
    assert_refused(result, "nowhere", "input_pipeline.prepare")
    assert not (tmp_path / "run").exists()


def test_empty_class(tmp_path):
    for name in ("full", "more"):
        write_images(tmp_path / "raw" / name, 3)
    (tmp_path / "raw" / "hollow").mkdir()
    assert_refused(prepare("folder", tmp_path / "raw", tmp_path / "out"), "hollow")
    assert not (tmp_path / "out").exists()


def test_broken_csv(tmp_path):
    write_images(tmp_path / "raw", 3)
    (tmp_path / "raw" / "table.csv").write_text('path,label\n0.png,a\n1.png,b\n2.png,"a,surplus",x,y\n')
    assert_refused(prepare("table", tmp_path / "raw", tmp_path / "out"), "line 4")
    assert not (tmp_path / "out").exists()


def test_label_ten(tmp_path):
    write_images(tmp_path / "raw" / "train" / "train", 4)
    (tmp_path / "raw" / "train.csv").write_text("Image,Label\n0,1 4\n1,2\n2,10\n3,0\n")
    assert_refused(prepare("hpa", tmp_path / "raw", tmp_path / "out"), "10", "line 4")


def test_all_images_truncated(tmp_path):
    for name in ("a", "b"):
        write_images(tmp_path / "raw" / name, 5)
        for file in (tmp_path / "raw" / name).iterdir():
            file.write_bytes(file.read_bytes()[:200])
    assert_refused(prepare("folder", tmp_path / "raw", tmp_path / "out"), "10")
    assert not (tmp_path / "out").exists()


def test_unknown_config_key(tmp_path):
    assert_refused(train(tmp_path / "run", "--config.optimizer.learning_rat=1"), "learning_rat")


def test_wrong_type(tmp_path):
    assert_refused(train(tmp_path / "run", "--config.batch_size=many"), "batch_size", "many")


def test_negative_learning_rate(tmp_path):
    assert_refused(train(tmp_path / "run", "--config.optimizer.learning_rate=-0.1"), "learning_rate", "-0.1")
    assert not (tmp_path / "run").exists()


def test_batch_larger_than_the_data(tmp_path, dataset):
    result = train(
        tmp_path / "run", *single(dataset), "--config.batch_size=4096", config="configs/blood_cells.py:single"
    )
    assert_refused(result, "4096", "batch_size")
    assert not (tmp_path / "run").exists()


def test_read_only_workdir(tmp_path, dataset):
    """root may write anywhere, so the folder lies below a file system that is read-only for everyone."""
    result = train("/proc/run", *single(dataset), config="configs/blood_cells.py:single")
    assert_refused(result, "/proc/run")


def test_full_disk(tmp_path, dataset):
    """A file system of 1 MB: no checkpoint fits, and none is begun."""
    small = tmp_path / "small"
    small.mkdir()
    if os.geteuid() or shell(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)]).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        result = train(small / "run", *single(dataset), "--config.model.options.widths=(64,128)",
                       config="configs/blood_cells.py:single")  # fmt: skip
        assert_refused(result, "make room")
        checkpoints = small / "run" / "checkpoints"
        steps = [p.name for p in checkpoints.glob("*/*") if not p.name.startswith(".")]
        assert not steps, steps
    finally:
        shell(["umount", str(small)])


def test_flipped_bit_in_a_shard(tmp_path, dataset):
    broken = tmp_path / "broken"
    shutil.copytree(dataset, broken)
    shard = sorted(broken.glob("*train.tfrecord*-of-*"))[0]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 16
    shard.write_bytes(data)
    result = train(tmp_path / "run", *single(broken), config="configs/blood_cells.py:single")
    assert_refused(result, shard.name)


def test_stale_index(tmp_path, dataset):
    broken = tmp_path / "broken"
    shutil.copytree(dataset, broken)
    shard = sorted(broken.glob("*train.tfrecord*-of-*"))[0]
    shard.write_bytes(shard.read_bytes() + b"\0")
    result = train(tmp_path / "run", *single(broken), config="configs/blood_cells.py:single")
    assert_refused(result, shard.name, "prepare")
    assert not (tmp_path / "run").exists()


def test_checkpoint_of_another_model(tmp_path, dataset):
    config = "configs/blood_cells.py:single"
    first = train(tmp_path / "one", *single(dataset), "--config.model.options.widths=(8,)", config=config)
    assert first.returncode == 0, first.stderr
    second = train(tmp_path / "two", *single(dataset), "--config.model.options.widths=(4,)", config=config)
    assert second.returncode == 0, second.stderr
    shutil.rmtree(tmp_path / "two" / "checkpoints")
    shutil.copytree(tmp_path / "one" / "checkpoints", tmp_path / "two" / "checkpoints")
    (tmp_path / "two" / "trials.csv").unlink()
    result = train(tmp_path / "two", *single(dataset), "--config.model.options.widths=(4,)", config=config)
    assert_refused(result, "another model")


def test_second_run_in_one_folder(tmp_path, dataset):
    import fcntl

    workdir = tmp_path / "run"
    workdir.mkdir()
    with open(workdir / ".lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = train(workdir, *single(dataset), config="configs/blood_cells.py:single")
    assert_refused(result, "Another run")
    assert sorted(p.name for p in workdir.iterdir()) == [".lock"]


def test_another_configuration_in_the_folder(tmp_path, dataset):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps({"seed": 5}))
    assert_refused(train(workdir, *single(dataset), config="configs/blood_cells.py:single"), "another --workdir")
