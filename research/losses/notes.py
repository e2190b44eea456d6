"""What must a reader of a comparison of losses know about them, where formulas coincide or originals went wrong?

The originals are those of study 3: Rajaraman et al. 2021 (PLOS ONE 16(12), e0261307) and its code.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from research.losses.registry import parameters

Setting = tuple[str, Mapping[str, Any]]  # config.loss.name and config.loss.options

_BY_NAME = {
    "kl_divergence": (
        "KL divergence: on one-hot targets it equals the cross-entropy, and on smoothed ones it differs by a constant; "
        "the gradients are the same, so a gap between the two is the noise of training."
    ),
    "categorical_hinge": (
        "Categorical hinge: on probabilities 1 + max p_j - p_t is never negative, so max(0, ·) does nothing; the loss "
        "has no flat part, is at most 2, and its gradient fades where an answer is certain and wrong."
    ),
    "ldam": (
        "LDAM: its paper normalises features and last layer, so that logits are cosines; with an ordinary last layer "
        "its scale acts as a temperature, and uncalibrated probabilities are too uncertain."
    ),
    "logit_adjusted": (
        "Logit adjustment: its probabilities suit a test set in which all classes are equally frequent, so they are "
        "miscalibrated at the data's own frequencies."
    ),
}

_BY_OPTION = {
    "entropy_weight": (
        "Entropy regulariser: β H(p) is subtracted, which rewards doubt; the original's regulariser returned nothing, "
        "so that its loss was plain cross-entropy, and its sign would have rewarded certainty."
    ),
    "dca_weight": (
        "Calibration term: the accuracy is a constant of the gradient, and class weights act on the first term only; "
        "the original's losses over a batch were not class-weighted at all."
    ),
}

_SMOOTHED_FOCAL = (
    "Label-smoothed focal loss: targets get ε / K; the original added ε / 2, so that three classes summed to 1 + ε / 2."
)


def notes(settings: Sequence[Setting], num_classes: int) -> list[str]:
    """One sentence for each thing that holds for `settings`; equal losses come first.

    Args:
        settings: name and options of each loss that is compared, as in the config.
        num_classes: K >= 2.
    """
    found = [
        f"{_words(group)} minimise one function: their differences are the noise of training."
        for group in equal_gradients(settings)
    ]
    found += [text for name, text in _BY_NAME.items() if any(name == chosen for chosen, _ in settings)]
    found += [text for option, text in _BY_OPTION.items() if any(options.get(option) for _, options in settings)]
    for name, options in settings:
        if beta := options.get("entropy_weight"):
            limit = best_probability(beta, num_classes)
            found.append(
                f"Entropy regulariser with β = {beta:g} and {num_classes} classes: even an example that is fitted "
                f"perfectly gets a probability of {limit:.3g}; compare its calibration after temperature scaling."
            )
        if name == "focal_categorical" and options.get("label_smoothing"):
            found.append(_SMOOTHED_FOCAL)
    return list(dict.fromkeys(found))


def best_probability(entropy_weight: float, num_classes: int) -> float:
    """The p of the true class that minimises `-log p - β H`, the others being equal.

    At the minimum `log p - log((1 - p) / (K - 1)) = 1 / (β p)`: the left side rises with p, the right side falls.
    """
    low, high = 1.0 / num_classes, 1.0 - 1e-12
    for _ in range(60):
        middle = (low + high) / 2
        rises = math.log(middle * (num_classes - 1) / (1.0 - middle)) > 1.0 / (entropy_weight * middle)
        low, high = (low, middle) if rises else (middle, high)
    return high


def equal_gradients(settings: Sequence[Setting]) -> list[list[Setting]]:
    """Groups of two or more of `settings` whose gradients are equal on one-hot targets, in the given order.

    A setting that is given twice, for several seeds, counts once.
    """
    groups: dict[Any, list[Setting]] = {}
    for name, options in settings:
        group = groups.setdefault(_canonical(name, options), [])
        if (name, dict(options)) not in group:
            group.append((name, dict(options)))
    return [group for group in groups.values() if len(group) > 1]


def _canonical(name: str, options: Mapping[str, Any]) -> tuple[str, frozenset]:
    """The simplest loss with the same gradients, and all its options."""
    values = {key: parameter.default for key, parameter in parameters(name).items()} | dict(options)
    if name == "asymmetric_categorical" and values["label_smoothing"] == 0:
        values["gamma"], values["alpha"] = values.pop("gamma_positive"), 1.0
        del values["gamma_negative"]
        name = "focal_categorical"
    if name == "focal_categorical" and (values["gamma"], values["alpha"]) == (0, 1):
        del values["gamma"], values["alpha"]
        name = "softmax_cross_entropy"
    if name == "logit_adjusted" and values["tau"] == 0:
        del values["tau"]
        name = "softmax_cross_entropy"
    if name == "kl_divergence":
        name = "softmax_cross_entropy"
    if name == "softmax_cross_entropy":
        values.setdefault("entropy_weight", 0.0)
    return name, frozenset((key, float(value)) for key, value in values.items() if value is not None)


def _words(group: Sequence[Setting]) -> str:
    """`a, b (gamma 0) and c` of a group of settings."""
    texts = [
        name + (f" ({', '.join(f'{key} {value:g}' for key, value in options.items())})" if options else "")
        for name, options in group
    ]
    return f"{', '.join(texts[:-1])} and {texts[-1]}"
