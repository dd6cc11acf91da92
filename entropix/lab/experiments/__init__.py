"""Samplers or numbers over prompts and seeds: planned, generated in batches, kept, summarised."""
