"""The decision, as values: which names are checkpoints, which of them stay, and why.

Pure: no disk, no clock, no log; standard library only, and Python 3.9's at most.
"""
