"""What is a model-level ensemble? Feature maps of trained members side by side, and one classifier behind them.

    member k        a backbone as it was trained, without its head: its map `layer`, `[B, h, w, c]`
    merge           the maps of all members side by side, 1x1 convolution to `width`, ReLU
                    global average pool
    head            dense layer to the logits

as in Rajaraman et al. 2021 (doi 10.1371/journal.pone.0261307). Members rest: they are called as in prediction (running
statistics, no dropout), no gradient enters them, and `train=("merge", "head")` in a phase keeps decay and averages
away. `python -m research.ensemble.merge` writes their weights into one file for `config.model.weights`.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from input_pipeline.cli import UserError
from research.models import registry
from research.models.layers import Conv
from research.models.pooling import global_average_pool


class Merged(nn.Module):
    """Backbone.

    Attributes:
      members: backbones of one architecture.
      layer: name of the map that each gives; "" = its last.
      width: channels behind the merge.
    """

    members: tuple[nn.Module, ...]
    layer: str
    width: int

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Takes `[B, H, W, C]`; gives features `[B, width]`, the members' maps `member0`, … and `merge`.

        Raises:
          UserError: the members have no map of the name `layer`.
        """
        maps = {}
        for number, member in enumerate(self.members):
            _, found = member(images, train=False)
            layer = self.layer or list(found)[-1]
            if layer not in found:
                raise UserError(f"the members have no map {layer!r}; set model.options.layer to {', '.join(found)}.")
            chosen = found[layer]
            # Explanations look through the members, training does not.
            maps[f"member{number}"] = jax.lax.stop_gradient(chosen) if train else chosen
        conv = Conv(self.width, (1, 1), use_bias=True, name="merge")
        maps["merge"] = nn.relu(conv(jnp.concatenate(list(maps.values()), -1)))
        return global_average_pool(maps["merge"]), maps


@registry.register("merged", additions=("^backbone/merge$",))
def merged(
    of: str = "simple_cnn",
    members: int = 3,
    options: Mapping[str, Any] | None = None,
    layer: str = "",
    width: int = 512,
) -> Merged:
    """Options: the members' architecture, how many there are, their own options, which map, and the merged channels."""
    if members < 1 or width < 1:
        raise UserError(f"merged needs at least one member and one channel, not {members} and {width}.")
    entry, variant = registry.find(of)
    chosen = dict(options or {}) | ({"variant": variant} if variant else {})
    return Merged(tuple(entry.build(**chosen) for _ in range(members)), layer, width)
