"""From a checked configuration to the commands that start its ranks: pure, no torch.

One file a launcher; each has `commands(config, trusted) -> list[Rank]`. `supervise.py` runs what `local` builds.
"""
