"""The model: tokens in; logits, attention scores and new keys and values out.

`weights` is the pytree of parameters, `kv_cache` what a text so far has left behind, `attention_mask` who sees whom,
`attention` the three ways to look, `rope` how queries and keys are turned by their positions, `transformer` the forward
pass of them all. A new family of models is a switch here.

Nothing here reads a file, draws a token, or knows what is done with the logits.
"""
