"""An mlx-vlm model behind the call of an mlx-lm one: tokens and a cache in, logits out, and a way to see images.

mlx-vlm keeps the positions of the prompt it saw last in the model itself; here every call brings its own, so that rows
share a pass and none learns where another stands.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from worker.batch import batchability
from worker.batch.caches import Cache
from worker.batch.images import Features, Placeholder, PromptImages, PromptPart
from worker.engines.vision.positions import Positions


class VisualModel:
    """What the batch drives. Every method is for the engine's thread."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._language = model.language_model
        self._positioned = hasattr(self._language, "get_rope_index")
        """Whether an image takes fewer positions than tokens, in three dimensions (M-RoPE)."""

    def parameters(self) -> Any:
        """All weights, as `nn.Module` has them."""
        return self._model.parameters()

    def make_cache(self) -> Cache:
        """Return an empty cache for one row."""
        cache: Cache = make_prompt_cache(self._language)
        return [*cache, Positions()] if self._positioned else cache

    def __call__(self, tokens: mx.array, *, cache: Cache) -> mx.array:
        """Logits `[rows, tokens, vocab]` of text `[rows, tokens]` that follows what is in the cache."""
        if not self._positioned:
            return self._logits(tokens, cache)
        positions = cache[-1].next_positions(tokens.shape[1])
        return self._logits(tokens, cache[:-1], position_ids=mx.broadcast_to(positions, (3, *positions.shape)))

    def _logits(self, tokens: mx.array, cache: Cache, **more: Any) -> mx.array:
        logits: mx.array = self._language(tokens, cache=cache, **more).logits
        return logits

    def set_positions(self, images: PromptImages, tokens: list[int]) -> None:
        """Find out where the images of a prompt put its tokens."""
        if not self._positioned:
            return
        # What is behind the last image stands in a line.
        size = int(images.placeholders[-1].places[-1]) + 1
        grid = mx.array(np.concatenate([placeholder.grid for placeholder in images.placeholders]))
        positions, shift = self._language.get_rope_index(mx.array([tokens[:size]]), grid)
        images.positions = np.array(positions[:, 0], dtype=np.int64)
        images.shift = int(shift.item())

    def encode_image(self, placeholder: Placeholder) -> Features:
        """Run the vision tower over one image; the result is computed when this returns."""
        pixels = placeholder.pixels or placeholder.make_pixels()
        arrays = {name: mx.array(array) for name, array in pixels.arrays.items()}
        found = self._model.get_input_embeddings(
            mx.array([placeholder.span]), arrays.pop("pixel_values"), mask=mx.ones((1, len(placeholder.span))), **arrays
        )
        rows = found.inputs_embeds[0, mx.array(placeholder.places - placeholder.places[0])]
        features = Features(mx.contiguous(rows), tuple(found.deepstack_visual_embeds or ()))
        mx.eval(features.rows, *features.deep)
        return features

    def check_pieces(self, images: PromptImages, tokens: list[int]) -> bool:
        """Return whether a prompt with an image, computed in pieces, comes out as mlx-vlm itself has it in one.

        The image is cut in two, and what follows it is fed token by token. Judged by the middle one of the image's
        tokens and of those behind it: rounding moves some token far in any half precision, an error moves most.
        """
        placeholder = images.placeholders[0]
        pixels = placeholder.pixels or placeholder.make_pixels()
        arrays = {name: mx.array(array) for name, array in pixels.arrays.items()}
        ids = mx.array([tokens])
        whole = self._model.get_input_embeddings(ids, arrays.pop("pixel_values"), mask=mx.ones(ids.shape), **arrays)
        found = {name: value for name, value in whole.to_dict().items() if value is not None}
        expected = self._language(ids, cache=make_prompt_cache(self._language), **{**arrays, **found}).logits
        self.set_positions(images, tokens)
        placeholder.features = self.encode_image(placeholder)
        cache = self.make_cache()
        middle = int(placeholder.places[len(placeholder.places) // 2])
        first, behind = int(placeholder.places[0]), int(placeholder.places[-1]) + 1
        logits = [
            self.forward_parts(ids[:, start:end], [PromptPart(tokens[start:end], start, images)], cache=cache)
            for start, end in ((0, middle), (middle, behind))
        ]
        logits += [self(ids[:, at : at + 1], cache=cache) for at in range(behind, len(tokens))]
        off = batchability.difference(mx.concatenate(logits, axis=1)[0], expected[0])
        worst = max(mx.median(off[first:behind]).item(), mx.median(off[behind:]).item())
        return bool(worst <= batchability.TOLERANCE)

    def forward_parts(self, tokens: mx.array, parts: Sequence[PromptPart], *, cache: Cache) -> mx.array:
        """As a call, where rows show something: `parts` say which tokens of which row `tokens` are, padding apart."""
        embeddings = self._model.get_input_embeddings(tokens, None).inputs_embeds
        shown = np.zeros(tokens.shape, dtype=np.bool_)
        deep: list[tuple[Any, ...]] = []
        for index, part in enumerate(parts):
            for placeholder in part.images.placeholders if part.images else ():
                inside = (placeholder.places >= part.start) & (placeholder.places < part.start + len(part.tokens))
                if not inside.any() or placeholder.features is None:
                    continue
                places = placeholder.places[inside] - part.start
                chosen = mx.array(np.flatnonzero(inside))
                embeddings[index, mx.array(places)] = placeholder.features.rows[chosen].astype(embeddings.dtype)
                shown[index, places] = True
                deep.append(tuple(layer[chosen] for layer in placeholder.features.deep))
        more: dict[str, Any] = {}
        if deep and deep[0]:
            more["visual_pos_masks"] = mx.array(shown)
            more["deepstack_visual_embeds"] = [mx.concatenate(layers) for layers in zip(*deep, strict=True)]
        if not self._positioned:
            return self._logits(tokens, cache, inputs_embeds=embeddings, **more)
        width = tokens.shape[1]
        positions = [(part.images or PromptImages([])).positions_of(part.start, width) for part in parts]
        cache[-1].set_positions([part.start + width + (part.images.shift if part.images else 0) for part in parts])
        more["position_ids"] = mx.array(np.stack(positions, axis=1))
        return self._logits(tokens, cache[:-1], inputs_embeds=embeddings, **more)
