"""What do the pictures of this project look like, and how are the pictures of a dataset drawn?

One style for all figures: white ground, Okabe-Ito colours (distinguishable with every kind of colour blindness; Okabe
& Ito 2008), single-hue maps whose lightness is monotonic (readable when printed in grey), names instead of indices
on the axes. Matplotlib is imported when the first figure is drawn, without pyplot: no global state, no display, safe
in threads. Equal input gives equal PNG bytes (for one Matplotlib version).
"""

import contextlib
import io
import os
import pathlib
import textwrap
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from input_pipeline import cli

DPI = 160
# Okabe-Ito, ordered so that neighbours also differ in lightness; yellow is left out (too faint on white).
BLUE, ORANGE, GREEN, SKY, VERMILLION, PURPLE = "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#CC79A7"
COLOURS = (BLUE, ORANGE, GREEN, SKY, VERMILLION, PURPLE, "#444444")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
GREY = "#6B6B6B"
GRID = "#DDDDDD"
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.labelcolor": "#222222",
    "ytick.labelcolor": "#222222",
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "hatch.linewidth": 0.6,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "text.usetex": False,
    "text.parse_math": False,
    "svg.hashsalt": "report",
}


@contextlib.contextmanager
def figure(path: str | os.PathLike, width: float = 7.0, height: float = 4.0) -> Iterator:
    """A Matplotlib figure of `width` x `height` inches in the house style, saved to `path` (PNG) at the end.

    The folder of `path` is created.

    Yields a `matplotlib.figure.Figure` with constrained layout. Nothing is written if the body raises.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        canvas = Figure(figsize=(width, height), layout="constrained")
        yield canvas
        buffer = io.BytesIO()
        canvas.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    cli.atomic_write(path, buffer.getvalue())


def wrap(name: str, width: int = 24, lines: int = 2) -> str:
    """A class name broken into at most `lines` lines of `width` characters, cut with an ellipsis beyond that."""
    wrapped = textwrap.wrap(str(name), width, max_lines=lines, placeholder="…", break_long_words=True)
    return "\n".join(wrapped) if wrapped else ""


def shorten(name: str, width: int = 26) -> str:
    """A name on one line of at most `width` characters; its end stays, since numbered names differ there."""
    name = " ".join(str(name).split())
    tail = width // 3
    return name if len(name) <= width else f"{name[: width - 1 - tail].rstrip(' ,.;')}…{name[-tail:].lstrip(' ,.;')}"


def log_scale(axis) -> None:
    """Makes an axis (`axes.xaxis` or `axes.yaxis`) logarithmic, with plain numbers at the powers of ten."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def to_rgb(image: np.ndarray) -> np.ndarray:
    """An image to look at: uint8 `[H, W, 3]` from uint8, uint16 or float (0..255) `[H, W]` or `[H, W, C]`.

    uint16 keeps its 8 high bits. One channel becomes grey; of two, the third is black; of more than three, the
    first three are shown.
    """
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.dtype == np.uint16:
        image = image >> 8
    elif image.dtype != np.uint8:
        image = np.nan_to_num(image.astype(np.float32), nan=0.0, posinf=255.0, neginf=0.0).clip(0, 255).round()
    image = image.astype(np.uint8)
    if image.shape[-1] == 1:
        return np.repeat(image, 3, axis=-1)
    if image.shape[-1] == 2:
        return np.concatenate([image, np.zeros_like(image[..., :1])], axis=-1)
    return image[..., :3]


def encode_png(image: np.ndarray) -> bytes:
    """PNG bytes of an image as `to_rgb` takes it."""
    import cv2

    done, data = cv2.imencode(".png", np.ascontiguousarray(to_rgb(image)[..., ::-1]))
    if not done:
        raise ValueError(f"OpenCV could not encode an image of shape {np.shape(image)} as PNG")
    return data.tobytes()


def barh_height(bars: int, per_bar: float = 0.24, around: float = 1.1) -> float:
    """Inches of height that `bars` horizontal bars need to stay legible."""
    return around + per_bar * max(bars, 3)


def label_distribution(
    counts: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    path: str | os.PathLike,
    label_sets: Sequence[tuple[str, int]] = (),
    multi_label: bool = False,
) -> None:
    """How many examples carry each class, stacked by role, and beside it the most frequent label sets.

    Args:
        counts: role -> examples per class `[K]`, in stacking order.
        class_names: K names.
        path: the PNG to write.
        label_sets: (names joined by " + ", number of examples), the most frequent first; [] leaves the panel out.
        multi_label: whether an example can count in several classes (said on the axis).
    """
    rows = max(len(class_names), len(label_sets))
    with figure(path, 10.0 if label_sets else 7.0, barh_height(rows)) as canvas:
        axes = canvas.subplots(1, 2 if label_sets else 1, squeeze=False)[0]
        positions = np.arange(len(class_names))
        left = np.zeros(len(class_names))
        hatches = ("", "////", "....", "xxxx", "\\\\\\\\", "++")
        for index, (role, values) in enumerate(counts.items()):
            axes[0].barh(
                positions, values, left=left, height=0.72, label=role, color=COLOURS[index % len(COLOURS)],
                hatch=hatches[index % len(hatches)], edgecolor="white", linewidth=0.4,
            )  # fmt: skip
            left = left + np.asarray(values)
        _finish_count_axis(axes[0], left, [shorten(name) for name in class_names])
        share = "an image can have several labels" if multi_label else "one label per image"
        axes[0].set_xlabel(f"images ({share})")
        axes[0].set_title("Images per class")
        if len(counts) > 1:
            canvas.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
        if label_sets:
            values = np.array([count for _, count in label_sets])
            axes[1].barh(np.arange(len(values)), values, height=0.72, color=BLUE)
            _finish_count_axis(axes[1], values, [shorten(name, 40) for name, _ in label_sets])
            axes[1].set_xlabel("images with exactly these labels")
            axes[1].set_title(f"Most frequent label sets (first {len(values)})")


def bars(names: Sequence[str], counts: Sequence[int], path: str | os.PathLike, xlabel: str, title: str) -> None:
    """Counts as horizontal bars, one per name, the first on top."""
    with figure(path, 7.0, barh_height(len(names))) as canvas:
        axes = canvas.subplots()
        axes.barh(np.arange(len(names)), counts, height=0.72, color=BLUE)
        _finish_count_axis(axes, np.asarray(counts), [shorten(name, 40) for name in names])
        axes.set(xlabel=xlabel, title=title)


def _finish_count_axis(axes, totals: np.ndarray, names: Sequence[str]) -> None:
    """Names down the side, first on top, and each bar's total at its end."""
    axes.set_yticks(np.arange(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    peak = max(float(np.max(totals, initial=0)), 1.0)
    axes.set_xlim(0, peak * 1.16)
    for position, total in enumerate(totals):
        axes.text(total + peak * 0.012, position, f"{int(total):,}", va="center", fontsize=7, color="#333333")


def heatmap(
    axes,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    texts: Sequence[Sequence[str]] | None = None,
    limit: float = 1.0,
):
    """Draws `values` `[R, C]` in 0..`limit` as shades of blue; `texts` are written when the cells are large enough.

    Returns the image artist, for a colour bar.
    """
    values = np.ma.masked_invalid(np.asarray(values, dtype=float))
    picture = axes.imshow(values, cmap="Blues", vmin=0.0, vmax=limit, aspect="equal", interpolation="nearest")
    size = 8 if len(rows) <= 20 else max(4.0, 160 / len(rows))
    axes.set_xticks(range(len(columns)), [shorten(name) for name in columns], rotation=45, ha="right",
                    rotation_mode="anchor", fontsize=size)  # fmt: skip
    axes.set_yticks(range(len(rows)), [shorten(name, 34) for name in rows], fontsize=size)
    axes.tick_params(length=0)
    axes.set_facecolor("#F1F1F1")  # cells without a value
    axes.grid(visible=False)
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#EEEEEE", linewidth=0.6, visible=True)
    axes.tick_params(which="minor", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if texts is not None and max(len(rows), len(columns)) <= 14:
        for row in range(len(rows)):
            for column in range(len(columns)):
                dark = not np.ma.is_masked(values[row, column]) and values[row, column] > 0.55 * limit
                axes.text(column, row, texts[row][column], ha="center", va="center", fontsize=6.5,
                          color="white" if dark else "#222222")  # fmt: skip
    return picture


def matrix_size(classes: int) -> tuple[float, float]:
    """Width and height in inches of a square matrix picture with names on both sides."""
    side = float(np.clip(2.2 + 0.46 * classes, 4.2, 10.5))
    return side + 0.9, side


def cooccurrence(matrix: np.ndarray, class_names: Sequence[str], path: str | os.PathLike) -> None:
    """Of the images with the row's label, the share that also have the column's label.

    Args:
        matrix: `[K, K]` counts of images that have both labels; the diagonal is the number that have the label.
        class_names: K names.
        path: the PNG to write.
    """
    matrix = np.asarray(matrix, dtype=float)
    totals = np.diag(matrix)
    share = np.divide(matrix, totals[:, None], out=np.full_like(matrix, np.nan), where=totals[:, None] > 0)
    np.fill_diagonal(share, np.nan)
    count = len(class_names)
    texts = [["" if i == j else f"{int(matrix[i, j])}" for j in range(count)] for i in range(count)]
    names = [f"{shorten(name)} ({int(total)})" for name, total in zip(class_names, totals, strict=True)]
    limit = max(float(np.nanmax(share)) if np.isfinite(share).any() else 0.0, 1e-3)
    with figure(path, *matrix_size(count)) as canvas:
        axes = canvas.subplots()
        picture = heatmap(axes, share, names, class_names, texts, limit)
        bar = canvas.colorbar(picture, ax=axes, shrink=0.75, pad=0.02)
        bar.set_label("share of the row's images")
        bar.outline.set_visible(False)
        axes.set_xlabel("also labelled")
        axes.set_ylabel("labelled (images)")
        axes.set_title("Co-occurrence of labels (cells: images with both)")


def montage(
    images: Sequence[np.ndarray],
    captions: Sequence[str],
    path: str | os.PathLike,
    columns: int = 6,
    title: str = "",
    row_names: Sequence[str] = (),
    colours: Sequence[str] = (),
    cell: float = 1.25,
) -> None:
    """A grid of images (each as `to_rgb` takes it), row by row, each over its caption.

    Args:
        images: N pictures, any sizes; None leaves the cell empty.
        captions: N short texts; a line break is kept.
        path: the PNG to write.
        columns: pictures in a row.
        title: text above the grid.
        row_names: one name per row, at its left.
        colours: N frame colours, "" for no frame.
        cell: width of a picture in inches; a caption line holds about 18 characters an inch.
    """
    columns = max(1, min(columns, len(images)))
    rows = max(1, -(-len(images) // columns))
    lines = max([text.count("\n") + 1 for text in captions if text], default=0)
    aspect = max([image.shape[0] / image.shape[1] for image in images if image is not None], default=1.0)
    height = (cell * min(aspect, 2.0) + 0.12 * lines + 0.12) * rows + (0.35 if title else 0.05)
    with figure(path, (cell + 0.06) * columns + (1.1 if row_names else 0.0), height) as canvas:
        grid = canvas.subplots(rows, columns, squeeze=False)
        for axes in grid.flat:
            axes.set(xticks=[], yticks=[])
            axes.grid(visible=False)
            for spine in axes.spines.values():
                spine.set_visible(False)
        for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
            axes = grid.flat[index]
            if image is None:
                continue
            axes.imshow(to_rgb(image), interpolation="antialiased")
            axes.set_xlabel(caption, fontsize=6.5, labelpad=2)
            if colours and colours[index]:
                for spine in axes.spines.values():
                    spine.set(visible=True, color=colours[index], linewidth=2.0)
        for axes, name in zip(grid[:, 0], row_names, strict=False):
            axes.set_ylabel(wrap(name, 16), rotation=0, ha="right", va="center", fontsize=8)
        if title:
            canvas.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")


def histogram(
    panels: Sequence[tuple[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]],
    path: str | os.PathLike,
    xlabels: Sequence[str],
    ylabel: str,
    log: str = "",
    colours: Mapping[str, str] | None = None,
) -> None:
    """Histograms beside each other, as outlines (which stay apart in grey by their dashes).

    Args:
        panels: (title, {series: (edges `[n + 1]`, heights `[n]`)}) for each panel.
        path: the PNG to write.
        xlabels: one per panel, with its unit.
        ylabel: what the heights are.
        log: the logarithmic axes, "", "y" or "xy", for counts over orders of magnitude.
        colours: series -> colour, where a series has a colour of its own.
    """
    with figure(path, 4.0 * len(panels) + 0.6, 3.1) as canvas:
        grid = canvas.subplots(1, len(panels), squeeze=False)[0]
        for axes, (title, series), xlabel in zip(grid, panels, xlabels, strict=True):
            alone = len(series) == 1
            for index, (name, (edges, heights)) in enumerate(series.items()):
                colour = (colours or {}).get(name, COLOURS[index % len(COLOURS)])
                axes.stairs(heights, edges, label=name, color=colour, linewidth=1.6, fill=alone,
                            linestyle=DASHES[index % len(DASHES)], alpha=0.85 if alone else 1.0)  # fmt: skip
            axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
            axes.margins(x=0.02)
            if "x" in log:
                log_scale(axes.xaxis)
            if "y" in log:
                log_scale(axes.yaxis)
            axes.set_ylim(bottom=0.7 if "y" in log else 0)
            if len(series) > 1:
                axes.legend()
