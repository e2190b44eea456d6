"""Do prepared vectors of gene expression come out as they went in, and damaged ones never?"""

import collections
import json
import pathlib

import numpy as np
import pytest

from input_pipeline import describe, loader, plotting, prepare
from input_pipeline.cli import UserError
from input_pipeline.dataset import open_dataset
from input_pipeline.decoding import Decoder
from input_pipeline.example_proto import decode_example, encode_example
from input_pipeline.records import RecordSource, RecordWriter, write_index
from input_pipeline.sampling import Sampler
from tests.input_pipeline.expression_sets import G, N, expression, replace_reader, row_of


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """37 vectors of 101 genes, prepared."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "table.tsv").write_text("read by another module\n")
    replace_reader(monkeypatch, expression())
    prepare.prepare("cancer_genes", tmp_path / "raw", tmp_path / "out", folds=3)
    return open_dataset(tmp_path / "out")


# --- What is refused while opening and reading.


def rewritten(dataset, features=None, genes=None) -> pathlib.Path:
    directory = dataset.directory
    if features is not None:
        declared = json.loads((directory / "features.json").read_text())
        declared["featuresDict"]["features"]["expression"] = features
        (directory / "features.json").write_text(json.dumps(declared))
    if genes is not None:
        (directory / "expression.genes.txt").write_text(genes)
    return directory


def unsealed(directory: pathlib.Path) -> pathlib.Path:
    """The folder as before there were checksums of the files beside the shards."""
    manifest = directory / "records.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({key: value for key, value in content.items() if key != "files"}))
    return directory


def test_a_changed_file_beside_the_shards_is_noticed(dataset):
    with pytest.raises(UserError, match="expression.genes.txt is not as it was prepared"):
        open_dataset(rewritten(dataset, genes="".join(f"{gene}\n" for gene in reversed(dataset.genes))))


@pytest.mark.parametrize(
    "genes",
    ["", "A\n", "\n" * G, "A\n" * G, "".join(f"{i}\n" for i in range(G + 1)), "".join(f"{i}\n" for i in range(G - 1))],
)
def test_a_wrong_file_of_genes_is_refused(dataset, genes):
    with pytest.raises(UserError, match=r"expression.genes.txt does not name each of the 101 genes once: prepare"):
        open_dataset(unsealed(rewritten(dataset, genes=genes)))


def test_a_missing_file_of_genes_is_refused(dataset):
    (dataset.directory / "expression.genes.txt").unlink()
    with pytest.raises(UserError, match="does not name each of the 101 genes"):
        open_dataset(unsealed(dataset.directory))


@pytest.mark.parametrize(
    "tensor",
    [
        {},
        {"shape": {"dimensions": ["101", "1"]}, "dtype": "float32", "encoding": "bytes"},
        {"shape": {"dimensions": ["101"]}, "dtype": "float64", "encoding": "bytes"},
        {"shape": {"dimensions": ["101"]}, "dtype": "float32", "encoding": "zlib"},
        {"shape": {"dimensions": ["-1"]}, "dtype": "float32", "encoding": "bytes"},
    ],
)
def test_another_declaration_is_refused(dataset, tensor):
    with pytest.raises(UserError, match="declares no vector of float32 in raw bytes"):
        open_dataset(unsealed(rewritten(dataset, {"tensor": tensor})))


def test_the_fingerprint_covers_the_genes(dataset):
    dataset = open_dataset(unsealed(dataset.directory))
    swapped = [dataset.genes[1], dataset.genes[0], *dataset.genes[2:]]
    other = open_dataset(rewritten(dataset, genes="".join(f"{gene}\n" for gene in swapped)))
    assert other.genes == tuple(swapped) and other.fingerprint != dataset.fingerprint
    again = open_dataset(rewritten(dataset, genes="".join(f"{gene}\n" for gene in dataset.genes)))
    assert again.fingerprint == dataset.fingerprint


def with_vector(dataset, index: int, vector: bytes | None) -> pathlib.Path:
    """The data set's folder after the vector of one example was replaced (or, with None, taken out)."""
    directory = dataset.directory
    source = RecordSource(directory)
    records = [decode_example(source[i]) for i in range(N)]
    records[index] = {key: value for key, value in records[index].items() if key != "expression"}
    if vector is not None:
        records[index]["expression"] = [vector]
    start = 0
    for shard in sorted(directory.glob("*.tfrecord-*-of-?????")):
        role = shard.name.split("-")[1].split(".")[0]
        count = len(dataset.indices(role))
        shard.unlink()
        with RecordWriter(shard) as writer:
            for record in records[start : start + count]:
                writer.write(encode_example(record))
        start += count
    write_index(directory)
    return directory


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (b"", "has 0 bytes, but 101 genes take 404"),
        (np.zeros(G - 1, "<f4").tobytes(), "has 400 bytes"),
        (np.zeros(G + 1, "<f4").tobytes(), "has 408 bytes"),
        (np.zeros(G, "<f4").tobytes()[:-1], "has 403 bytes"),
        (np.full(G, np.nan, "<f4").tobytes(), "holds a value that is no finite number"),
        (None, "has no feature `expression`"),
    ],
)
def test_damaged_vectors_stop_the_run_with_their_sentence(dataset, vector, message):
    damaged = open_dataset(with_vector(dataset, 4, vector))
    with pytest.raises(UserError, match=message):
        damaged.vector(4)
    with pytest.raises(UserError, match=message):
        list(loader.eval_batches(damaged, np.arange(N), 8, 64))
    with pytest.raises(UserError, match=message):
        loader.DecodedCache(damaged, 64).fill()
    damaged.vector(5)


def test_images_have_no_vectors(simulated):
    assert simulated.genes == () and simulated.unit == "image"
    with pytest.raises(UserError, match="holds images and no gene expression"):
        simulated.vector(0)


# --- Batches.


def assert_equal(one: list[dict], other: list[dict]) -> None:
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        assert first.keys() == second.keys()
        for key in first:
            assert first[key].dtype == second[key].dtype
            np.testing.assert_array_equal(first[key], second[key])


def train(dataset, image_size=64, **options) -> list[dict]:
    sampler = Sampler("uniform", dataset.labels, np.arange(N), 3)
    return list(loader.train_batches(dataset, sampler, 5, 2, 9, image_size, **options))


@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_a_batch_is_the_samplers_and_each_row_its_vector(dataset, channels, resize):
    sampler = Sampler("uniform", dataset.labels, np.arange(N), 3)
    for step, batch in enumerate(train(dataset, 17, channels=channels, resize=resize), 2):
        assert batch["image"].shape == (5, 1, G, 1) and batch["image"].dtype == np.float32
        assert batch["index"].tolist() == sampler.batch(step, 5).tolist()
        for row, index in enumerate(batch["index"]):
            np.testing.assert_array_equal(batch["image"][row, 0, :, 0], expression().values[row_of(batch["id"][row])])
            assert batch["label"][row] == dataset.labels[index]


@pytest.mark.parametrize(("threads", "prefetch"), [(1, 1), (3, 20), (8, 2)])
def test_threads_change_nothing(dataset, threads, prefetch):
    assert_equal(train(dataset, threads=threads, prefetch=prefetch), train(dataset, threads=2))


@pytest.mark.parametrize("cached", [False, True])
def test_evaluation_pads_the_last_batch(dataset, cached):
    cache = loader.DecodedCache(dataset, 224) if cached else None
    batches = list(loader.eval_batches(dataset, np.arange(N)[::-1], 8, 224, 3, cache=cache, pad_to=3))
    assert [batch["image"].shape for batch in batches] == [(9, 1, G, 1)] * 5
    seen = np.concatenate([batch["index"][batch["valid"]] for batch in batches])
    assert seen.tolist() == list(range(N))[::-1]
    for batch in batches:
        assert (batch["image"][~batch["valid"]] == 0).all() and (batch["index"][~batch["valid"]] == -1).all()
        for row in np.flatnonzero(batch["valid"]):
            np.testing.assert_array_equal(batch["image"][row, 0, :, 0], dataset.vector(batch["index"][row]))


def test_the_cache_holds_one_row_for_each_vector(dataset):
    cache = loader.DecodedCache(dataset, 64, 3).fill()
    assert cache.array.shape == (N, 1, G, 1) and cache.array.dtype == np.float32
    assert loader.DecodedCache.bytes_needed(dataset, 64, 3) == cache.array.nbytes == N * G * 4
    assert_equal(train(dataset, 224, cache=cache), train(dataset, 64))
    np.testing.assert_array_equal(cache.array[:, 0, :, 0], np.stack([dataset.vector(i) for i in range(N)]))


def test_the_cache_on_the_device_leaves_the_vectors_out(dataset):
    for batch, expected in zip(train(dataset, cache="device"), train(dataset), strict=True):
        del expected["image"]
        assert_equal([batch], [expected])


def test_other_roles_keep_the_genes(dataset):
    other = dataset.with_roles(["train"] * N)
    assert other.genes == dataset.genes and len(other.indices("train")) == N
    row = np.empty((1, G, 1), np.float32)
    Decoder(other, 5, None, "stretch").read(2, row)
    np.testing.assert_array_equal(row.ravel(), dataset.vector(2))


def test_masks_of_vectors_are_refused(dataset):
    with pytest.raises(UserError, match="has no masks"):
        loader.DecodedCache(dataset, 64, segmentation=True)


# --- The description.


def test_description(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(plotting, "DPI", 40)
    summary = describe.describe(dataset, tmp_path / "description", most=0)
    names = {path.name for path in (tmp_path / "description").iterdir()}
    assert "expression.png" in names and not names & {"examples.png", "sizes.png", "intensities.png"}
    values = expression().values
    text = f"{values.mean():.2f} ± {values.std():.2f}, {values.min():.2f} to {values.max():.2f}"
    assert f"expression   101 genes, values {text} (all samples looked at)" in summary
    assert "37 samples, 3 classes, one label per sample" in summary and "image" not in summary
    counts = collections.Counter(expression().labels)
    assert f"labels       {min(counts.values())} samples (" in summary
    assert "(11 of 37 samples looked at)" in describe.describe(dataset, tmp_path / "few", most=11)


def test_description_without_training_samples(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(plotting, "DPI", 40)
    other = dataset.with_roles(["test"] * (N - 1) + ["train"])
    assert "expression" in describe.describe(other, tmp_path / "description", most=0)
