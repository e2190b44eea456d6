"""How does one network look at a photo and read its caption?

    image        any family of the registry, `backbone/image`: features `[B, F]` and maps
    text         an encoder of `research.text`, `backbone/text`: features `[B, T]` and a sequence
    fusion       concat: both features side by side, then a dense layer with ReLU to `width` (none if it is 0)
                 gated: both as tanh of a dense layer to `width`, mixed unit by unit by a gate between 0 and 1 that
                 sees both features (gated multimodal unit, Arevalo et al. 2017, arXiv:1702.01992)
                 cross_attention: the cells of the last map and the words, each as a dense layer to `width`, attend to
                 each other; the mean of the cells, and the largest and the mean value of the words
    head         as in every model

A missing caption, or a modality that `modality_dropout` hides in training, is all zeros to concat, shut out by the
gate, and nothing to attend to; what is there is used alone. With an empty `image` or `text` the model has one modality,
its features are those of that part, and nothing of the fusion is there.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from input_pipeline.cli import UserError
from research.models import registry
from research.models.layers import Dense
from research.text import encoders
from research.text.layers import Attention, Encoded, LayerNorm, on_rows, pool, require_positive

NAME = "captioned"
FUSIONS = ("concat", "gated", "cross_attention")
_Maps = dict[str, jax.Array]


class Captioned(nn.Module):
    """Backbone, see the module's docstring.

    Attributes:
      image: backbone of a family, or None.
      text: encoder of `research.text.encoders`, or None.
      fusion: one of `FUSIONS`.
      width: units of the fused features, see above.
      heads: of cross attention.
      modality_dropout: probability that one modality of an example, either as likely, is hidden in training; may be
        traced. An example without a caption keeps its image.
    """

    image: nn.Module | None
    text: nn.Module | None
    fusion: str
    width: int
    heads: int
    modality_dropout: float | jax.Array

    @property
    def takes(self) -> tuple[str, ...]:
        """The entries of a batch that it is called with: "image", "caption" or both."""
        return tuple(name for name, part in (("image", self.image), ("caption", self.text)) if part is not None)

    @nn.compact
    def __call__(self, inputs: Mapping[str, jax.Array], *, train: bool, dtype: Any) -> tuple[jax.Array, _Maps]:
        """Sees `inputs["image"]` `[B, H, W, C]` and reads `inputs["caption"]`, token ids int32 `[B, L]`.

        Args:
          inputs: with the entries `takes`.
          train: whether there is dropout.
          dtype: compute type.

        Returns:
          Features float32 `[B, F]`, and the maps of the image's backbone, unchanged; none without an image.
        """
        if self.image is not None:
            features, maps = self.image(inputs["image"].astype(dtype), train=train)
        if self.text is not None:
            text = self.text(inputs["caption"], train=train, dtype=dtype)
        if self.text is None:
            return features, maps
        if self.image is None:
            return text.features, {}
        seen, read = self._present(text.mask, train)
        text = Encoded(jnp.where(read, text.features, 0.0), text.sequence, text.mask & read)
        if self.fusion == "cross_attention":
            return self._attended(list(maps.values())[-1], text, seen, read), maps
        features = jnp.where(seen, features.astype(jnp.float32), 0.0)
        if self.fusion == "gated":
            return self._gated(features.astype(dtype), text.features.astype(dtype), seen, read), maps
        joined = jnp.concatenate([features, text.features], axis=-1)
        if self.width:
            joined = nn.relu(Dense(self.width, name="joint")(joined.astype(dtype)))
        return joined.astype(jnp.float32), maps

    def _present(self, mask: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Which examples show their image and which their caption, bool `[B, 1]` each."""
        captioned = jnp.any(mask, axis=1, keepdims=True)
        rate, everywhere = self.modality_dropout, jnp.ones_like(captioned)
        if not train or (isinstance(rate, (int, float)) and rate == 0.0):
            return everywhere, captioned
        chosen, which = jax.random.split(self.make_rng("dropout"))
        hidden = jax.random.bernoulli(chosen, jnp.asarray(rate, jnp.float32), captioned.shape)
        image = jax.random.bernoulli(which, 0.5, captioned.shape)
        return ~(hidden & image & captioned), captioned & ~(hidden & ~image)

    def _gated(self, features: jax.Array, text: jax.Array, seen: jax.Array, read: jax.Array) -> jax.Array:
        both = jnp.concatenate([features, text], axis=-1)
        gate = nn.sigmoid(Dense(self.width, name="gate")(both).astype(jnp.float32))
        gate = jnp.where(seen, jnp.where(read, gate, 1.0), 0.0)
        image = jnp.tanh(Dense(self.width, name="image_unit")(features).astype(jnp.float32))
        return gate * image + (1.0 - gate) * jnp.tanh(Dense(self.width, name="text_unit")(text).astype(jnp.float32))

    def _attended(self, last_map: jax.Array, text: Encoded, seen: jax.Array, read: jax.Array) -> jax.Array:
        if text.sequence is None:
            raise UserError(
                "cross_attention needs a vector for each word, and a bag of width 0 has none; set "
                "config.model.options.text_options.width."
            )
        batch, *_, channels = last_map.shape
        cells = on_rows(Dense(self.width, name="cells"), last_map.reshape(batch, -1, channels))
        words = on_rows(Dense(self.width, name="words"), text.sequence)
        normal_cells, normal_words = LayerNorm(name="cells_norm")(cells), LayerNorm(name="words_norm")(words)
        everywhere = jnp.ones(cells.shape[:2], bool)
        to_cells = Attention(self.width, self.heads, name="words_to_cells")
        to_words = Attention(self.width, self.heads, name="cells_to_words")
        told = to_cells(normal_words, normal_cells, everywhere, train=False)
        shown = to_words(normal_cells, normal_words, text.mask, train=False)
        words = words + jnp.where(seen[..., None], told, jnp.zeros((), told.dtype))
        cells = cells + jnp.where(read[..., None], shown, jnp.zeros((), shown.dtype))
        mean = jnp.where(seen, jnp.mean(cells.astype(jnp.float32), axis=1), 0.0)
        return jnp.concatenate([mean, pool(words, text.mask)], axis=-1)


@registry.register(NAME)
def captioned(
    image: str = "efficientnet_b0",
    text: str = "bag",
    image_options: Mapping[str, Any] | None = None,
    text_options: Mapping[str, Any] | None = None,
    fusion: str = "concat",
    width: int = 256,
    heads: int = 4,
    modality_dropout: float | jax.Array = 0.0,
) -> Captioned:
    """Makes the network.

    Args:
      image: a family of the registry that classifies images, or "" for the caption alone.
      text: one of `research.text.encoders.ENCODERS`, or "" for the image alone.
      image_options: of the family.
      text_options: of the encoder, among them `vocabulary`, the number of the tokeniser's ids.
      fusion: one of `FUSIONS`.
      width, heads, modality_dropout: see `Captioned`.

    Raises:
      UserError: neither modality, an unknown part, or an impossible value.
    """
    if not image and not text:
        raise UserError("captioned needs an image, a caption or both; set config.model.options.image or .text.")
    if fusion not in FUSIONS:
        raise UserError(
            f"there is no fusion {fusion!r}; set config.model.options.fusion to one of {', '.join(FUSIONS)}."
        )
    require_positive(
        f"the fusion {fusion}", heads=heads, **({} if width == 0 and fusion == "concat" else {"width": width})
    )
    if fusion == "cross_attention" and width % heads:
        raise UserError(f"cross_attention of width {width} cannot have {heads} heads; choose a divisor of its width.")
    if isinstance(modality_dropout, (int, float)) and not 0.0 <= modality_dropout <= 1.0:
        raise UserError(f"a modality_dropout of {modality_dropout} is impossible; choose one in [0, 1].")
    return Captioned(
        _image_backbone(image, image_options or {}) if image else None,
        encoders.create(text, **(text_options or {})) if text else None,
        fusion,
        width,
        heads,
        modality_dropout,
    )


def _image_backbone(family: str, options: Mapping[str, Any]) -> nn.Module:
    entry, _ = registry.find(family)
    if entry.segments or entry.name == NAME:
        raise UserError(
            f"captioned cannot look at images with {family}; set config.model.options.image to a classifier."
        )
    return registry.backbone(family, **options)
