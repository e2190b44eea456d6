"""TFRecord files: format, index, random access, and every kind of damage."""

import concurrent.futures
import json
import os
import pickle
import struct

import google_crc32c
import numpy as np
import pytest

from input_pipeline import records
from input_pipeline.cli import UserError
from input_pipeline.example_proto import decode_example, encode_example, parse_example

PAYLOADS = [[b"", b"one"], [b"x" * 1000, b"\0" * 3, bytes(range(256))]]
FLAT = [payload for shard in PAYLOADS for payload in shard]


def shard_name(shard: int) -> str:
    return f"tiny-train.tfrecord-{shard:05d}-of-00002"


@pytest.fixture
def directory(tmp_path):
    for shard, payloads in enumerate(PAYLOADS):
        with records.RecordWriter(tmp_path / shard_name(shard)) as writer:
            for payload in payloads:
                writer.write(payload)
    records.write_index(tmp_path)
    return tmp_path


def flip(path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(data)


# --- The format, against independent implementations.


def test_crc_is_tensorflows_masked_crc():
    # CRC-32C check value (RFC 3720, appendix B.4): 32 bytes of zeros give 0x8a9136aa.
    assert google_crc32c.value(b"\0" * 32) == 0x8A9136AA
    crc = 0x8A9136AA
    assert records.masked_crc32c(b"\0" * 32) == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32


def test_bytes_of_a_record(tmp_path):
    path = tmp_path / shard_name(0)
    with records.RecordWriter(path) as writer:
        writer.write(b"hello")
    # What tf.io.TFRecordWriter of TensorFlow 2.21.0 writes for the one record "hello".
    assert path.read_bytes() == bytes.fromhex("0500000000000000eab2043e68656c6c6fbb1f1c19")


def test_grain_reads_what_was_written(directory):
    grain = pytest.importorskip("grain")
    for shard, payloads in enumerate(PAYLOADS):
        assert list(grain.experimental.TFRecordIterDataset(str(directory / shard_name(shard)))) == payloads


def test_index_is_dalis(directory):
    assert (directory / f"{shard_name(0)}.idx").read_text() == "0 16\n16 19\n"
    manifest = json.loads((directory / "records.json").read_text())
    assert [entry["records"] for entry in manifest["shards"].values()] == [2, 3]
    assert manifest["shards"][shard_name(0)]["bytes"] == (directory / shard_name(0)).stat().st_size == 35


# --- Writing.


def test_an_unfinished_shard_has_no_name(tmp_path):
    with pytest.raises(KeyboardInterrupt), records.RecordWriter(tmp_path / shard_name(0)) as writer:
        writer.write(b"half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_index_of_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match="holds no"):
        records.write_index(tmp_path)


# --- Reading.


def test_random_access_over_shards(directory):
    source = records.RecordSource(directory)
    assert len(source) == 5
    for index in (4, 0, 3, 1, 2, 2):
        assert source[index] == FLAT[index]
    assert source[np.int64(3)] == FLAT[3]
    for index in (-1, 5):
        with pytest.raises(IndexError):
            source[index]
    source.verify()


def test_threads_and_pickling(directory):
    source = records.RecordSource(directory)
    order = np.random.default_rng(0).integers(0, 5, 500)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.__getitem__, order)) == [FLAT[index] for index in order]
    copy = pickle.loads(pickle.dumps(source))
    assert [copy[index] for index in range(5)] == FLAT


def test_open_files_are_closed(directory):
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    if before is None:
        pytest.skip("needs /proc")
    for _ in range(3):
        source = records.RecordSource(directory)
        source[0], source[4]
        del source
    assert len(os.listdir("/proc/self/fd")) == before


# --- Damage.


def test_every_flipped_bit_is_detected(directory):
    """Each bit of a shard: length, checksum of the length, payload, checksum of the payload."""
    path = directory / shard_name(0)
    original = path.read_bytes()
    for bit in range(8 * len(original)):
        flip(path, bit)
        source = records.RecordSource(directory)
        damaged = 0 if bit // 8 < 16 else 1
        with pytest.raises(UserError, match=f"record {damaged} of shard {shard_name(0)} is damaged"):
            source[damaged]
        assert source[1 - damaged] == FLAT[1 - damaged]
        with pytest.raises(UserError, match=f"record {damaged} of shard {shard_name(0)}"):
            source.verify()
        path.write_bytes(original)


def test_an_absurd_length_is_not_allocated(directory):
    """A length of 2^62 under a correct checksum: neither indexing nor reading believes it."""
    path = directory / shard_name(0)
    length = struct.pack("<Q", 2**62)
    path.write_bytes(length + struct.pack("<I", records.masked_crc32c(length)) + path.read_bytes()[12:])
    with pytest.raises(UserError, match="the file ends inside it"):
        records.write_index(directory)
    with pytest.raises(UserError, match="its length is not the one in the index"):
        records.RecordSource(directory)[0]


@pytest.mark.parametrize("cut", [1, 15, 16, 20])
def test_a_truncated_shard_cannot_be_indexed(directory, cut):
    path = directory / shard_name(0)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(UserError, match=f"of shard {shard_name(0)} is damaged"):
        records.write_index(directory)
    with pytest.raises(UserError, match=f"{shard_name(0)} has {35 - cut} bytes but its index was made for 35"):
        records.RecordSource(directory)


def test_a_shard_cut_while_open(directory):
    source = records.RecordSource(directory)
    path = directory / shard_name(1)
    os.truncate(path, path.stat().st_size - 5)
    with pytest.raises(UserError, match=f"record 2 of shard {shard_name(1)} is damaged"):
        source[4]


def test_missing_files(directory):
    shard, index = directory / shard_name(1), directory / f"{shard_name(1)}.idx"
    content = index.read_bytes()
    index.unlink()
    with pytest.raises(UserError, match=r"the index .*00001-of-00002.idx is missing.*input_pipeline.prepare"):
        records.RecordSource(directory)
    index.write_bytes(content)
    shard.unlink()
    with pytest.raises(UserError, match=r"shard .*00001-of-00002 is missing.*input_pipeline.prepare"):
        records.RecordSource(directory)
    (directory / "records.json").unlink()
    with pytest.raises(UserError, match="no records.json"):
        records.RecordSource(directory)


def test_an_unlisted_shard(directory):
    (directory / "tiny-validation.tfrecord-00000-of-00001").write_bytes(b"")
    with pytest.raises(UserError, match="tiny-validation.tfrecord-00000-of-00001 is not in records.json"):
        records.RecordSource(directory)


@pytest.mark.parametrize(
    "index",
    [
        "0 19\n19 16\n",
        "0 16\n",
        "0 16\n16 19\n35 16\n",
        "16 19\n0 16\n",
        "0 35\n0 0\n",
        "0 x\n16 19\n",
        f"0 {10**30}\n",
        "",
    ],
)
def test_a_stale_index(directory, index):
    (directory / f"{shard_name(0)}.idx").write_text(index)
    if index == "0 19\n19 16\n":
        # It covers the shard, but its records begin elsewhere: found when one is read.
        with pytest.raises(UserError, match=f"record 0 of shard {shard_name(0)} is damaged"):
            records.RecordSource(directory)[0]
        return
    with pytest.raises(UserError, match=r"index .*00000-of-00002.idx is stale or damaged"):
        records.RecordSource(directory)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"shards": {}}', '{"shards": {"../x": {"bytes": 1}}}', '{"shards": 3}']
)
def test_a_broken_manifest(directory, content):
    (directory / "records.json").write_text(content)
    with pytest.raises(UserError, match="records.json is unreadable or lists no shards"):
        records.RecordSource(directory)


def test_another_shard_of_equal_shape_is_found_by_verify(directory):
    with records.RecordWriter(directory / shard_name(0)) as writer:
        writer.write(b"")
        writer.write(b"two")
    source = records.RecordSource(directory)
    assert source[1] == b"two"
    with pytest.raises(UserError, match="is not the one that was indexed"):
        source.verify()


# --- tf.train.Example.

FEATURES = {"image": b"\x89PNG", "label": [3, 0, -(2**63)], "none": [], "rate": 0.5, "names": [b"a", b""], "size": 48}


def test_example_round_trip():
    decoded = decode_example(encode_example(FEATURES))
    assert decoded == {
        "image": [b"\x89PNG"],
        "label": [3, 0, -(2**63)],
        "none": [],
        "rate": [0.5],
        "names": [b"a", b""],
        "size": [48],
    }
    assert list(decoded) == sorted(decoded)


def test_example_bytes_do_not_depend_on_order():
    assert encode_example(FEATURES) == encode_example(dict(reversed(FEATURES.items())))


def test_example_is_tensorflows():
    reference = pytest.importorskip("tensorflow_datasets.proto.tf_example_generated_pb2")
    example = reference.Example.FromString(encode_example(FEATURES))
    assert example.features.feature["names"].bytes_list.value == [b"a", b""]
    assert example.features.feature["label"].int64_list.value == [3, 0, -(2**63)]
    assert example.features.feature["rate"].float_list.value == [0.5]
    assert decode_example(example.SerializeToString()) == decode_example(encode_example(FEATURES))


@pytest.mark.parametrize("value", ["text", [b"a", 1], [None]])
def test_example_refuses_other_types(value):
    with pytest.raises(TypeError):
        encode_example({"feature": value})


def test_example_refuses_wide_integers():
    with pytest.raises(ValueError, match="64 bits"):
        encode_example({"label": 2**63})


def test_bytes_that_are_no_example():
    with pytest.raises(UserError, match="holds no tf.train.Example"):
        parse_example(b"\xff\xff\xff")
