"""Which methods are there, and how are they run over many images in batches of one size?"""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline import cli
from input_pipeline.cli import UserError
from research.explain import baselines, network
from research.explain.faithfulness import curve
from research.explain.gradcam import gradcam, gradcam_plus_plus, upsample
from research.explain.integrated_gradients import integrated_gradients
from research.explain.network import Network
from research.explain.occlusion import occlusion
from research.explain.scorecam import scorecam
from research.explain.smoothgrad import smoothgrad


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the methods.

    Attributes:
      layer: of the class activation maps; "" for the last feature map.
      baseline: of integrated gradients and occlusion, see `baselines.make`.
      steps: gradients along the path of integrated gradients.
      samples, noise: of SmoothGrad.
      window, stride: of occlusion, in pixels; 0 for an eighth of the side and half of the window.
      curve_steps: points of deletion and insertion curves, less one.
      seed: of SmoothGrad's noise, the random order of pixels, and random weights.
    """

    layer: str = ""
    baseline: str = "mean"
    steps: int = 64
    samples: int = 32
    noise: float = 0.15
    window: int = 0
    stride: int = 0
    curve_steps: int = 32
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of explanation.

    Attributes:
      title: for people.
      run: (network, images, targets, baseline, keys, options) to raw maps `[B, h, w]` and a completeness gap `[B]` or
        None.
      uses_layer: whether it is about a layer, otherwise about the image.
      signed: whether negative values speak against the class; otherwise maps are not negative.
      unit: of the values.
    """

    title: str
    run: Callable[..., tuple[jax.Array, jax.Array | None]]
    uses_layer: bool
    signed: bool
    unit: str


def _of_layer(function):
    return lambda net, images, targets, baseline, keys, options: (function(net, images, targets, options.layer), None)


def _integrated_gradients(net, images, targets, baseline, keys, options):
    attributions, gap = integrated_gradients(net, images, targets, baseline, options.steps)
    return jnp.sum(attributions, axis=-1), gap  # the sum over the channels keeps completeness


def _smoothgrad(net, images, targets, baseline, keys, options):
    gradients = smoothgrad(net, images, targets, keys, options.samples, options.noise)
    return jnp.sum(jnp.abs(gradients), axis=-1), None  # sensitivity: the direction of a change does not matter


def _occlusion(net, images, targets, baseline, keys, options):
    return occlusion(net, images, targets, baseline, *occlusion_window(options, min(images.shape[1:3]))), None


METHODS = {
    "gradcam": Method("Grad-CAM", _of_layer(gradcam), True, False, "logit"),
    "gradcam++": Method("Grad-CAM++", _of_layer(gradcam_plus_plus), True, False, "relative"),
    "scorecam": Method("Score-CAM", _of_layer(scorecam), True, False, "relative"),
    "integrated_gradients": Method("Integrated gradients", _integrated_gradients, False, True, "logit"),
    "smoothgrad": Method("SmoothGrad", _smoothgrad, False, False, "logit per unit"),
    "occlusion": Method("Occlusion", _occlusion, False, True, "logit"),
}

_FEW = 20  # layers that a message lists
_OF_INPUT_GRADIENTS = ("integrated_gradients", "smoothgrad")


def occlusion_window(options: Options, side: int) -> tuple[int, int]:
    """(window, stride) in pixels of images of this side.

    Raises:
      UserError: they do not fit the image, or leave pixels uncovered.
    """
    window = options.window or max(1, side // 8)
    stride = options.stride or max(1, window // 2)
    if not 1 <= stride <= window <= side:
        raise UserError(
            f"occlusion with --window={window} and --stride={stride} is impossible on images of {side} pixels; give a "
            "stride of 1 up to the window, and a window up to the image."
        )
    return window, stride


def check(names: Sequence[str], net: Network, shape: tuple[int, ...], options: Options) -> Options:
    """The options with the layer settled.

    Args:
      names: of `METHODS`.
      shape: of a batch of images, `(B, H, W, C)`.

    Raises:
      UserError: an unknown method or layer, a layer that no method uses, or a model without a layer that suits.
    """
    if strangers := [name for name in names if name not in METHODS] or (["(none)"] if not names else []):
        raise UserError(f"--method={strangers[0]} is unknown; choose of {', '.join(METHODS)}.")
    if options.baseline not in baselines.KINDS:
        raise UserError(f"--baseline={options.baseline} is unknown; choose of {', '.join(baselines.KINDS)}.")
    abstract = jax.ShapeDtypeStruct(shape, jnp.float32)
    if len(jax.eval_shape(lambda net, images: net.logits(images), net, abstract).shape) != 2:
        raise UserError("this model decides about pixels, not about images; name a trial that classifies.")
    if "occlusion" in names:
        occlusion_window(options, min(shape[1:3]))
    with_layer = [name for name in names if METHODS[name].uses_layer]
    if not with_layer:
        if options.layer:
            suited = [name for name, method in METHODS.items() if method.uses_layer]
            raise UserError(f"--layer={options.layer} is of no use to {names[0]}; only {', '.join(suited)} take one.")
        return options
    found = {layer.name: layer for layer in network.layers(net, abstract)}
    name = options.layer or network.default_layer(net, abstract)
    if not name:
        rest = [name for name, method in METHODS.items() if not method.uses_layer]
        raise UserError(
            f"{with_layer[0]} needs a feature map of more than one pixel, and this model has none; name a --layer, or "
            f"choose of {', '.join(rest)}."
        )
    if name not in found:
        raise UserError(f"there is no layer {name}; choose of {_suggested(name, found)}.")
    if found[name].shape[0] * found[name].shape[1] == 1:
        raise UserError(f"the layer {name} is one pixel large, so {with_layer[0]} has no map; name an earlier --layer.")
    return dataclasses.replace(options, layer=name)


def _suggested(name: str, found: dict[str, network.Layer]) -> str:
    """All layers, or of a deep network the feature maps and those of similar names."""
    if len(found) <= _FEW:
        return ", ".join(found)
    maps = [layer.name for layer in found.values() if layer.feature_map]
    close = difflib.get_close_matches(name, found, n=5)
    return f"{', '.join(dict.fromkeys(maps + close))}; --method=layers lists all {len(found)}"


@functools.partial(jax.jit, static_argnames=("name", "normalize", "options"))
def _run(net, raw, targets, keys, *, name, normalize, options):
    base = baselines.make(options.baseline, raw, normalize)
    return METHODS[name].run(net, normalize(raw), targets, base, keys, options)


@functools.partial(jax.jit, static_argnames=("normalize", "steps", "multi_label"))
def _curves(net, raw, targets, maps, *, normalize, steps, multi_label):
    found = {}
    for kind, base in (("deletion", "mean"), ("insertion", "blur")):
        baseline = baselines.make(base, raw, normalize)
        found[kind] = curve(
            net, normalize(raw), targets, maps, baseline, steps, multi_label, insertion=kind == "insertion"
        )
    return found


@functools.partial(jax.jit, static_argnames=("normalize",))
def _logits(net, raw, *, normalize):
    return net.logits(normalize(raw))


@dataclasses.dataclass(frozen=True)
class Explainer:
    """Runs methods over images of a network; each is compiled at its first use.

    Attributes:
      net: the network; its `extras` are those of all images that a call is given, `[N, …]`.
      normalize: from raw images (uint8, uint16, float 0..255) to what the network takes; pure.
      batch_size: images at once.
      multi_label: whether probabilities are sigmoids.
      options: see `check`, whose result this is.
      stop: called before each batch; may raise.
    """

    net: Network
    normalize: Callable[[jax.Array], jax.Array]
    batch_size: int
    multi_label: bool
    options: Options
    stop: Callable[[], None] = lambda: None

    def logits(self, images: np.ndarray) -> np.ndarray:
        """float32 `[N, K]` of raw images `[N, H, W, C]`."""
        return self._batched("logits", lambda net, raw: _logits(net, raw, normalize=self.normalize), images)

    def maps(
        self, name: str, images: np.ndarray, targets: np.ndarray, net: Network | None = None, label: str = ""
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Raw maps float32 `[N, h, w]` of a method, and the completeness gaps `[N]` where it has them.

        Args:
          name: of `METHODS`.
          images: raw, `[N, H, W, C]`.
          targets: int `[N]`, the class to explain for each.
          net: in place of the explainer's own, such as one with random weights.
          label: of the progress line.

        Raises:
          UserError: the method differentiates with respect to the image, and every derivative is zero.
        """
        key = jax.random.key(self.options.seed)
        options = self.options if METHODS[name].uses_layer else dataclasses.replace(self.options, layer="")

        def run(net, raw, own, number):
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, number)
            return _run(net, raw, own, keys, name=name, normalize=self.normalize, options=options)

        numbers = np.arange(len(images), dtype=np.int32)
        found = self._batched(label or METHODS[name].title, run, images, targets.astype(np.int32), numbers, net=net)
        if net is None and name in _OF_INPUT_GRADIENTS and not found[0].any():
            raise UserError(
                f"no gradient of this model reaches its image (a part of it rests), so {METHODS[name].title} has "
                "nothing to show; choose occlusion, or scorecam of a layer."
            )
        return found

    def curves(self, images: np.ndarray, targets: np.ndarray, maps: np.ndarray, label: str) -> dict[str, np.ndarray]:
        """Deletion (to the mean colour) and insertion (from the blurred image) curves, float32 `[N, S + 1]` each.

        Args:
          images, targets: as in `maps`.
          maps: raw, `[N, h, w]`.
        """
        steps = self.options.curve_steps

        def run(net, raw, own, ranked):
            settings = {"normalize": self.normalize, "steps": steps, "multi_label": self.multi_label}
            return _curves(net, raw, own, ranked, **settings)

        return self._batched(label, run, images, targets.astype(np.int32), enlarge(maps, *images.shape[1:3]))

    def _batched(self, label: str, run: Callable, *arrays: np.ndarray, net: Network | None = None) -> Any:
        """Runs over the leading axis in batches of one size, the last padded with its first rows; shows progress."""
        count, parts = len(arrays[0]), []
        size = min(self.batch_size, count)
        net = self.net if net is None else net

        def batches():
            for start in range(0, count, size):
                self.stop()
                rows = np.minimum(np.arange(start, start + size), count - 1)
                kept = min(size, count - start)
                # GPUs and TPUs multiply float32 with fewer digits unless told otherwise, and completeness would suffer.
                own = net.replace(extras={name: value[rows] for name, value in net.extras.items()})
                with jax.default_matmul_precision("float32"):
                    result = run(own, *(a[rows] for a in arrays))
                parts.append(jax.tree.map(lambda x, n=kept: np.asarray(x)[:n], result))
                yield from range(kept)

        for _ in cli.progress(batches(), count, label):
            pass
        return jax.tree.map(lambda *own: np.concatenate(own), *parts)


def enlarge(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """Raw maps `[N, h, w]` on the image's grid, float32 `[N, height, width]`."""
    return maps if maps.shape[1:] == (height, width) else np.asarray(upsample(jnp.asarray(maps), height, width))
