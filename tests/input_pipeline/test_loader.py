"""Batches: the same examples in the same order however they are made, each image as decoded, none lost at the end."""

import threading

import numpy as np
import pytest

from input_pipeline import decoding, images, loader
from input_pipeline.cli import UserError
from input_pipeline.dataset import open_dataset
from input_pipeline.decoding import Decoder
from input_pipeline.sampling import Sampler
from tests.input_pipeline.record_sets import encoded_picture, write_dataset

N, SIZE = 17, 12


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("loader") / "data", N)


@pytest.fixture(scope="module")
def dataset(directory):
    return open_dataset(directory)


def sampler_of(dataset, seed: int = 0) -> Sampler:
    return Sampler("uniform", dataset.labels, np.arange(len(dataset)), seed)


def train(dataset, batch_size=5, start=0, steps=8, **options) -> list[dict]:
    return list(loader.train_batches(dataset, sampler_of(dataset), batch_size, start, steps, SIZE, **options))


def assert_equal(one: list[dict], other: list[dict]) -> None:
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        assert first.keys() == second.keys()
        for key in first:
            assert first[key].dtype == second[key].dtype
            np.testing.assert_array_equal(first[key], second[key])


def expected_image(index: int, channels: int = 3, resize: str = "stretch") -> np.ndarray:
    return images.resize(images.decode(encoded_picture(index), channels), SIZE, resize)


def test_a_batch_is_the_samplers_and_each_row_its_image(dataset):
    batches = train(dataset)
    sampler = sampler_of(dataset)
    assert len(batches) == 8
    for step, batch in enumerate(batches):
        assert batch["index"].tolist() == sampler.batch(step, 5).tolist()
        assert batch["image"].shape == (5, SIZE, SIZE, 3) and batch["image"].dtype == np.uint8
        assert batch["label"].dtype == np.int32 and batch["valid"].all()
        for row, index in enumerate(batch["index"]):
            assert batch["id"][row] == f"cell/{index:03d}"
            assert batch["label"][row] == index % 3
            np.testing.assert_array_equal(batch["image"][row], expected_image(index))


@pytest.mark.parametrize("threads", [0, 1, 3, 8])
@pytest.mark.parametrize("prefetch", [1, 20])
def test_threads_and_prefetch_change_nothing(dataset, threads, prefetch):
    assert_equal(train(dataset, threads=threads, prefetch=prefetch), train(dataset, threads=2))


def test_a_later_start_gives_the_same_steps(dataset):
    assert_equal(train(dataset, start=3, steps=5), train(dataset)[3:])
    assert train(dataset, start=3, steps=0) == []


@pytest.mark.parametrize(("batch_size", "processes", "pad_to"), [(5, 2, 1), (5, 3, 2), (6, 2, 3), (5, 8, 1), (1, 2, 4)])
def test_processes_share_the_global_batch(dataset, batch_size, processes, pad_to):
    """Side by side, the parts of all processes are the global batch and then padding."""
    whole = train(dataset, batch_size)
    parts = [
        train(dataset, batch_size, process_index=i, process_count=processes, pad_to=pad_to) for i in range(processes)
    ]
    for step, batch in enumerate(whole):
        rows = [part[step] for part in parts]
        assert len({len(own["valid"]) for own in rows}) == 1 and len(rows[0]["valid"]) % pad_to == 0
        for key, value in batch.items():
            joined = np.concatenate([own[key] for own in rows])
            np.testing.assert_array_equal(joined[:batch_size], value)
            padding = {"id": "", "index": -1}.get(key, 0)
            assert (joined[batch_size:] == padding).all()


def test_process_rows_waste_less_than_a_row_of_devices():
    assert loader.process_rows(9, 0, 1, 8) == slice(0, 16)
    assert loader.process_rows(32, 3, 4, 2) == slice(24, 32)
    assert loader.process_rows(7) == slice(0, 7)


@pytest.mark.parametrize("batch_size", [1, 4, 17, 40])
@pytest.mark.parametrize("processes", [1, 3])
def test_evaluation_sees_each_example_once_in_order(dataset, batch_size, processes):
    indices = np.array([16, 3, 4, 0, 11, 9, 8])
    parts = [
        list(
            loader.eval_batches(dataset, indices, batch_size, SIZE, process_index=i, process_count=processes, pad_to=2)
        )
        for i in range(processes)
    ]
    seen = []
    for rows in zip(*parts, strict=True):
        shapes = {own["image"].shape for own in rows}
        assert len(shapes) == 1
        for own in rows:
            seen += own["index"][own["valid"]].tolist()
            for row in np.flatnonzero(own["valid"]):
                np.testing.assert_array_equal(own["image"][row], expected_image(own["index"][row]))
    assert seen == indices.tolist()
    assert len({own["image"].shape for part in parts for own in part}) == 1


def test_nothing_to_evaluate(dataset):
    assert list(loader.eval_batches(dataset, np.array([], int), 4, SIZE)) == []


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_channels_and_resizing(dataset, channels, resize):
    (batch,) = loader.eval_batches(dataset, np.arange(4), 4, SIZE, channels, resize=resize)
    assert batch["image"].shape == (4, SIZE, SIZE, channels)
    for index in range(4):
        np.testing.assert_array_equal(batch["image"][index], expected_image(index, channels, resize))


def test_multi_label_batches(tmp_path):
    dataset = open_dataset(write_dataset(tmp_path / "data", 7, multi_label=True))
    *_, last = loader.eval_batches(dataset, np.arange(7), 4, SIZE)
    assert last["label"].dtype == np.float32
    assert last["label"].tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 0]]  # the last row is padding


def test_sixteen_bits(tmp_path):
    """16-bit images stay so; an 8-bit image among them keeps its full scale."""
    changes = {1: {"image": encoded_picture(2)}}
    dataset = open_dataset(write_dataset(tmp_path / "data", 3, dtype=np.uint16, changes=changes))
    (batch,) = loader.eval_batches(dataset, np.arange(3), 3, SIZE)
    assert batch["image"].dtype == np.uint16
    np.testing.assert_array_equal(batch["image"][1], expected_image(2).astype(np.uint16) * 257)
    deep = images.resize(images.decode(encoded_picture(0, dtype=np.uint16)), SIZE)
    np.testing.assert_array_equal(batch["image"][0], deep)
    assert deep.max() > 60000


# --- Damage.


def test_a_damaged_record_stops_the_run_with_its_sentence(tmp_path):
    path = write_dataset(tmp_path / "data", N)
    shard = sorted(path.glob("*-of-00004"))[2]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    shard.write_bytes(data)
    for threads in (0, 2):
        dataset = open_dataset(path)
        with pytest.raises(UserError, match=r"record \d of shard tiny-train.tfrecord-00002-of-00004 is damaged"):
            train(dataset, threads=threads)


@pytest.mark.parametrize(("index", "length"), [(2, 60), (3, 60), (3, -100)])  # a PNG, a JPEG's header, a JPEG
def test_an_image_that_cannot_be_decoded(tmp_path, index, length):
    changes = {index: {"image": encoded_picture(index)[:length]}}
    dataset = open_dataset(write_dataset(tmp_path / "data", 5, changes=changes))
    with pytest.raises(UserError, match=f"the image of example 'cell/00{index}' .* cannot be decoded"):
        list(loader.eval_batches(dataset, np.arange(5), 5, SIZE))


# --- Caches.


def test_the_cache_in_memory_gives_the_same_batches(dataset):
    cache = loader.DecodedCache(dataset, SIZE)
    assert_equal(train(dataset, 4, cache=cache, pad_to=3), train(dataset, 4, pad_to=3))
    indices = np.arange(N)[::-1]
    expected = list(loader.eval_batches(dataset, indices, 4, SIZE))
    assert_equal(list(loader.eval_batches(dataset, indices, 4, SIZE, cache=cache)), expected)


def test_the_cache_decodes_what_is_asked_for_once(dataset, monkeypatch):
    decoded = []
    read = Decoder.read
    monkeypatch.setattr(Decoder, "read", lambda self, index, row: decoded.append(index) or read(self, index, row))
    cache = loader.DecodedCache(dataset, SIZE, threads=2)
    cache.fill(np.array([3, 4, 4]))
    assert len(decoded) == 2
    list(loader.eval_batches(dataset, np.array([4, 5]), 2, SIZE, cache=cache))
    assert len(decoded) == 3
    cache.fill()
    cache.fill()
    assert len(decoded) == N
    for index in range(N):
        np.testing.assert_array_equal(cache.array[index], expected_image(index))


def test_a_cache_of_another_size_is_refused(dataset):
    with pytest.raises(ValueError, match="the cache holds images of shape"):
        train(dataset, cache=loader.DecodedCache(dataset, SIZE + 1))
    with pytest.raises(ValueError, match="cache must be"):
        train(dataset, cache="disk")


def test_a_cache_that_does_not_fit(dataset, monkeypatch):
    needed = N * SIZE * SIZE * 3
    assert loader.DecodedCache.bytes_needed(dataset, SIZE) == needed
    monkeypatch.setattr(loader, "available_bytes", lambda: int(needed / 0.7) + 1)
    loader.DecodedCache(dataset, SIZE)
    monkeypatch.setattr(loader, "available_bytes", lambda: int(needed / 0.7) - 1)
    assert not loader.fits(needed)
    with pytest.raises(UserError, match="the decoded cache needs .* leave the cache off"):
        loader.DecodedCache(dataset, SIZE)


def test_available_memory():
    assert 2**20 < loader.available_bytes() < 2**50
    assert loader.fits(1) and not loader.fits(2**60)
    assert loader.available_cores() >= 1


def test_control_group_limits(tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "_GROUPS", tmp_path)
    monkeypatch.setattr(loader, "_OWN_GROUP", tmp_path / "own")
    assert loader.available_bytes() > 2**20  # no control groups here
    (tmp_path / "own").write_text("0::/slurm/job_7\n")
    job = tmp_path / "slurm" / "job_7"
    job.mkdir(parents=True)
    assert loader.available_bytes() > 2**20

    def limit(level, allowed):
        (level / "memory.max").write_text(f"{allowed}\n")
        (level / "memory.current").write_text("2000000\n")
        # The page cache counts as used and gives way when asked.
        (level / "memory.stat").write_text("anon 1500000\nactive_file 100000\ninactive_file 400000\n")

    limit(job, "max")
    assert loader.available_bytes() > 2**20
    limit(job.parent, 5000000)
    assert loader.available_bytes() == 3500000
    limit(job, 3000000)
    assert loader.available_bytes() == 1500000
    limit(job, 1000000)
    assert loader.available_bytes() == 0


def test_the_cache_on_the_device_leaves_the_images_out(dataset):
    for batch, expected in zip(train(dataset, 4, cache="device", pad_to=3), train(dataset, 4, pad_to=3), strict=True):
        del expected["image"]
        assert_equal([batch], [expected])


# --- The iterator.


def test_decoding_starts_before_the_first_batch_is_asked_for(dataset, monkeypatch):
    started = threading.Event()
    read = Decoder.read
    monkeypatch.setattr(Decoder, "read", lambda self, index, row: started.set() or read(self, index, row))
    batches = loader.train_batches(dataset, sampler_of(dataset), 2, 0, 4, SIZE, threads=1)
    assert started.wait(10)
    assert len(list(batches)) == 4


def test_prefetch_is_bounded_and_threads_end(dataset, monkeypatch):
    made = []
    read = Decoder.read
    monkeypatch.setattr(Decoder, "read", lambda self, index, row: made.append(index) or read(self, index, row))
    before = set(threading.enumerate())
    batches = loader.train_batches(dataset, sampler_of(dataset), 5, 0, 1000, SIZE, threads=2, prefetch=3)
    for _ in range(4):
        next(batches)
    assert len(made) <= 5 * (4 + 3 + 1)
    batches.close()
    own = set(threading.enumerate()) - before
    for thread in own:
        thread.join(10)
    assert own and not any(thread.is_alive() for thread in own)


def test_stage_keeps_batches_ahead():
    placed = []
    staged = loader.stage(range(6), lambda item: placed.append(item) or -item, depth=2)
    assert next(staged) == 0 and placed == [0, 1, 2]
    assert next(staged) == -1 and placed == [0, 1, 2, 3]
    assert list(staged) == [-2, -3, -4, -5]
    assert list(loader.stage([], lambda item: item)) == []
    assert list(loader.stage([1], lambda item: item, depth=0)) == [1]


def test_other_c_libraries_are_left_alone(monkeypatch):
    decoding.keep_freed_memory.cache_clear()
    monkeypatch.setattr(decoding.ctypes, "CDLL", lambda name: object())  # one without mallopt
    decoding.keep_freed_memory()
    decoding.keep_freed_memory.cache_clear()


def test_the_buffer_for_jpegs_grows_and_stays_out_of_line(dataset):
    decoder = Decoder(dataset, SIZE, None, "stretch")
    for size in (100, 5000, 70):
        buffer = decoder._buffer(size)
        assert len(buffer) >= size and buffer.ctypes.data % 64 == 16
    assert len(buffer) == 5000
