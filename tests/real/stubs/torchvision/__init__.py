"""Stands in for torchvision, which mmcv 1.7.2 imports, and to train and to save never uses.

There is no CPU build of torchvision for the torch that the tests are pinned to. Only the training scripts of
tests/real are started with this folder on their PYTHONPATH.
"""

__version__ = "0.0.0"
