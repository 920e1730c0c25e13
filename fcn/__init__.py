"""A reproduction benchmark of Fully Convolutional Networks for Semantic Segmentation."""

__version__ = "0.1.0"
