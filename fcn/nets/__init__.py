"""Nets of the paper, built from a resolved configuration."""

from fcn.nets.fcn import FCN
from fcn.nets.trunks import CHANNELS

__all__ = ["CHANNELS", "FCN", "build"]


def build(net: dict, classes: dict[str, int]) -> FCN:
    """The FCN of a resolved net configuration (``fcn.spec``), for label set -> its classes."""
    return FCN(net, classes)
