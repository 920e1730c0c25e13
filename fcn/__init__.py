"""A reproduction benchmark of Fully Convolutional Networks for Semantic Segmentation."""

import os

# Images come in many sizes, and oneDNN prepares its kernels for each: 20 to 110 a size, of up to
# 0.1 MB. Its own 1024 places are too few for VOC's 200 sizes; without a bound the memory grows
# with every size that comes. Read when torch first uses the library.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

__version__ = "0.1.0"
