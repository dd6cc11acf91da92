"""The screen: flags, help and errors (`cli`), answers, status line and chat (`terminal`, `live`, `coloring`).

Nothing here computes what it shows.
"""
