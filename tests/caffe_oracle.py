"""The authors' nets on OpenCV's Caffe reader: a computation that shares no code with fcn/.

The net definitions are written here from the paper's facts (layer sizes, crop offsets), in Caffe's
language; OpenCV (cv2.dnn of 4.x) reads them with a .caffemodel and computes the scores. Winograd
convolution is off, because its rounding error is larger than what the tests allow.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from fcn.weights.caffemodel import Layer

VGG_BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
ALEXNET_CONVOLUTIONS = (  # name, outputs, kernel, stride, pad, groups; conv1 is padded by 100
    ("conv1", 96, 11, 4, 100, 1),
    ("conv2", 256, 5, 1, 2, 2),
    ("conv3", 384, 3, 1, 1, 1),
    ("conv4", 384, 3, 1, 1, 2),
    ("conv5", 256, 3, 1, 1, 2),
)
INCEPTION = {  # 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
CLASSES = 21


class Definition:
    """A net in Caffe's text format, built layer by layer, and random weights that fit it."""

    def __init__(self, size: tuple[int, int]) -> None:
        shape = "shape { " + " ".join(f"dim: {n}" for n in (1, 3, *size)) + " }"
        self.lines = [
            f'layer {{ name: "data" type: "Input" top: "data" input_param {{ {shape} }} }}'
        ]
        self.channels = {"data": 3}
        self.blobs: list[tuple[str, str, tuple[int, ...]]] = []  # name, type, weight shape

    def layer(self, name: str, kind: str, bottoms: Sequence[str], params: str = "", top: str = ""):
        inputs = " ".join(f'bottom: "{bottom}"' for bottom in bottoms)
        top = top or name
        self.lines.append(
            f'layer {{ name: "{name}" type: "{kind}" {inputs} top: "{top}" {params} }}'
        )
        self.channels.setdefault(top, self.channels[bottoms[0]])
        return top

    def conv(self, name, bottom, out, kernel, stride=1, pad=0, group=1, relu=True):
        self.channels[name] = out
        self.blobs.append(
            (name, "Convolution", (out, self.channels[bottom] // group, kernel, kernel))
        )
        self.layer(
            name,
            "Convolution",
            [bottom],
            f"convolution_param {{ num_output: {out} kernel_size: {kernel} stride: {stride} "
            f"pad: {pad} group: {group} }}",
        )
        if relu:
            self.layer(f"{name}_relu", "ReLU", [name], top=name)
        return name

    def pool(self, name, bottom, kernel, stride, pad=0):
        params = f"pool: MAX kernel_size: {kernel} stride: {stride} pad: {pad}"
        return self.layer(name, "Pooling", [bottom], f"pooling_param {{ {params} }}")

    def norm(self, name, bottom):
        return self.layer(
            name, "LRN", [bottom], "lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }"
        )

    def upsample(self, name, bottom, kernel, stride):
        self.blobs.append((name, "Deconvolution", (CLASSES, CLASSES, kernel, kernel)))
        return self.layer(
            name,
            "Deconvolution",
            [bottom],
            f"convolution_param {{ num_output: {CLASSES} kernel_size: {kernel} stride: {stride} "
            "bias_term: false }",
        )

    def crop(self, name, bottom, like, offset):
        return self.layer(
            name, "Crop", [bottom, like], f"crop_param {{ axis: 2 offset: {offset} }}"
        )

    def add(self, name, first, second):
        return self.layer(name, "Eltwise", [first, second], "eltwise_param { operation: SUM }")

    def scale(self, name, bottom):
        self.blobs.append((name, "Scale", (self.channels[bottom],)))
        return self.layer(name, "Scale", [bottom])

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


def random_weights(nets: Sequence[Definition], seed: int) -> Iterator[Layer]:
    """One layer a name for all ``nets``: weights that keep activations at their size, biases that
    matter, bilinear upsampling."""
    rng = np.random.default_rng(seed)
    for name, (kind, shape) in {blob[0]: blob[1:] for net in nets for blob in net.blobs}.items():
        if kind == "Deconvolution":
            yield Layer(name, kind, [bilinear(shape)])
        elif kind == "Scale":
            yield Layer(name, kind, [np.full(shape, rng.uniform(0.5, 2), np.float32)])
        else:
            # Uniform, of the variance of He et al.: quicker to draw than normal ones.
            bound = np.sqrt(6 / np.prod(shape[1:]), dtype=np.float32)
            weight = (rng.random(shape, np.float32) * 2 - 1) * bound
            yield Layer(name, kind, [weight, rng.normal(0, 5, shape[0]).astype(np.float32)])


def bilinear(shape: tuple[int, ...]) -> np.ndarray:
    """A full deconvolution kernel (C, C, k, k) that interpolates each channel."""
    kernel = shape[2]
    half = (kernel + 1) // 2
    centre = (kernel - 1) / 2
    ramp = np.array([1 - abs(i - centre) / half for i in range(kernel)])
    blob = np.zeros(shape, np.float32)
    for channel in range(shape[0]):
        blob[channel, channel] = ramp[:, None] * ramp[None, :]
    return blob


def _fully_connected(net: Definition, bottom: str, kernel: int, hidden: int) -> str:
    net.conv("fc6", bottom, hidden, kernel)
    net.conv("fc7", "fc6", hidden, 1)
    return net.conv("score_fr", "fc7", CLASSES, 1, relu=False)


def vgg(name: str, size: tuple[int, int], hidden: int = 4096) -> Definition:
    """voc-fcn32s, voc-fcn16s, voc-fcn8s or voc-fcn8s-atonce for an image of ``size`` (H, W)."""
    net = Definition(size)
    top = "data"
    for block, (count, out) in enumerate(VGG_BLOCKS, start=1):
        for i in range(1, count + 1):
            pad = 100 if (block, i) == (1, 1) else 1
            top = net.conv(f"conv{block}_{i}", top, out, 3, pad=pad)
        top = net.pool(f"pool{block}", top, 2, 2)
    score = _fully_connected(net, top, 7, hidden)

    def skip(pool: str, up: str, offset: int) -> str:
        source = net.scale(f"scale_{pool}", pool) if name == "voc-fcn8s-atonce" else pool
        net.conv(f"score_{pool}", source, CLASSES, 1, relu=False)
        cropped = net.crop(f"score_{pool}c", f"score_{pool}", up, offset)
        return net.add(f"fuse_{pool}", up, cropped)

    if name == "voc-fcn32s":
        up, offset = net.upsample("upscore", score, 64, 32), 19
    else:
        fused = skip("pool4", net.upsample("upscore2", score, 4, 2), 5)
        if name == "voc-fcn16s":
            up, offset = net.upsample("upscore16", fused, 32, 16), 27
        else:
            fused = skip("pool3", net.upsample("upscore_pool4", fused, 4, 2), 9)
            up, offset = net.upsample("upscore8", fused, 16, 8), 31
    net.crop("score", up, "data", offset)
    return net


def alexnet(size: tuple[int, int], hidden: int = 4096) -> Definition:
    """voc-fcn-alexnet: CaffeNet, which normalises after pooling."""
    net = Definition(size)
    top = "data"
    for number, convolution in enumerate(ALEXNET_CONVOLUTIONS, start=1):
        name, *sizes = convolution
        top = net.conv(name, top, *sizes)
        if number in (1, 2, 5):
            top = net.pool(f"pool{number}", top, 3, 2)
        if number in (1, 2):
            top = net.norm(f"norm{number}", top)
    score = _fully_connected(net, top, 6, hidden)
    net.crop("score", net.upsample("upscore", score, 63, 32), "data", 18)
    return net


def googlenet(size: tuple[int, int]) -> Definition:
    """BVLC GoogLeNet up to inception_5b, without the auxiliary heads."""
    net = Definition(size)
    net.conv("conv1/7x7_s2", "data", 64, 7, 2, 3)
    net.norm("pool1/norm1", net.pool("pool1/3x3_s2", "conv1/7x7_s2", 3, 2))
    net.conv("conv2/3x3_reduce", "pool1/norm1", 64, 1)
    net.conv("conv2/3x3", "conv2/3x3_reduce", 192, 3, pad=1)
    top = net.pool("pool2/3x3_s2", net.norm("conv2/norm2", "conv2/3x3"), 3, 2)
    for module, (one, three_in, three, five_in, five, projection) in INCEPTION.items():
        name = f"inception_{module}"
        branches = [
            net.conv(f"{name}/1x1", top, one, 1),
            net.conv(
                f"{name}/3x3", net.conv(f"{name}/3x3_reduce", top, three_in, 1), three, 3, pad=1
            ),
            net.conv(
                f"{name}/5x5", net.conv(f"{name}/5x5_reduce", top, five_in, 1), five, 5, pad=2
            ),
            net.conv(f"{name}/pool_proj", net.pool(f"{name}/pool", top, 3, 1, 1), projection, 1),
        ]
        net.channels[name] = one + three + five + projection
        top = net.layer(name, "Concat", branches)
        if module in ("3b", "4e"):
            top = net.pool(f"pool{module[0]}/3x3_s2", top, 3, 2)
    return net


def forward(
    text: str, weights: Path, image: np.ndarray, outputs: Sequence[str]
) -> dict[str, np.ndarray]:
    """Blobs ``outputs`` of the net ``text`` for ``image``, float32 (1, 3, H, W)."""
    definition = weights.with_suffix(".prototxt")
    definition.write_text(text)
    net = cv2.dnn.readNetFromCaffe(str(definition), str(weights))
    net.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
    net.enableWinograd(False)
    net.setInput(image)
    return dict(zip(outputs, net.forward(list(outputs)), strict=True))
