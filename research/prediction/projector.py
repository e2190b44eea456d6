"""How do features get into TensorBoard's projector?"""

import pathlib
import shutil
import tempfile
from collections.abc import Sequence

import cv2
import numpy as np

from input_pipeline.normalize import GREATEST
from input_pipeline.raw import printable
from research.prediction.batches import Batch
from research.training import build

PICTURES = 2000  # at most: the browser loads them as one sheet
_SIDE = 64  # of a picture in the sheet, in pixels: 45 of them are 2,880, and browsers take 8,192


class Projector:
    """Collects features, names and small pictures.

    Args:
      model: research.prediction.model.Model. count: inputs that will come.
    """

    def __init__(self, model, count: int) -> None:
        draw = build.build_drawing(model.trial)
        self._draw = draw if draw is not None else np.asarray
        self._wanted = count <= PICTURES and (model.looks or bool(model.genes))
        self._features: list[np.ndarray] = []
        self._names: list[tuple[str, str]] = []
        self._pictures: list[np.ndarray] = []

    def add(
        self, batch: Batch, features: np.ndarray, ids: Sequence[str], labels: Sequence[str], errors: dict[int, str]
    ) -> None:
        """Takes the usable rows of a batch; `ids` begin with those of the batch."""
        usable = [row for row in range(batch.count) if row not in errors]
        self._features.append(features[usable])
        self._names += [(printable(ids[row]), labels[row]) for row in usable]
        if self._wanted and usable:
            greatest = GREATEST.get(batch.arrays["image"].dtype, 255)
            images = np.asarray(self._draw(batch.arrays["image"]), np.float32)
            self._pictures += [_small(images[row] / greatest) for row in usable]

    def write(self, logdir: pathlib.Path) -> pathlib.Path:
        """Writes the projector's files into `logdir`, in place of those of an earlier call; returns the folder."""
        from tensorboardX import SummaryWriter

        logdir.mkdir(exist_ok=True)
        pictures = np.stack(self._pictures).transpose(0, 3, 1, 2) if self._pictures else None
        with tempfile.TemporaryDirectory(dir=logdir, prefix=".projector-") as scratch:
            with SummaryWriter(scratch, write_to_disk=True) as writer:
                writer.add_embedding(
                    np.concatenate(self._features), self._names, pictures, tag="features",
                    metadata_header=["id", "label"],
                )  # fmt: skip
            shutil.rmtree(logdir / "00000", ignore_errors=True)
            (pathlib.Path(scratch) / "00000").replace(logdir / "00000")
            (pathlib.Path(scratch) / "projector_config.pbtxt").replace(logdir / "projector_config.pbtxt")
        return logdir


def _small(image: np.ndarray) -> np.ndarray:
    """`[H, W, C]` in 0..1 as float32 `[64, 64, 3]`, the first three channels, or one as grey."""
    image = image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1)
    return cv2.resize(np.ascontiguousarray(image, np.float32), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
