"""What is in a prepared dataset? `python -m input_pipeline.describe DATASET [--out=DIR] [--images=N]`

Prints one summary and writes its tables (CSV) and pictures (PNG): label and label-set distribution, co-occurrence,
roles, groups of duplicates, image sizes, intensities, examples. Labels, roles and groups are those of all examples;
sizes and intensities are read from N images spread evenly over the dataset (the summary says how many). Of vectors of
gene expression it draws the distribution of values by role and the samples on their first two principal components.
"""

import argparse
import collections
import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from input_pipeline import cli, images, label_counts, plotting
from input_pipeline.dataset import Dataset, open_dataset
from input_pipeline.label_counts import (
    count_label_sets,
    count_labels,
    count_pairs,
    label_matrix,
    label_names,
    roles_present,
)
from input_pipeline.tabular import format_number, write_csv

_FILES_LISTED = 20
_CLASSES_SHOWN = 20
_GROUPS_SHOWN = 10
_COLUMNS = 6


@dataclasses.dataclass(frozen=True)
class Survey:
    """What was seen in the images themselves.

    Attributes:
        sizes: (format, width, height, channels, bit depth) -> number of images.
        histogram: int64 `[C, L]`, pixels of each channel at each of the L levels (256, or 65,536 for 16 bits).
        means: float64 `[n, C]`, mean level of each channel of each image.
    """

    sizes: dict[tuple[str, int, int, int, int], int]
    histogram: np.ndarray
    means: np.ndarray


def group_rows(dataset: Dataset) -> list[dict[str, object]]:
    """One dict per group of several examples, the largest first: group, images, roles, label_sets, example ids."""
    members: dict[str, list[int]] = {}
    for index, group in enumerate(dataset.groups):
        members.setdefault(group, []).append(index)
    labels = label_matrix(dataset)
    rows = []
    for group, indices in members.items():
        if len(indices) > 1:
            labelled = [index for index in indices if dataset.roles[index] != "unlabelled"]
            rows.append(
                {
                    "group": group,
                    "images": len(indices),
                    "roles": " ".join(sorted({str(dataset.roles[index]) for index in indices})),
                    "label_sets": len({labels[index].tobytes() for index in labelled}),
                    "members": " ".join(str(dataset.ids[index]) for index in indices[:_COLUMNS]),
                }
            )
    return sorted(rows, key=lambda row: (-row["images"], str(row["group"])))


def spread(indices: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the indices, evenly spread (0: all)."""
    if most <= 0 or len(indices) <= most:
        return indices
    return indices[np.linspace(0, len(indices) - 1, most).round().astype(np.int64)]


def _decoded(dataset: Dataset, index: int) -> tuple[images.ImageInfo, np.ndarray]:
    """What the header says, and the image `[H, W, C]`."""
    data = dataset.encoded(index)
    try:
        return images.probe(data), images.decode(data, dataset.channels)
    except images.BadImage as error:
        raise cli.UserError(
            f"the image of example {dataset.ids[index]} in {dataset.directory} cannot be decoded ({error}); "
            "prepare the data again with `python -m input_pipeline.prepare`."
        ) from error


def survey(dataset: Dataset, indices: Sequence[int]) -> Survey:
    """Reads and decodes the images at `indices`, one after the other (bounded memory)."""
    sizes: collections.Counter = collections.Counter()
    levels = 1 << (8 * np.dtype(dataset.dtype).itemsize)
    histogram = np.zeros((dataset.channels, levels), np.int64)
    means = np.zeros((len(indices), dataset.channels))
    for row, index in enumerate(cli.progress(indices, len(indices), "looking at images")):
        info, image = _decoded(dataset, int(index))
        sizes[(info.format, info.width, info.height, info.channels, info.bit_depth)] += 1
        for channel in range(dataset.channels):
            counts = np.bincount(image[..., channel].ravel(), minlength=levels)
            histogram[channel] += counts
            means[row, channel] = counts @ np.arange(levels) / max(counts.sum(), 1)
    return Survey(dict(sorted(sizes.items(), key=lambda item: (-item[1], item[0]))), histogram, means)


def channel_names(channels: int) -> list[str]:
    """Names of the channels as stored: grey, or red, green, blue and numbers beyond."""
    return ["grey"] if channels == 1 else [*("red", "green", "blue")[:channels], *map(str, range(4, channels + 1))]


def intensity_rows(seen: Survey) -> list[dict[str, object]]:
    """One dict per channel with exact statistics over all pixels looked at, in levels (0..255 or 0..65535)."""
    rows = []
    levels = np.arange(seen.histogram.shape[1], dtype=np.float64)
    for name, counts in zip(channel_names(len(seen.histogram)), seen.histogram, strict=True):
        total = max(int(counts.sum()), 1)
        mean = float(counts @ levels / total)
        cumulative = np.cumsum(counts)
        row = {"channel": name, "mean": mean, "std": float(np.sqrt(counts @ (levels - mean) ** 2 / total))}
        for label, share in (("minimum", 0.0), ("percentile_1", 0.01), ("median", 0.5), ("percentile_99", 0.99)):
            row[label] = int(np.searchsorted(cumulative, max(1, np.ceil(share * total))))
        row["maximum"] = int(np.flatnonzero(counts)[-1]) if counts.any() else 0
        row["share_black"], row["share_saturated"] = float(counts[0] / total), float(counts[-1] / total)
        rows.append(row)
    return rows


def write_labels(dataset: Dataset, out: pathlib.Path) -> list[str]:
    """Writes the tables and pictures of labels; returns summary lines."""
    counts, sets = count_labels(dataset), count_label_sets(dataset)
    if not sets:
        return ["labels       none: every example is unlabelled"]
    rows = []
    for index, name in enumerate(dataset.class_names):
        own = {role: int(values[index]) for role, values in counts.items()}
        rows.append({"index": index, "class": name, "images": sum(own.values()), **own})
    write_csv(out / "labels.csv", ["index", "class", "images", *counts], rows)
    set_rows = [{"label_set": label_names(dataset, key), "labels": len(key), "images": count} for key, count in sets]
    write_csv(out / "label_sets.csv", ["label_set", "labels", "images"], set_rows)
    label_counts.draw(dataset, out / "label_distribution.png")
    totals = np.array([row["images"] for row in rows])
    few, most = dataset.class_names[int(totals.argmin())], dataset.class_names[int(totals.argmax())]
    lines = [f"labels       {totals.min():,} {dataset.unit}s ({few}) to {totals.max():,} ({most}) per class"]
    if dataset.multi_label:
        pairs = count_pairs(dataset)
        pair_rows = [
            {"class": name, **dict(zip(dataset.class_names, map(int, line), strict=True))}
            for name, line in zip(dataset.class_names, pairs, strict=True)
        ]
        write_csv(out / "cooccurrence.csv", ["class", *dataset.class_names], pair_rows)
        plotting.cooccurrence(pairs, dataset.class_names, out / "cooccurrence.png")
        sizes = np.repeat([len(key) for key, _ in sets], [count for _, count in sets])
        singletons = sum(count == 1 for _, count in sets)
        lines.append(
            f"label sets   {len(sets)} different, {singletons} of them on a single image (singletons); "
            f"{sizes.mean():.2f} labels per image, at most {sizes.max()}"
        )
    return lines


def write_roles(dataset: Dataset, out: pathlib.Path) -> list[str]:
    """Writes the tables and pictures of roles and groups; returns summary lines."""
    rows = []
    for role in roles_present(dataset):
        chosen = dataset.roles == role
        rows.append({"role": role, "images": int(chosen.sum()), "groups": len(set(dataset.groups[chosen]))})
    write_csv(out / "roles.csv", ["role", "images", "groups"], rows)
    lines = ["roles        " + ", ".join(f"{row['role']} {row['images']:,}" for row in rows)]
    if np.any(dataset.folds >= 0):
        sizes = np.bincount(dataset.folds[dataset.folds >= 0])
        lines.append(f"folds        {len(sizes)} of {', '.join(f'{size:,}' for size in sizes)} {dataset.unit}s")
    groups = group_rows(dataset)
    write_csv(out / "groups.csv", ["group", "images", "roles", "label_sets", "members"], groups)
    total = len(set(dataset.groups))
    unit, shared = dataset.unit, f"one {dataset.unit} each"
    if groups:
        members = sum(row["images"] for row in groups)
        shared = f"of which {len(groups):,} hold several {unit}s ({members:,} {unit}s in all; "
        shared += f"the largest has {groups[0]['images']:,})"
    lines.append(f"groups       {total:,}, {shared}")
    crossing = sum(len(set(row["roles"].split()) - {"unlabelled"}) > 1 for row in groups)
    disagreeing = sum(row["label_sets"] > 1 for row in groups)
    if crossing:
        lines.append(f"WARNING      groups that lie in several labelled roles: {crossing:,}; this split is leaky")
    if disagreeing:
        lines.append(f"note         groups whose {unit}s differ in their labels: {disagreeing:,} (see groups.csv)")
    if groups:
        sizes = np.array([row["images"] for row in groups] + [1] * (total - len(groups)))
        _plot_group_sizes(sizes, out / "duplicates.png")
    return lines


def write_images(dataset: Dataset, out: pathlib.Path, most: int) -> list[str]:
    """Writes the tables and pictures of sizes and intensities; returns summary lines."""
    chosen = spread(np.arange(len(dataset)), most)
    seen = survey(dataset, chosen)
    keys = ("format", "width", "height", "channels", "bit_depth")
    rows = [{**dict(zip(keys, key, strict=True)), "images": count} for key, count in seen.sizes.items()]
    write_csv(out / "sizes.csv", [*keys, "images"], rows)
    _plot_sizes(rows, out / "sizes.png")
    statistics = intensity_rows(seen)
    write_csv(out / "intensities.csv", list(statistics[0]), statistics)
    _plot_intensities(seen, out / "intensities.png")
    share = "all" if len(chosen) == len(dataset) else f"{len(chosen):,} of {len(dataset):,}"
    first = rows[0]
    size = f"{first['width']} x {first['height']} {first['format']}"
    sizes = size if len(rows) == 1 else f"{len(rows):,} kinds, most often {size} ({first['images']:,} images)"
    values = ", ".join(f"{row['channel']} {row['mean']:.1f} ± {row['std']:.1f}" for row in statistics)
    return [
        f"sizes        {sizes} ({share} images looked at)",
        f"intensity    {values} (mean ± standard deviation of pixels, 0 to {seen.histogram.shape[1] - 1:,})",
    ]


def write_expression(dataset: Dataset, out: pathlib.Path, most: int) -> list[str]:
    """Draws values by role, and samples on the two principal components of `train`; returns a summary line."""
    chosen = spread(np.arange(len(dataset)), most)
    values = np.stack([dataset.vector(int(i)) for i in cli.progress(chosen, len(chosen), "reading vectors")])
    train = dataset.roles[chosen] == "train"
    train |= train.sum() < 2
    centred = values - values[train].mean(axis=0)  # below, samples are multiplied because genes are many more
    directions = centred[train].T @ np.linalg.eigh(centred[train] @ centred[train].T)[1][:, :-3:-1]
    points = centred @ (directions / np.maximum(np.linalg.norm(directions, axis=0), 1e-9))
    bounds = values.min(), values.max()
    with plotting.figure(out / "expression.png", 10, 4) as canvas:
        left, right = canvas.subplots(1, 2)
        for k, role in enumerate(roles_present(dataset)):
            own = values[dataset.roles[chosen] == role].ravel()
            style = {"color": plotting.COLOURS[k], "linestyle": plotting.DASHES[k % 4]}
            left.hist(own, 64, range=bounds, density=True, histtype="step", label=role, **style)
        for k, (name, own) in enumerate(zip(dataset.class_names, label_matrix(dataset)[chosen].T, strict=True)):
            style = {"color": plotting.COLOURS[k % 7], "marker": plotting.MARKERS[(k + k // 7) % 7]}
            right.scatter(*points[own].T, 12, label=plotting.shorten(name), **style)
        left.set(title="Values", xlabel="expression (log2)", ylabel="density")
        right.set(title="Samples on the principal components of train", xlabel="first", ylabel="second")
        left.legend()
        right.legend(loc="center left", bbox_to_anchor=(1, 0.5), ncols=1 + len(dataset.class_names) // 17)
    share = "all" if len(chosen) == len(dataset) else f"{len(chosen):,} of {len(dataset):,}"
    text = f"{values.mean():.2f} ± {values.std():.2f}, {bounds[0]:.2f} to {bounds[1]:.2f} ({share} samples looked at)"
    return [f"expression   {len(dataset.genes):,} genes, values {text}"]


def _plot_sizes(rows: list[dict[str, object]], path: pathlib.Path) -> None:
    """Few kinds of images by name, many as histograms of width and height."""
    repeats = [row["images"] for row in rows]
    if len(rows) <= _FILES_LISTED:
        names = [f"{row['width']} × {row['height']} {row['format']}, {row['channels']} × {row['bit_depth']} bits"
                 for row in rows]  # fmt: skip
        plotting.bars(names, repeats, path, "images", "Sizes of images (pixels)")
        return
    panels = []
    for side in ("width", "height"):
        heights, edges = np.histogram(np.repeat([row[side] for row in rows], repeats), bins=24)
        panels.append((f"Image {side}", {"images": (edges, heights)}))
    plotting.histogram(panels, path, ["width (pixels)", "height (pixels)"], "images")


def _plot_group_sizes(sizes: np.ndarray, path: pathlib.Path) -> None:
    """How many groups have how many images; sizes over 40 need a logarithmic axis."""
    top = int(sizes.max())
    edges = np.arange(1, top + 2) if top <= 40 else np.unique(np.geomspace(1, top + 1, 24).round())
    heights = np.histogram(sizes, edges - 0.5)[0]
    panel = ("Groups of duplicates", {"groups": (edges - 0.5, heights)})
    plotting.histogram([panel], path, ["images in the group"], "groups", log="y" if top <= 40 else "xy")


def _plot_intensities(seen: Survey, path: pathlib.Path) -> None:
    levels = seen.histogram.shape[1]
    edges = np.linspace(0, levels, 65)
    names = channel_names(len(seen.histogram))
    colours = {"red": plotting.VERMILLION, "green": plotting.GREEN, "blue": plotting.BLUE}
    pixels = {
        name: (edges, counts.reshape(64, -1).sum(axis=1) / max(counts.sum(), 1))
        for name, counts in zip(names, seen.histogram, strict=True)
    }
    means = {
        name: (edges, np.histogram(column, edges)[0] / len(column))
        for name, column in zip(names, seen.means.T, strict=True)
    }
    plotting.histogram(
        [("Pixels", pixels), ("Mean of each image", means)], path,
        [f"intensity (0 to {levels - 1:,})", f"mean intensity (0 to {levels - 1:,})"], "share", colours=colours,
    )  # fmt: skip


def write_examples(dataset: Dataset, out: pathlib.Path) -> None:
    """Writes a montage with a row of examples per class, and one with a row per group of duplicates."""
    labels = label_matrix(dataset)
    totals = labels.sum(axis=0)
    classes = sorted(np.argsort(-totals, kind="stable")[:_CLASSES_SHOWN].tolist())
    rows = [(dataset.class_names[index], np.flatnonzero(labels[:, index])) for index in classes if totals[index]]
    rows = rows or [("unlabelled", np.arange(len(dataset)))]
    rest = f" (the {len(rows)} most frequent classes)" if len(rows) < len(dataset.class_names) else ""
    _montage(dataset, rows, out / "examples.png", f"Examples of {dataset.name}{rest}", others=True)
    groups = group_rows(dataset)
    if groups:
        shown = [groups[row] for row in spread(np.arange(len(groups)), _GROUPS_SHOWN)]
        rows = [(f"{row['images']} images", np.flatnonzero(dataset.groups == row["group"])) for row in shown]
        title = f"{len(rows)} of {len(groups):,} groups of duplicates, from the largest to the smallest"
        _montage(dataset, rows, out / "duplicates_examples.png", title, others=False)


def _montage(dataset: Dataset, rows: list, path: pathlib.Path, title: str, others: bool) -> None:
    """`rows`: (name, indices to spread over the row). `others` writes an example's other labels under it."""
    labels = label_matrix(dataset)
    pictures, captions = [], []
    for name, indices in rows:
        chosen = spread(indices, _COLUMNS)
        for index in chosen:
            pictures.append(_decoded(dataset, int(index))[1])
            more = [dataset.class_names[k] for k in np.flatnonzero(labels[index]) if dataset.class_names[k] != name]
            text = "+ " + ", ".join(more) if others and more else ""
            caption = plotting.shorten(dataset.ids[index], 22)
            captions.append(f"{caption}\n{plotting.shorten(text, 22)}" if dataset.multi_label and others else caption)
        pictures += [None] * (_COLUMNS - len(chosen))
        captions += [""] * (_COLUMNS - len(chosen))
    plotting.montage(pictures, captions, path, _COLUMNS, title, [name for name, _ in rows])


def describe(dataset: Dataset, out: str | os.PathLike, most: int) -> str:
    """Writes all tables and pictures of a dataset into `out` and returns the summary, also written there.

    Args:
        dataset: as `open_dataset` gives it.
        out: folder to write; created.
        most: images (or vectors) to read; 0 for all.
    """
    if not len(dataset):
        raise cli.UserError(f"{dataset.directory} holds no example; prepare it from images with labels.")
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    kind = f"several labels per {dataset.unit}" if dataset.multi_label else f"one label per {dataset.unit}"
    lines = [
        f"{dataset.name}: {format_number(len(dataset))} {dataset.unit}s, {len(dataset.class_names)} classes, {kind}, "
        f"{dataset.channels} channels of {np.dtype(dataset.dtype).name}"
    ]
    origin = "samples were drawn, not sequenced" if dataset.genes else "images were rendered, not photographed"
    lines += [f"SIMULATED    these {origin}"] if dataset.simulated else []
    lines += write_roles(dataset, out) + write_labels(dataset, out)
    if dataset.genes:
        lines += write_expression(dataset, out, most)
    else:
        lines += write_images(dataset, out, most)
        write_examples(dataset, out)
    summary = "\n".join(lines) + "\n"
    cli.atomic_write(out / "summary.txt", summary)
    return summary


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line, describes, prints."""
    parser = argparse.ArgumentParser(prog="python -m input_pipeline.describe", description=__doc__.split("\n")[0])
    parser.add_argument("dataset", help="folder written by input_pipeline.prepare, or tfds:NAME[@DATA_DIR]")
    parser.add_argument("--out", help="folder for tables and pictures (default: the dataset's name + -description)")
    parser.add_argument("--images", type=int, default=2000, help="images read for sizes and intensities; 0 = all")
    options = parser.parse_args(argv)
    if options.images < 0:
        raise cli.UserError(f"--images={options.images} is negative; give a number of images, or 0 for all.")
    dataset = open_dataset(options.dataset)
    # Beside the dataset, never inside: its folder stays what prepare wrote.
    named = dataset.name if options.dataset.startswith("tfds:") else pathlib.Path(options.dataset).resolve()
    out = options.out or f"{named}-description"
    print(describe(dataset, out, options.images), end="")
    print(f"tables and pictures: {out}")


if __name__ == "__main__":
    cli.run(main)
