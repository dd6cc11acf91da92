"""Drafts for speculative decoding: what followed when the text last went on like this.

A draft costs no model: text that repeats itself, as a summary, an edit or code does, is its own best guess (prompt
lookup decoding, Saxena 2023). Drafts change the speed and nothing else: a drafted token counts only where the sampler,
with that position's own logits, metrics, state and key, draws the very same one.
"""

import jax.numpy as jnp
from jax import Array

NO_TOKEN = -1  # never drawn
LONGEST_MATCH, SHORTEST_MATCH = 3, 2  # tokens at the end of the text that must have stood there before


def lookup(text_BX: Array, end_B: Array, n_draft: int) -> Array:
    """draft_BK: the n_draft tokens after the latest earlier place where the text's last tokens stand, or NO_TOKEN.

    text_BX: tokens, int32, of which row b's text is the first `end_B[b]`. Of all earlier places the one with the
    longest match counts, of equally long ones the latest. Where the text ends before the draft does, the draft goes
    round: a text that matches itself p tokens back is taken to repeat every p tokens.
    """
    slot_X = jnp.arange(text_BX.shape[1], dtype=jnp.int32)[None, :]
    last_B1 = end_B[:, None] - 1
    matches_BX = jnp.zeros_like(text_BX)
    so_far_BX = slot_X < last_B1
    for back in range(LONGEST_MATCH):
        wanted_B1 = jnp.take_along_axis(text_BX, jnp.maximum(last_B1 - back, 0), axis=1)
        there_BX = jnp.pad(text_BX, ((0, 0), (back, 0)))[:, : text_BX.shape[1]]
        so_far_BX &= (there_BX == wanted_B1) & (slot_X >= back)
        matches_BX += so_far_BX.astype(jnp.int32)
    best_B1 = jnp.max(matches_BX, axis=1, keepdims=True)
    place_B1 = jnp.max(jnp.where(matches_BX == best_B1, slot_X, -1), axis=1, keepdims=True)
    period_B1 = jnp.maximum(last_B1 - place_B1, 1)
    source_BK = place_B1 + 1 + jnp.arange(n_draft, dtype=jnp.int32)[None, :] % period_B1
    draft_BK = jnp.take_along_axis(text_BX, source_BK, axis=1, mode="clip")
    return jnp.where(best_B1 >= SHORTEST_MATCH, draft_BK, NO_TOKEN)
