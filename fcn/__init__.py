"""A reproduction benchmark of Fully Convolutional Networks for Semantic Segmentation."""

import os

# Images come in many sizes, and oneDNN prepares its kernels for each; its own 1024 places are
# fewer than a net's layers times a data set's sizes. Read when torch first uses the library.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "65536")

__version__ = "0.1.0"
