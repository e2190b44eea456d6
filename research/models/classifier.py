"""What does every model take and give?"""

import contextlib

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from input_pipeline import cli
from research.models.normalization import frozen_interceptor


@flax.struct.dataclass
class Output:
    """What a model gives for a batch.

    Attributes:
      logits: float32 `[B, K]`, or `[B, H, W, K]` of a model that segments.
      features: float32 `[B, F]`, the pooled features that the head reads; `[B, H, W, F]` of a model that segments.
      feature_maps: `[B, h, w, c]` by layer name in the compute type: the last map of each resolution, for
        class activation maps and decoders. Their order is not kept (JAX sorts the keys of a dict), their
        sizes differ. XLA drops what a caller does not use.
    """

    logits: jax.Array
    features: jax.Array
    feature_maps: dict[str, jax.Array]


class Classifier(nn.Module):
    """A backbone and a head: the paths of all variables start with `backbone/` or `head/`.

    Attributes:
      backbone: module called with images `[B, H, W, C]` and `train`; gives features `[B, F]` and feature
        maps.
      head: module called with features and `train`; gives logits `[B, K]`.
      pool: "average" for the features of the backbone itself (global average pooling, in VGG also its dense layers),
        or "max" or "flatten" (`[B, h * w * c]`) of the last feature map.
      dtype: compute type; parameters, running statistics, features and logits are float32 in any case.
      frozen: regular expressions; a BatchNorm whose module path ("backbone/layer1_0/norm1") one of them
        matches uses and keeps its running statistics in training. `model.clone(frozen=("^backbone/",))` gives
        such a model for the same variables. Stopping the gradients is the optimiser's part.
    """

    backbone: nn.Module
    head: nn.Module
    pool: str = "average"
    dtype: jnp.dtype = jnp.float32
    frozen: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, inputs: dict[str, jax.Array], *, train: bool) -> Output:
        """Classifies `inputs["image"]`, `[B, H, W, C]`, floating and normalised; other entries are ignored.

        A backbone with an attribute `takes`, names of entries, is called with a dict of these and with `dtype` instead.

        With `train=True` pass `mutable=["batch_stats"]`, and `rngs={"dropout": key}` if a dropout rate is not
        0.0.
        """
        scope = nn.intercept_methods(frozen_interceptor(self.frozen)) if self.frozen else contextlib.nullcontext()
        with scope:
            if taken := getattr(self.backbone, "takes", ()):
                given = {name: inputs[name] for name in taken}
                features, feature_maps = self.backbone(given, train=train, dtype=self.dtype)
            else:
                features, feature_maps = self.backbone(inputs["image"].astype(self.dtype), train=train)
            if taken and self.pool != "average":
                raise cli.UserError(f"head_pool {self.pool!r} would leave out the caption; set it to average.")
            if self.pool != "average":
                features = _pool(list(feature_maps.values())[-1].astype(jnp.float32), self.pool)
            logits = self.head(features, train=train)
        return Output(logits, features, feature_maps)


def _pool(feature_map: jax.Array, kind: str) -> jax.Array:
    if kind == "max":
        return jnp.max(feature_map, (1, 2))
    if kind == "flatten":
        return feature_map.reshape(feature_map.shape[0], -1)
    raise cli.UserError(f"head_pool is {kind!r}; choose average, max or flatten.")
