"""Whether a way of choosing tokens gives better answers, by a protocol that is written before: `entropix.evaluate`."""
