"""Traces as a page to explore, and as figures for papers. `python -m entropix.report` is the command."""
