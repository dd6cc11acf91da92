"""Chips that are not there: programs compiled for TPUs ahead of time (`ahead`), read (`hlo`), and timed on paper
(`roofline`).

Nothing here runs a program.
"""
