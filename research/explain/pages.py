"""What does a reader see of the explanations? Wrong and right cases with their maps, and how far to trust them."""

from collections.abc import Mapping, Sequence

from input_pipeline.tabular import format_number
from research.explain.cases import Case
from research.explain.checks import RANDOM, summary
from research.explain.methods import METHODS, Options
from research.report import markup

_HEADINGS = {
    False: ("wrong", "Most confident wrong cases"),
    True: ("right", "Most confident right cases"),
    None: ("unknown", "Cases whose truth is unknown"),
}


def title_of(case: Case) -> str:
    """The lines above a case's picture."""
    truth = "unknown" if case.truth is None else " + ".join(case.truth) or "none"
    return (
        f"{case.verdict}: explained {case.name}, p = {format_number(case.probability)}\n"
        f"truth {truth}; predicted {' + '.join(case.predicted) or 'none'}\n{case.id}"
    )


def page(
    trial, request, options: Options, source, cases: Sequence[Case], files: Sequence[str], table: Sequence[Mapping],
    cascade: Sequence[Mapping], warnings: Sequence[str],
) -> str:  # fmt: skip
    """The whole page. `files` are the pictures of `cases`, relative to the page; the tables are those of `checks`."""
    names = ", ".join(METHODS[name].title for name in request.methods)
    title = f"Explanations of {trial.name}"
    head = f"<header>\n<h1>{markup.text(title)}</h1>\n"
    summary_line = f"{names} for {len(cases)} of {len(source.ids)} images of {source.role or request.images}."
    head += f'<p class="soft">{markup.text(summary_line)}</p>\n'
    head += "".join(f'<p class="warning">{markup.text(line)}</p>\n' for line in warnings)
    parts = []
    for right, (anchor, heading) in _HEADINGS.items():
        own = [(case, file) for case, file in zip(cases, files, strict=True) if case.right is right]
        if own:
            parts.append((anchor, heading, _cases(own)))
    parts.append(("faithful", "Do the maps show what the model goes by?", _faithful(table, options)))
    if cascade:
        parts.append(("random", "Do the maps depend on what was learned?", _cascade(cascade)))
    parts.append(("how", "How these pictures were made", _how(request, options)))
    links = " ".join(f'<a href="#{anchor}">{markup.text(heading)}</a>' for anchor, heading, _ in parts)
    body = "".join(f'<section id="{a}">\n<h2>{markup.text(h)}</h2>\n{text}</section>\n' for a, h, text in parts)
    return markup.document(title, f"{head}<nav>{links}</nav>\n</header>\n<main>\n{body}</main>\n")


def _cases(own: Sequence[tuple[Case, str]]) -> str:
    figures = []
    for case, file in own:
        words = markup.text(title_of(case).replace("\n", "; "))
        figures.append(
            f'<figure><img loading="lazy" src="{markup.reference(file)}" alt="{words}">'
            f"<figcaption>{words}</figcaption></figure>\n"
        )
    return f'<div class="figures">\n{"".join(figures)}</div>\n'


def _faithful(table: Sequence[Mapping], options: Options) -> str:
    rows = summary(table, options.seed)
    columns = {"method": "method", "deletion_auc": "deletion AUC (low is good)",
               "insertion_auc": "insertion AUC (high is good)", "pointing": "pointing game",
               "mass_inside": "mass inside the region", "gap": "completeness gap (median share)",
               "n": "images"}  # fmt: skip
    columns = {key: name for key, name in columns.items() if key == "method" or any(key in row for row in rows)}
    text = (
        "Deletion replaces the pixels with the largest values by the image's mean colour, insertion lets them appear "
        "in the blurred image; the area is that of the class's probability. A method that is not better than the row "
        f"“{RANDOM}” says nothing of what the model uses. Brackets: 95 % bootstrap over groups. The images "
        "were picked for their confidence, so the means hold for such images only."
    )
    shares = [row["region_share"] for row in table if row.get("region_share") is not None]
    if shares:
        text += f" The regions cover {sum(shares) / len(shares):.0%} of the images; a blind map has that mass inside."
    return f"<p>{markup.text(text)}</p>\n" + markup.table(columns, rows, "Means over the images (faithfulness.csv).")


def _cascade(cascade: Sequence[Mapping]) -> str:
    text = (
        "The modules get random weights one after the other, from the logits down to the image, and the maps are "
        "compared with those of the trained network. They should become different: a map that keeps its ranks and its "
        "structure (SSIM near 1) draws the image, not the model's reasons."
    )
    columns = {"method": "method", "random_modules": "random modules", "random_from": "down to",
               "rank_correlation": "rank correlation", "rank_correlation_absolute": "of absolute values",
               "ssim": "SSIM", "images": "images with ranks"}  # fmt: skip
    rows = [dict(row) | {"method": METHODS[row["method"]].title} for row in cascade]
    return f"<p>{markup.text(text)}</p>\n" + markup.table(columns, rows, "Means over the images (randomization.csv).")


def _how(request, options: Options) -> str:
    lines = [
        "Maps are of the logit of the explained class. Grad-CAM, Grad-CAM++ and Score-CAM show where the layer speaks "
        "for the class; integrated gradients and occlusion are signed: red for the class, blue against it.",
        "Every map has its own scale, which its colour bar gives; the largest 0.5 % of the values share a colour.",
        "faithfulness.csv has the figures of every image, maps/ the raw maps joined by id (numpy.load).",
    ]
    settings = {"layer": options.layer or None, "baseline": options.baseline, "steps": options.steps,
                "samples": options.samples, "noise": options.noise, "window": options.window or "an eighth of the side",
                "stride": options.stride or "half of the window", "curve steps": options.curve_steps,
                "seed": options.seed}  # fmt: skip
    if not options.layer:
        settings.pop("layer")
    text = "".join(f"<p>{markup.text(line)}</p>\n" for line in lines)
    return text + f"<pre>{markup.text(request.command)}</pre>\n" + markup.pairs(settings)
