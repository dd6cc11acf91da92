"""Decoding: the loop from one token to the next, on the device (`loop`, `*_step`) and around it (`session`).

`sample_step` is the plain way: logits, metrics, rule, filters, draw, record. What is optional wraps around it from
files of its own: `speculation`, `branch_step`, `backtracking`.

Nothing here knows text: prompts are token ids, and what comes out are records of arrays.
"""
