"""Which files show the same photograph: byte-identical, re-encoded, or rotated, mirrored and shifted copies?

Method, in five stages, none of which looks at a label:

1. Files with the same content hash are one group.
2. Candidates: for one file of each hash, the nearest neighbours by visual words and colour statistics (signatures.py).
3. Proof: each candidate pair that is not yet connected is registered with local features and its details compared
   (`signatures.compare`). Only a proven pair connects two files; similar statistics never do. So distinct photographs
   of one scene type (two chest X-rays) stay apart, and neighbours that fail cost half a millisecond each.
4. Repair: the search is repeated among the files of other groups until a round connects nothing more, because the
   nearest neighbours of a file in a large group are all in that group already.

5. Connection: pairs that overlap almost entirely connect at once. Pairs that overlap less do so best first, and only
   while one of the two groups is small. Neighbouring fields of one slide overlap too, but no pair of their copies
   overlaps entirely, whereas two halves of one large group would have such a pair.

Chaining, the danger of single linkage, is met at the proof: a connection needs features that agree on one transform
and details that correlate after it, and two different photographs are far from both (the benchmark,
tests/benchmarks/duplicates.py, measures it). Files of one photograph with two labels come out as one group.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import os
from collections.abc import Sequence

import cv2
import numpy as np

from input_pipeline.signatures import SIGNATURE, Evidence, compare, signature

__all__ = ["Clusters", "cluster", "content_hash", "signature"]

NEIGHBOURS = 8  # candidates for each file in the first search
REPAIR_NEIGHBOURS = 4  # candidates for each file among the files of other groups, in each round of repair
REPAIR_ROUNDS = 4
STATISTICS_WEIGHT = 0.1  # of the standardised statistics beside the unit vector of visual words
FULL_OVERLAP = 0.85  # of the smaller valid area: two copies of one photograph, whatever the size of their groups
SMALL_GROUP = 3  # files; a group up to this size also joins another by a pair that overlaps less
ATTEMPTS = 4  # comparisons of one group with one other group in a search; more would repeat the answer
NUM_WORDS = 512  # of the visual vocabulary
BLOCK = 1024  # rows of the distance matrix held at a time


@dataclasses.dataclass(frozen=True)
class Clusters:
    """Groups of files that show the same photograph.

    Attributes:
        groups: name of the group of each id, in the order given; the name is the first 16 characters of the smallest
            content hash in the group, so it depends neither on the order of the files nor on the number of workers.
        exact: for each id, the id of the first file (by id) with the same content hash; itself if it is that file.
        statistics: counts for the ingest report: files, groups, exact_duplicates, near_duplicates, largest_group,
            comparisons, and mixed_label_groups when labels are given.
    """

    groups: list[str]
    exact: list[str]
    statistics: dict[str, int]


def content_hash(image: np.ndarray) -> str:
    """SHA-256 of decoded pixels with their shape and type, equal for the same picture in two lossless encodings."""
    digest = hashlib.sha256(f"{image.dtype.str}{image.shape}".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


class _Forest:
    """Disjoint sets over 0..n-1; the root of a set is its smallest member, so the order of unions leaves no trace."""

    def __init__(self, n: int):
        self.parent = np.arange(n)

    def find(self, i: int) -> int:
        while self.parent[i] != i:
            self.parent[i] = self.parent[self.parent[i]]
            i = int(self.parent[i])
        return i

    def union(self, i: int, j: int) -> None:
        i, j = self.find(i), self.find(j)
        self.parent[max(i, j)] = min(i, j)

    def roots(self) -> np.ndarray:
        return np.array([self.find(i) for i in range(len(self.parent))], np.int64)


def _neighbours(vectors: np.ndarray, k: int, groups: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Nearest `k` rows of each row of float32 `[N, D]`, leaving out rows of its group: index, distance `[N, k]`.

    Places without a neighbour hold distance infinity. Memory is BLOCK x N floats.
    """
    n = len(vectors)
    k = min(k, n - 1)
    groups = np.arange(n) if groups is None else groups
    squares = (vectors**2).sum(1)
    index, distance = np.empty((n, k), np.int64), np.empty((n, k), np.float32)
    for start in range(0, n, BLOCK):
        rows = slice(start, min(n, start + BLOCK))
        block = squares[rows, None] + squares[None] - 2.0 * (vectors[rows] @ vectors.T)
        block[groups[rows, None] == groups[None]] = np.inf
        nearest = np.argpartition(block, k - 1, axis=1)[:, :k]
        values = np.take_along_axis(block, nearest, axis=1)
        order = np.argsort(values, axis=1, kind="stable")
        index[rows] = np.take_along_axis(nearest, order, axis=1)
        distance[rows] = np.take_along_axis(values, order, axis=1)
    return index, distance


class _Search:
    """The state of the search over one file of each content hash: what is connected, what has been compared."""

    def __init__(self, signatures: np.ndarray, workers: int):
        self.signatures = signatures
        self.forest = _Forest(len(signatures))
        self.compared: set[tuple[int, int]] = set()
        self.proven: list[tuple[float, int, int]] = []
        self.workers = workers

    def rounds(self, index: np.ndarray, distance: np.ndarray) -> int:
        """Compares candidates, nearest rank first; returns how many pairs were proven."""
        before = len(self.proven)
        failures: collections.Counter[tuple[int, int]] = collections.Counter()
        for rank in range(index.shape[1]):
            roots = self.forest.roots()
            pairs: set[tuple[int, int]] = set()
            planned: collections.Counter[tuple[int, int]] = collections.Counter()
            for i in np.flatnonzero(np.isfinite(distance[:, rank])):
                j = int(index[i, rank])
                pair = (min(int(i), j), max(int(i), j))
                between = (min(roots[i], roots[j]), max(roots[i], roots[j]))
                if between[0] == between[1] or pair in self.compared or pair in pairs:
                    continue
                if failures[between] + planned[between] < ATTEMPTS:
                    planned[between] += 1
                    pairs.add(pair)
            failures.update(planned)
            self._prove(sorted(pairs))
        return len(self.proven) - before

    def _compare(self, pair: tuple[int, int]) -> Evidence:
        return compare(self.signatures[pair[0]], self.signatures[pair[1]])

    def _prove(self, pairs: list[tuple[int, int]]) -> None:
        with concurrent.futures.ThreadPoolExecutor(self.workers) as pool:
            evidence = pool.map(self._compare, pairs)
            for pair, found in zip(pairs, evidence, strict=True):
                self.compared.add(pair)
                if found.same_photograph:
                    self.proven.append((-found.overlap, *pair))
                    if found.overlap >= FULL_OVERLAP:
                        self.forest.union(*pair)

    def connect(self) -> np.ndarray:
        """Joins small groups by the pairs that overlap less, best first; returns the root of each file `[N]`."""
        sizes = collections.Counter(self.forest.roots().tolist())
        for _, i, j in sorted(self.proven):
            first, second = self.forest.find(i), self.forest.find(j)
            if first != second and min(sizes[first], sizes[second]) <= SMALL_GROUP:
                self.forest.union(first, second)
                sizes[min(first, second)] = sizes[first] + sizes[second]
        return self.forest.roots()


def _standardise(statistics: np.ndarray) -> np.ndarray:
    """Statistics `[N, D]` in units of the spread between the first and the last tenth of the images."""
    spread = np.quantile(statistics, [0.1, 0.9], axis=0)
    return statistics / np.maximum(spread[1] - spread[0], 1.0)


def _words(signatures: np.ndarray, workers: int) -> np.ndarray:
    """How often each of NUM_WORDS typical descriptors occurs: float32 `[N, NUM_WORDS]`, rows of unit length.

    A bag of visual words (Sivic and Zisserman, ICCV 2003) with inverse document frequency and square-root counts. The
    descriptors of the image and of its mirror image are counted together, so that a mirrored copy has the same bag.
    """
    holders = np.flatnonzero(signatures["count"] > 0)
    bags = np.zeros((len(signatures), NUM_WORDS), np.float32)
    if not len(holders):
        return bags
    # The vocabulary is a sample of the descriptors themselves, spread evenly over images and over feature ranks.
    chosen = holders[np.linspace(0, len(holders) - 1, NUM_WORDS).astype(np.int64)]
    rank = (np.arange(NUM_WORDS) * 7919) % signatures["count"][chosen]
    vocabulary = signatures["descriptors"][chosen, rank]

    def count_words(i: int) -> None:
        count = int(signatures["count"][i])
        both = np.concatenate([signatures["descriptors"][i, :count], signatures["mirrored"][i, :count]])
        _, nearest = cv2.batchDistance(both, vocabulary, cv2.CV_32S, normType=cv2.NORM_HAMMING, K=1)
        bags[i] = np.bincount(nearest[:, 0], minlength=NUM_WORDS)

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        list(pool.map(count_words, holders))
    frequency = (bags > 0).sum(0) / len(signatures)
    bags = np.sqrt(bags) * np.log(1.0 / np.maximum(frequency, 1.0 / len(signatures))).astype(np.float32)
    return bags / np.maximum(np.linalg.norm(bags, axis=1, keepdims=True), 1e-6)


def _near(signatures: np.ndarray, workers: int) -> tuple[np.ndarray, int]:
    """Root of each signature `[N]` and the number of comparisons."""
    search = _Search(signatures, workers)
    if len(signatures) < 2:
        return search.forest.roots(), 0
    statistics = STATISTICS_WEIGHT * _standardise(signatures["statistics"])
    vectors = np.concatenate([statistics, _words(signatures, workers)], axis=1)
    search.rounds(*_neighbours(vectors, NEIGHBOURS))
    for _ in range(REPAIR_ROUNDS):
        if not search.rounds(*_neighbours(vectors, REPAIR_NEIGHBOURS, search.forest.roots())):
            break
    return search.connect(), len(search.compared)


def cluster(
    ids: Sequence[str],
    labels: Sequence | None,
    content_hashes: Sequence[str],
    signatures: np.ndarray | None,
    workers: int | None = None,
) -> Clusters:
    """Groups files by photograph.

    Args:
        ids: N unique names.
        labels: N labels of any hashable kind (None = unknown), used for the statistics only, never for grouping.
        content_hashes: N hashes of the content; equal hashes mean identical files.
        signatures: `[N]` of dtype `SIGNATURE`, or None to group exact duplicates only.
        workers: threads; the result does not depend on it.

    Raises:
        ValueError: when the lengths differ or an id occurs twice.
    """
    n = len(ids)
    if len(set(ids)) != n or len(content_hashes) != n or (signatures is not None and len(signatures) != n):
        raise ValueError("cluster needs unique ids and as many hashes and signatures as ids")
    order = sorted(range(n), key=lambda i: ids[i])
    first: dict[str, int] = {}
    for i in order:
        first.setdefault(content_hashes[i], i)
    # Sorted by content, so that neither names nor order can change which pairs are compared.
    representatives = [first[key] for key in sorted(first)]
    roots, comparisons = np.arange(len(representatives)), 0
    if signatures is not None:
        stacked = np.stack([signatures[i] for i in representatives]) if n else np.zeros(0, SIGNATURE)
        roots, comparisons = _near(stacked, workers or os.cpu_count() or 1)
    keys = sorted(first)
    names = {key: keys[root][:16] for key, root in zip(keys, roots, strict=True)}
    groups = [names[key] for key in content_hashes]
    sizes = np.unique(groups, return_counts=True)[1] if n else np.zeros(1, int)
    statistics = {
        "files": n,
        "groups": len(set(groups)),
        "exact_duplicates": n - len(first),
        "near_duplicates": len(first) - len(set(groups)),
        "largest_group": int(sizes.max()),
        "comparisons": comparisons,
    }
    if labels is not None:
        seen: dict[str, set] = {}
        for group, label in zip(groups, labels, strict=True):
            seen.setdefault(group, set()).update([] if label is None else [label])
        statistics["mixed_label_groups"] = sum(len(found) > 1 for found in seen.values())
    return Clusters(groups, [ids[first[key]] for key in content_hashes], statistics)
