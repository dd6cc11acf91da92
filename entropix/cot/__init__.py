"""Parallel chain-of-thought decoding: several paths to an answer as one batch, and the choice among them."""
