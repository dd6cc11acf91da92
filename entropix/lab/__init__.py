"""The laboratory: many generations, planned, kept, resumed and summarised.

`experiments/` runs every variant of a rule over prompts and seeds, `calibration/` fits thresholds to a model,
`comparison_page` shows what came out. An evaluation belongs here.

Nothing here decides how a token is drawn.
"""
