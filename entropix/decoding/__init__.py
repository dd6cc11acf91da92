"""Decoding: the loop from one token to the next, on the device (`loop`, `*_step`) and around it (`session`).

`sample_step` is the plain way: logits, metrics, rule, filters, draw, record. What is optional wraps around it from
files of its own: `speculation`, `branch_step`, `backtracking`.

The two large programs of `loop` are kept for later processes (`kept_programs`). Around the session `batching` lets many
prompts take turns in few rows, and turns what each row drew into events: plain records (`records`) and text
(`stream_text`). All else here reads no text: prompts are token ids.
"""
