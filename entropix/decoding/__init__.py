"""Decoding: the loop from one token to the next, on the device (`loop`, `*_step`) and around it (`session`).

`sample_step` is the plain way: logits, metrics, rule, filters, draw, record. What is optional wraps around it from
files of its own: `speculation`, `branch_step`, `backtracking`.

What `loop` compiles, `kept_programs` keeps for later processes. Around the session `batching` lets many prompts take
turns in few rows, and turns what each row drew into events: plain records (`records`) and text (`stream_text`). All
else here knows no text: prompts are token ids.
"""
