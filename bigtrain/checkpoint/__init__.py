"""Checkpoints: written complete or not at all, verified, found, and read by any number of ranks and any engine.

`folder` (the run folder and its lock), `find` and `commands` need no torch; `save`, `load` and `diff` do.
"""
