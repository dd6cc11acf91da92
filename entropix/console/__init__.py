"""The screen: flags, help and errors (`cli`, `*_flags`), answers, paths, status line and chat (`terminal`, `paths`,
`chat`, `live`, `coloring`).

Nothing here computes what it shows.
"""
