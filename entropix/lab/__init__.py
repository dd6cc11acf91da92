"""The laboratory: many generations, planned, kept, resumed and summarised.

`tasks/` are what can be asked and scored, `statistics/` what answers can show. `experiments/` runs every variant of a
rule over prompts and seeds, `calibration/` chooses a rule's numbers for a model, `evaluation/` runs a protocol that was
written down beforehand. `comparison_page` shows the first, `page` the other two.

Nothing here decides how a token is drawn.
"""
