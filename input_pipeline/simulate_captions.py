"""How can the captions study run before its 40,000 photos are downloaded? With scenes of shapes and noisy captions.

The raw layout is the contest's: `train.csv` (`ImageID,Labels,Caption`, in the original dialect, with inner quotes and
newlines that are not escaped), `test.csv` (`ImageID,Caption`) and `data/<number>.jpg` of several shapes, some of them
grey. The label sets and their frequencies are the contest's too: a person in three of four, the rarest label in one of
two hundred.

What can be known is limited on purpose. Given the labels of a scene, every label k on its own

* **is drawn** with probability `DRAWN[k]` if it holds (else it is out of sight), and `LOOKALIKE[k]` if it does not (a
  toy, a poster);
* **is named** in the caption with probability `NAMED[k]` if it holds (people do not tell everything), which is about
  how often the contest's captions name it, and `MISNAMED[k]` if it does not.

Captions name objects by synonyms of uneven frequency, among other words, some misspelt; pictures hold other shapes too.
Small, striking things are often hidden but named (cats, horses), what stands about is seen but not worth a word (cars,
benches). So no method can do better than the posterior of the labels given which shapes are drawn, given which labels
are named, or given both, cut where the expected F1 is greatest: `best_f1` computes it from these probabilities alone.
At best, image alone reaches 0.87 micro F1 (0.76 macro), text alone 0.82 (0.71), and both together 0.93 (0.87): each
misses what the other has. The bounds suppose that every shape and word is recognised, also in grey pictures.
"""

import dataclasses
import functools
import os
import pathlib
import string
from collections.abc import Sequence

import cv2
import numpy as np
import simplejpeg

from input_pipeline import scene_captions, scene_shapes, simulate
from input_pipeline.cli import progress
from input_pipeline.studies.captions import CLASS_NAMES, NUMBERS

NUM_TRAIN, NUM_TEST = 3_000, 300
"""The contest has 30,000 and 10,000."""

# Raise it with every change that changes a value: another version's folder is not mistaken for this one.
VERSION = 1

# Label sets, a letter for each category number (a = 1 person, b = 2 bicycle, ... s = 19 horse), and how many of the
# contest's 30,000 training records carry them; those of fewer than five (2.5 % of the records) are left out.
LABEL_SETS = """
a:14075 q:975 ao:876 ac:740 p:673 r:585 e:552 as:474 g:471 ai:466 ar:419 ad:409 ag:343 o:289 s:280 ach:265 af:258
ab:257 ah:250 i:218 ae:210 aq:209 m:200 j:187 k:187 acf:178 c:173 h:158 d:137 ap:135 acd:129 acj:128 f:110 cj:102
abc:100 ch:100 aco:97 aeh:91 achj:90 aj:83 acfj:79 gj:67 ak:66 b:65 cf:65 eh:65 acdh:64 chj:59 cm:59 ck:56 qr:56 cn:52
aor:51 ago:49 acfh:44 abo:42 cg:42 n:42 am:41 oq:41 abd:40 acs:40 cq:40 cr:40 acm:39 ack:36 afh:35 ceh:35 acfhj:33
agj:33 adh:32 acr:30 aio:30 ip:30 ace:29 acn:29 abcj:28 aip:28 air:28 op:28 aceh:27 cd:27 abcd:25 abr:25 cfh:25 chm:25
abcf:24 abf:24 afj:24 ce:24 abch:23 or:23 pq:23 acho:22 acg:21 afo:20 ahj:20 aop:20 ars:20 cdh:20 ahs:19 fh:19 abh:18
abj:18 cfhj:18 abchj:17 acdhj:17 achm:17 aci:17 ci:17 acdf:16 acdj:16 acfo:16 ahr:16 aqr:16 co:16 ei:16 hr:16 abi:15
acdfh:15 adf:15 acdfj:14 achn:14 an:14 cfj:14 cgh:14 chk:14 abco:13 achk:13 acjo:13 adr:13 aos:13 cs:13 io:13 abcfj:12
acdfhj:12 achr:12 achs:12 acjk:12 bq:12 cjk:12 gh:12 ir:12 abg:11 achi:11 ado:11 aho:11 apr:11 bc:11 bo:11 chjk:11
chr:11 abck:10 abcm:10 acp:10 aei:10 bd:10 chi:10 ckm:10 cp:10 dh:10 dq:10 dr:10 go:10 jm:10 abcdf:9 abcdh:9 abcdj:9
abcfh:9 abcfhj:9 ais:9 aps:9 cjm:9 rs:9 acfk:8 achjk:8 acq:8 afg:8 cgj:8 fj:8 hk:8 hm:8 jp:8 abcdfh:7 abm:7 abn:7
acfm:7 acgh:7 achp:7 adj:7 adm:7 ahk:7 ako:7 aoq:7 bf:7 bk:7 hj:7 km:7 pr:7 abor:6 acdo:6 acdr:6 acfhjo:6 acfjo:6
acfs:6 acjn:6 afi:6 agi:6 bg:6 efh:6 ej:6 hi:6 jk:6 abchs:5 abcr:5 acefh:5 acfhm:5 acfjk:5 acfjm:5 acgj:5 achkm:5
acjm:5 acjr:5 acjs:5 aefh:5 afm:5 afp:5 ags:5 ahi:5 ahm:5 bi:5 bn:5 chn:5 chp:5 cjn:5 fo:5 ps:5
"""

DRAWN = dict(zip(CLASS_NAMES, (
    0.93, 0.75, 0.90, 0.80, 0.70, 0.85, 0.80, 0.85, 0.80, 0.85, 0.70, 0.75, 0.80, 0.85, 0.60, 0.55, 0.55, 0.60,
), strict=True))  # fmt: skip
NAMED = dict(zip(CLASS_NAMES, (
    0.80, 0.50, 0.30, 0.75, 0.92, 0.72, 0.88, 0.40, 0.68, 0.30, 0.62, 0.55, 0.60, 0.40, 0.72, 0.90, 0.82, 0.88,
), strict=True))  # fmt: skip
LOOKALIKE = {name: 0.12 if name == "person" else 0.01 for name in CLASS_NAMES}
MISNAMED = {name: 0.06 if name == "person" else 0.006 for name in CLASS_NAMES}
"""Probabilities, see above."""

_LARGEST, _GREY_EVERY = 40_000, 40
_SHAPES = ((1.0, 0.75), (0.75, 1.0), (1.0, 1.0), (1.0, 0.67))
"""Height and width of pictures, relative to the longer side."""


@dataclasses.dataclass(frozen=True)
class Scenes:
    """What N scenes hold, what of it is drawn and what is named: bool `[N, 18]` in the order of `CLASS_NAMES`."""

    labels: np.ndarray
    drawn: np.ndarray
    named: np.ndarray


@functools.cache
def label_sets() -> tuple[np.ndarray, np.ndarray]:
    """The S label sets, bool `[S, 18]`, and their probabilities, float64 `[S]`."""
    pairs = [entry.split(":") for entry in LABEL_SETS.split()]
    members = np.zeros((len(pairs), len(NUMBERS)), bool)
    for row, (letters, _) in enumerate(pairs):
        members[row, [NUMBERS.index(string.ascii_lowercase.index(letter) + 1) for letter in letters]] = True
    counts = np.array([int(count) for _, count in pairs], np.float64)
    return members, counts / counts.sum()


def _column(probabilities: dict[str, float]) -> np.ndarray:
    return np.array([probabilities[name] for name in CLASS_NAMES])


def draw_scenes(count: int, rng: np.random.Generator) -> Scenes:
    """Draws `count` scenes.

    Label sets come by systematic sampling, in random order, so that even a small sample has nearly the frequencies of
    `label_sets`; what is drawn and named is independent given the labels.
    """
    members, shares = label_sets()
    points = (rng.random() + np.arange(count)) / count
    chosen = np.minimum(np.searchsorted(np.cumsum(shares), points), len(shares) - 1)
    labels = members[rng.permutation(chosen)]
    drawn = rng.random(labels.shape) < np.where(labels, _column(DRAWN), _column(LOOKALIKE))
    named = rng.random(labels.shape) < np.where(labels, _column(NAMED), _column(MISNAMED))
    return Scenes(labels, drawn, named)


def posteriors(scenes: Scenes, modality: str) -> np.ndarray:
    """The probability of every label given what is drawn ("image"), what is named ("text") or "both".

    By Bayes' rule over all label sets, from the probabilities of this module alone.

    Returns:
        float64 `[N, 18]`.

    Raises:
        ValueError: for another modality.
    """
    channels = {"image": [(scenes.drawn, DRAWN, LOOKALIKE)], "text": [(scenes.named, NAMED, MISNAMED)]}
    channels["both"] = channels["image"] + channels["text"]
    if modality not in channels:
        raise ValueError(f"unknown modality {modality!r}: choose image, text or both")
    members, shares = label_sets()
    log_probability = np.log(shares)[None]
    for seen, present, absent in channels[modality]:
        rate = np.where(members, _column(present), _column(absent))  # [S, 18]
        log_probability = log_probability + seen @ np.log(rate).T + (~seen) @ np.log1p(-rate).T
    weights = np.exp(log_probability - log_probability.max(axis=1, keepdims=True))
    return (weights / weights.sum(axis=1, keepdims=True)) @ members


def greatest_f1(probabilities: np.ndarray) -> float:
    """The F1 that the best cut of calibrated probabilities can expect, over all entries together.

    Deciding for the j most probable entries gives the expected F1 2 TP / (j + P), where TP is the sum of their
    probabilities and P that of all; no other decision by these probabilities has a greater one.
    """
    ordered = np.sort(probabilities, axis=None)[::-1]
    return float((2 * np.cumsum(ordered) / (np.arange(1, len(ordered) + 1) + ordered.sum())).max())


def best_f1(count: int = 20_000, seed: int = 0) -> dict[str, dict[str, float]]:
    """What the best of all methods can expect of "image", "text" and "both": {"micro_f1": …, "macro_f1": …} of each.

    Args:
        count: scenes drawn to average over; with 20,000 the figures are certain to about 0.002.
        seed: of the scenes.
    """
    scenes = draw_scenes(count, np.random.default_rng([seed, 3]))
    result = {}
    for modality in ("image", "text", "both"):
        probabilities = posteriors(scenes, modality)
        by_class = [greatest_f1(column) for column in probabilities.T]
        result[modality] = {"micro_f1": greatest_f1(probabilities), "macro_f1": float(np.mean(by_class))}
    return result


def _write_pictures(
    tasks: Sequence[tuple[int, tuple[str, ...]]], root: pathlib.Path, seed: int, size: int
) -> list[int]:
    """Renders and writes a chunk of (number, names of the shapes); returns the numbers."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        for number, names in tasks:
            rng = np.random.default_rng([seed, 1, number])
            height, width = (max(1, round(size * share)) for share in _SHAPES[rng.integers(len(_SHAPES))])
            picture = scene_shapes.render(names, rng, height, width)
            if number % _GREY_EVERY == _GREY_EVERY - 1:
                data = simplejpeg.encode_jpeg(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None], 92, "GRAY")
            else:
                data = simplejpeg.encode_jpeg(picture, 92, "RGB")
            (root / "data" / f"{number}.jpg").write_bytes(data)
    finally:
        cv2.setNumThreads(threads)
    return [number for number, _ in tasks]


def _names(row: np.ndarray) -> tuple[str, ...]:
    return tuple(name for name, holds in zip(CLASS_NAMES, row, strict=True) if holds)


def _label_cell(row: np.ndarray, rng: np.random.Generator) -> str:
    """The numbers of the labels; like the contest's, not always in ascending order."""
    numbers = [str(number) for number, holds in zip(NUMBERS, row, strict=True) if holds]
    return " ".join(rng.permutation(numbers) if rng.random() < 0.35 else numbers)


def captions(
    out_dir: str | os.PathLike,
    num_train: int = NUM_TRAIN,
    num_test: int = NUM_TEST,
    size: int = 128,
    seed: int = 0,
    workers: int | None = None,
) -> pathlib.Path:
    """Writes simulated raw files of the captions study, in the layout of the contest's download.

    `train.csv`, `test.csv`, `data/<number>.jpg` (RGB, every fortieth grey) and `SIMULATED.txt`. The same arguments give
    the same bytes with the same numpy, OpenCV and simplejpeg, whatever `workers` is. The folder appears when it is
    complete; one that already holds this very simulation is kept.

    Args:
        out_dir: the folder to write; absent, empty, or holding the same simulation.
        num_train: number of labelled images; their numbers begin at 0, those of the test images behind them.
        num_test: number of images without labels.
        size: the longer side in pixels; shapes are easy to tell from 96 on.
        seed: of everything drawn.
        workers: processes to render with; None = one for each core.

    Returns:
        The folder, absolute.

    Raises:
        UserError: if a number is out of range or the folder holds something else.
    """
    simulate.check(num_train, num_test, seed, _LARGEST, size=size, workers=workers)
    scenes = draw_scenes(num_train + num_test, np.random.default_rng([seed, 0]))

    def fill(folder: pathlib.Path) -> None:
        (folder / "data").mkdir()
        tables = ["ImageID,Labels,Caption\n", "ImageID,Caption\n"]
        for number, (labels, named) in enumerate(zip(scenes.labels, scenes.named, strict=True)):
            rng = np.random.default_rng([seed, 2, number])
            cell, text = _label_cell(labels, rng), scene_captions.write(_names(named), rng, number)
            if number < num_train:
                tables[0] += f'{number}.jpg,{cell},"{text}"\n'
            else:
                tables[1] += f'{number}.jpg,"{text}"\n'
        (folder / "train.csv").write_text(tables[0], "utf-8")
        (folder / "test.csv").write_text(tables[1], "utf-8")
        tasks = [(number, _names(row)) for number, row in enumerate(scenes.drawn)]
        work = functools.partial(_write_pictures, root=folder, seed=seed, size=size)
        for _ in progress(simulate.in_parallel(work, tasks, workers), len(tasks), "simulating scenes"):
            pass

    marker = (
        "The pictures and captions in this folder are simulated; nobody took or wrote them. Train and evaluate with "
        "them to try the code, never to learn about photos.\n"
        f"study=captions train={num_train} test={num_test} size={size} seed={seed} version={VERSION}\n"
    )
    return simulate.build_folder(out_dir, marker, fill)
