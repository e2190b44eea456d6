"""Small prepared data sets for tests, written record by record."""

import json
import pathlib

import numpy as np
import simplejpeg

from input_pipeline import images
from input_pipeline.example_proto import encode_example
from input_pipeline.records import RecordWriter, write_index


def picture(seed: int, height: int = 23, width: int = 31, channels: int = 3, dtype=np.uint8) -> np.ndarray:
    """A smooth random image `[height, width, channels]`, different for each seed."""
    coarse = np.random.default_rng(seed).random((4, 5, channels)).astype(np.float32)
    rows = np.linspace(0, 3, height).round().astype(int)
    columns = np.linspace(0, 4, width).round().astype(int)
    return np.ascontiguousarray(coarse[rows][:, columns] * np.iinfo(dtype).max).astype(dtype, order="C")


def encoded_picture(seed: int, channels: int = 3, dtype=np.uint8) -> bytes:
    """PNG for even seeds and for what JPEG cannot hold, JPEG for the others."""
    image = picture(seed, 20 + seed % 7, 30 - seed % 5, channels, dtype)
    if seed % 2 and channels in (1, 3) and dtype == np.uint8:
        return simplejpeg.encode_jpeg(image, 90, "GRAY" if channels == 1 else "RGB")
    return images.encode_png(image)


def write_dataset(
    directory: pathlib.Path,
    n: int = 17,
    *,
    class_names: tuple[str, ...] = ("a", "b", "c"),
    multi_label: bool = False,
    labels: list[list[int]] | None = None,
    roles: list[str] | None = None,
    captions: list[str] | None = None,
    channels: int = 3,
    dtype=np.uint8,
    changes: dict[int, dict] | None = None,
) -> pathlib.Path:
    """Writes `n` examples into shards of at most five; `changes[i]` replaces (or, with None, removes) features of i."""
    directory.mkdir(parents=True)
    classes = len(class_names)
    labels = labels or [[i % classes, (i + 1) % classes][: 1 + multi_label] for i in range(n)]
    roles = roles or ["train"] * n
    shards = -(-n // 5)
    examples = {}
    for shard in range(shards):
        name = f"tiny-train.tfrecord-{shard:05d}-of-{shards:05d}"
        with RecordWriter(directory / name) as writer:
            for i in range(5 * shard, min(n, 5 * shard + 5)):
                example_id = f"cell/{i:03d}"
                features = {
                    "image": encoded_picture(i, channels, dtype),
                    "id": example_id.encode(),
                    "label": labels[i],
                    "group": f"group {i // 2}".encode(),
                }
                if captions is not None:
                    features["caption"] = captions[i].encode()
                features.update((changes or {}).get(i, {}))
                writer.write(encode_example({key: value for key, value in features.items() if value is not None}))
                examples[example_id] = {"role": roles[i], "group": f"group {i // 2}", "label": sorted(labels[i])}
    write_index(directory)
    splits = {"seed": 0, "rule": "as given", "class_names": list(class_names), "multi_label": multi_label}
    splits |= {"study": "tiny", "simulated": False, "examples": examples}
    (directory / "splits.json").write_text(json.dumps(splits))
    dimensions = ["-1", "-1", str(channels)]
    image = {"shape": {"dimensions": dimensions}, "dtype": np.dtype(dtype).name, "encodingFormat": "png"}
    (directory / "features.json").write_text(json.dumps({"featuresDict": {"features": {"image": {"image": image}}}}))
    return directory
