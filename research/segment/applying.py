"""How does a trained segmenter go through any number of raw images, in the memory of a few?"""

import collections
import concurrent.futures
import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from input_pipeline import images, raw
from input_pipeline.boxes import Box
from input_pipeline.cli import UserError
from input_pipeline.dataset import Dataset, open_dataset
from input_pipeline.image_headers import MAX_PIXELS, BadImage
from input_pipeline.studies.manifest import is_image_name
from research.segment import rule
from research.training import build
from research.training.signals import StopSignal
from research.training.state import Flat
from research.training.steps import eval_step
from research.training.task import decide


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image as the network takes it, or why there is none.

    Attributes:
      name: its name. width, height: of the raw image, in pixels.
      image: `[S, S, C]`, or None.
      error: why it cannot be used, or an empty string.
    """

    name: str
    width: int = 0
    height: int = 0
    image: np.ndarray | None = None
    error: str = ""


class Images:
    """The image files of a folder or zip, or the examples of a prepared data set.

    Args:
      path: of the folder, the zip or the data set.

    Raises:
      UserError: there is nothing there, or no image.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._dataset: Dataset | None = None
        if (path / "splits.json").is_file():
            self._dataset = open_dataset(path)
            self.names = [str(name) for name in self._dataset.ids]
            return
        self._source = raw.open_source(path)
        self.names = [name for name in self._source.names() if is_image_name(name)]
        if not self.names:
            raise UserError(f"{path} holds no image files: give the folder or .zip of the X-rays as --source.")

    def read(self, number: int) -> bytes:
        """The encoded image; raises `raw.Unreadable` for a file that cannot be read."""
        if self._dataset is not None:
            return self._dataset.encoded(number)
        return self._source.read(self.names[number])


def decode(name: str, data: bytes, size: int, channels: int, resize: str, dtype: np.dtype) -> Picture:
    """An image as `prepare` and the loader would give it; a damaged one gives a `Picture` with an error."""
    try:
        found = images.admit(data, MAX_PIXELS)
        image = found.image if found.channels == channels else images.decode(found.data, channels)
    except (BadImage, MemoryError) as error:
        return Picture(name, error=str(error) or "does not fit into memory")
    image = images.resize(image, size, resize)
    if image.dtype != dtype:
        image = image * np.uint16(257) if dtype == np.uint16 else (image >> 8).astype(np.uint8)
    return Picture(name, found.width, found.height, image)


def pictures(source: Images, numbers: Sequence[int], trial: build.Trial, window: int) -> Iterator[Picture]:
    """Decodes the images `numbers` in threads, in order; at most `window` are in the making or waiting."""
    how = (trial.config.image_size, trial.channels, trial.config.data.resize, trial.dataset.dtype)
    waiting: collections.deque[concurrent.futures.Future | Picture] = collections.deque()

    def taken() -> Picture:
        first = waiting.popleft()
        return first if isinstance(first, Picture) else first.result()

    with concurrent.futures.ThreadPoolExecutor(trial.threads) as pool:
        for number in numbers:
            name = source.names[number]
            try:  # read here, one after the other, as an archive has one file position
                waiting.append(pool.submit(decode, name, source.read(number), *how))
            except raw.Unreadable as error:
                waiting.append(Picture(name, error=str(error)))
            if len(waiting) >= window:
                yield taken()
        while waiting:
            yield taken()


class Segmenter:
    """A trained trial's network as a function of images.

    Args:
      trial: whose model segments. variables: of its best checkpoint. batch_size: B.
    """

    def __init__(self, trial: build.Trial, variables: dict[str, Flat], batch_size: int) -> None:
        self.batch_size = batch_size
        self._variables = jax.device_put(variables)
        model, normalize = build.build_model(trial), build.build_normalize(trial)
        self._function = jax.jit(lambda variables, image: decide(eval_step(model, normalize, variables, image)))

    def __call__(self, batch: Sequence[np.ndarray]) -> np.ndarray:
        """Class numbers uint8 `[n, S, S]` of up to B images `[S, S, C]`."""
        padded = np.zeros((self.batch_size, *batch[0].shape), batch[0].dtype)
        padded[: len(batch)] = batch
        return np.asarray(self._function(self._variables, padded))[: len(batch)]


def masks(segmenter: Segmenter, found: Iterator[Picture], stop: StopSignal) -> Iterator[tuple[Picture, np.ndarray]]:
    """Each picture with its class numbers `[S, S]`; an empty array for those without an image.

    Raises:
      Stopped: a stop was asked for.
    """
    while batch := list(itertools.islice(found, segmenter.batch_size)):
        stop.check()
        usable = [picture.image for picture in batch if picture.image is not None]
        maps = iter(segmenter(usable) if usable else ())
        for picture in batch:
            yield picture, (np.zeros((0, 0), np.uint8) if picture.image is None else next(maps))


def box_of(picture: Picture, mask: np.ndarray, resize: str, margin: float) -> Box:
    """The row of a picture in the table of boxes."""
    if picture.image is None:
        return Box(picture.name, "unreadable", picture.error)
    width, height, found = picture.width, picture.height, rule.judge(mask)
    if picture.image.min() == picture.image.max():  # whatever a network makes of nothing
        found = rule.Finding("image of one brightness", None, 0.0, 0)
    corners = (0, 0, width, height)
    if found.box is not None:
        corners = rule.in_pixels(found.box, width, height, resize, margin)
    status = "whole" if found.box is None else "cropped"
    share = round(found.area_share, 4)
    return Box(picture.name, status, found.reason, width, height, *corners, share, found.components)
