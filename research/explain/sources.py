"""Which images are explained: those of a role, a CSV of ids or a folder of files, and where do regions come from?"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from input_pipeline import images as image_files
from input_pipeline import masks
from input_pipeline.cli import UserError
from input_pipeline.dataset import Dataset
from input_pipeline.images import BadImage
from input_pipeline.loader import eval_batches
from input_pipeline.splits import ROLES
from input_pipeline.studies import csv_rows
from input_pipeline.studies.manifest import is_image_name
from research.training.build import Trial, build_drawing

_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Images:
    """N images that can be read as a model's network sees them before normalisation.

    Attributes:
      ids: N strings.
      groups: N strings: images that are not independent (patients).
      labels: int32 `[N]`, -1 for unknown, or multi-hot float32 `[N, K]`.
      known: bool `[N]`, whether the label is.
      read: from rows to images `[n, S, S, C]`, uint8 or uint16 as stored, or the pictures of vectors, float32 0..255.
      role: where all are of one role, else "".
      read_regions: from rows to bool `[n, S, S]`, or None without regions.
    """

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    labels: np.ndarray
    known: np.ndarray
    read: Callable[[np.ndarray], np.ndarray]
    role: str = ""
    read_regions: Callable[[np.ndarray], np.ndarray] | None = None


def open_images(trial: Trial, spec: str, regions: str = "") -> Images:
    """Opens what `--images` and `--regions` name.

    Args:
      trial: gives data set, image size, channels and way of resizing; as `opening.attached` gives it.
      spec: a role, a CSV file with a column `id` (of the data set's ids), or a folder of image files.
      regions: folder of masks, named like the ids with any image suffix; "" for the data set's own segmentation.

    Raises:
      UserError: nothing of that name, no image in it, unknown ids, no mask that fits.
    """
    path = pathlib.Path(spec)
    if spec in ROLES:
        indices, role = trial.dataset.indices(spec), spec
        if not len(indices):
            raise UserError(f"no image of {trial.dataset.directory} has the role {spec}; choose another for --images.")
        found = _of_dataset(trial, indices, role)
    elif path.is_dir():
        if trial.dataset.genes:
            raise UserError(f"--images={spec} is a folder, but this model takes vectors of genes; name a role.")
        found = _of_folder(trial, path)
    elif path.is_file():
        found = _of_dataset(trial, _listed(trial.dataset, path), "")
    else:
        raise UserError(f"--images={spec} is neither a role ({', '.join(ROLES)}) nor a CSV file nor a folder.")
    if not regions:
        return found
    return dataclasses.replace(found, read_regions=_masks(trial, found.ids, pathlib.Path(regions)))


def by_ids(trial: Trial, ids: Sequence[str]) -> np.ndarray:
    """The raw images `[n, S, S, C]` of the data set with these ids, in this order."""
    position = {str(name): index for index, name in enumerate(trial.dataset.ids)}
    return _of_dataset(trial, np.array([position[name] for name in ids]), "").read(np.arange(len(ids)))


def _of_dataset(trial: Trial, indices: np.ndarray, role: str) -> Images:
    dataset, draw = trial.dataset, build_drawing(trial)

    def load(rows: np.ndarray, key: str, segmentation: bool) -> np.ndarray:
        batches = eval_batches(
            dataset, indices[rows], _BATCH, trial.config.image_size, trial.channels,
            threads=trial.threads, resize=trial.config.data.resize, segmentation=segmentation,
        )  # fmt: skip
        shown = draw if draw is not None and key == "image" else np.asarray
        return np.concatenate([np.asarray(shown(batch[key]))[batch["valid"]] for batch in batches])

    own = dataset.labels[indices]
    known = dataset.roles[indices] != "unlabelled" if dataset.multi_label else own >= 0
    segmented = (lambda rows: load(rows, "segmentation", True) > 0) if dataset.segmentation_classes else None
    ids, groups = tuple(map(str, dataset.ids[indices])), tuple(map(str, dataset.groups[indices]))
    return Images(ids, groups, own, known, lambda rows: load(rows, "image", False), role, segmented)


@dataclasses.dataclass(frozen=True)
class _OneFile:
    """What `csv_rows.read_rows` asks of a source; a `RawSource` would walk through the whole folder."""

    path: pathlib.Path

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


def _listed(dataset: Dataset, file: pathlib.Path) -> np.ndarray:
    """The data set's indices of the column `id` of a CSV file, in the file's order, each once."""
    position = {name: index for index, name in enumerate(dataset.ids)}
    found: dict[int, None] = {}
    for row in csv_rows.read_rows(_OneFile(file.parent), file.name, ["id"]):
        name = row.cells["id"]
        name = name if name in position else name.removeprefix("'")  # the guard of our own CSV files
        if name not in position:
            raise UserError(
                f"{file}, line {row.line}: the data set {dataset.directory} has no image {name!r}; correct the id."
            )
        found[position[name]] = None
    return np.array(list(found), np.int64)


def _of_folder(trial: Trial, folder: pathlib.Path) -> Images:
    """Every image file below a folder, by relative path, without labels; each is its own group."""
    names = _image_names(folder)
    if not names:
        raise UserError(f"{folder} holds no image file; name another folder for --images.")
    size, method, dtype = trial.config.image_size, trial.config.data.resize, trial.dataset.dtype

    def read(rows: np.ndarray) -> np.ndarray:
        out = np.zeros((len(rows), size, size, trial.channels), dtype)
        for place, row in enumerate(rows):
            file = folder / names[row]
            try:
                admitted = image_files.admit(file.read_bytes())
                image = admitted.image
                if image.shape[2] != trial.channels:
                    image = image_files.decode(image_files.encode_png(image), trial.channels)
            except BadImage as error:
                raise UserError(f"{file} cannot be used ({error}); replace it or take it out of the folder.") from error
            image = image_files.resize(image, size, method)
            if image.dtype != dtype:  # full scale stays full scale, as in `input_pipeline.decoding`
                image = image * np.uint16(257) if dtype == np.uint16 else (image >> 8).astype(np.uint8)
            out[place] = image
        return out

    if trial.dataset.multi_label:
        labels = np.zeros((len(names), trial.num_classes), np.float32)
    else:
        labels = np.full(len(names), -1, np.int32)
    return Images(tuple(names), tuple(names), labels, np.zeros(len(names), bool), read)


def _image_names(folder: pathlib.Path) -> list[str]:
    files = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    return sorted(name for name in files if is_image_name(name))


def _masks(trial: Trial, ids: tuple[str, ...], folder: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    """Reads the masks of images; an image without one has an empty region."""
    if not folder.is_dir():
        raise UserError(f"--regions={folder} is no folder; name one that holds a mask for each image.")
    names = _image_names(folder)
    by_path = {str(pathlib.PurePosixPath(name).with_suffix("")): name for name in names}
    by_stem = {pathlib.PurePosixPath(name).stem: name for name in names}
    paths = [pathlib.PurePosixPath(name) for name in ids]
    # Ids may lack a suffix, or hold a dot that begins none.
    files = [
        by_path.get(str(path)) or by_path.get(str(path.with_suffix(""))) or by_stem.get(path.name)
        or by_stem.get(path.stem) for path in paths
    ]  # fmt: skip
    if not any(files):
        raise UserError(
            f"{folder} holds no mask for any of {len(ids)} images; a mask is named like its image's id, such as "
            f"{paths[0].with_suffix('.png')}."
        )
    size, method = trial.config.image_size, trial.config.data.resize

    def read(rows: np.ndarray) -> np.ndarray:
        out = np.zeros((len(rows), size, size), bool)
        for place, row in enumerate(rows):
            if files[row] is None:
                continue
            try:
                image = image_files.admit((folder / files[row]).read_bytes()).image
            except BadImage as error:
                raise UserError(f"the mask {folder / files[row]} cannot be used ({error}); replace it.") from error
            plane = masks.foreground(image, *image.shape[:2]).astype(np.uint8)
            out[place] = masks.resize(plane, size, method) > 0
        return out

    return read
