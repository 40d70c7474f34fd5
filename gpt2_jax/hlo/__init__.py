"""Reads the text of compiled programs: instructions, bytes moved, collectives, kinds of work.

It knows XLA's text format and nothing of the other packages. The plan (`scale/`), profiles
(`train/profiling/`) and `benchmarks.traffic` use it.
"""
