"""What a net, a recipe and a run can say, what they say unless told, and what has no effect."""

from collections.abc import Callable, Mapping
from typing import Any

from fcn.errors import UserError
from fcn.schema import unknown

# Arithmetic of the layers. ``reference`` is fp32 as the authors' definitions have it: their order
# of layers, no shortcut, and operations whose sums have one order.
PRECISIONS = ("fp32", "tf32", "bf16", "reference")

# The nets that `predict` knows by name (config/nets.yaml).
PREDICT_NETS = (
    "voc-fcn32s",
    "voc-fcn16s",
    "voc-fcn8s",
    "voc-fcn8s-atonce",
    "voc-fcn-alexnet",
    "voc-fcn-googlenet",
)

NET_DEFAULTS: dict[str, Any] = {
    "skips": [],
    "top": None,
    "scales": {},
    "padding": "reference",
    "interpolation": "fixed",
    "score_init": "zero",
    "dropout": 0.5,
    "average_pool": False,
    "width": 1.0,
    "hidden": 4096,
    "fc6_kernel": None,
}
# Options that came later: absent from a run's configuration unless set, so that runs without them
# keep their hash; whoever reads a net or a recipe folds these in.
NET_OPTIONS: dict[str, Any] = {
    "inputs": ["image"],
    "fusion": "early",
    "fusion_weights": None,
    "skip_fusion": "sum",
    "pool5_stride": 2,
    "fc6_dilation": 1,
    "null_background": False,
}


# Where a net can end or have a skip, and the stride there: trunks are built too late for a typo.
_VGG = {"pool1": 2, "pool2": 4, "pool3": 8, "pool4": 16, "pool5": 32, "drop7": 32}
_ALEXNET = {"pool1": 8, "pool2": 16, "pool5": 32, "drop7": 32}
_GOOGLENET = {
    "pool2/3x3_s2": 8,
    **{f"inception_3{block}": 8 for block in "ab"},
    "pool3/3x3_s2": 16,
    **{f"inception_4{block}": 16 for block in "abcde"},
    "pool4/3x3_s2": 32,
    **{f"inception_5{block}": 32 for block in "ab"},
    "pool5/drop_7x7_s1": 32,
}
FEATURES: dict[str, dict[str, int]] = {
    "vgg16": _VGG,
    "vgg19": _VGG,
    "alexnet": _ALEXNET,
    "alexnet-bvlc": _ALEXNET,
    "alexnet-owt": _ALEXNET,
    "googlenet": _GOOGLENET,
    "googlenet-torchvision": _GOOGLENET,
}


def _own_top(net: Mapping[str, Any]) -> bool:
    """Whether a net ends where its classifier does, and not at a lower ``top``."""
    return net["top"] in (None, "drop7", "pool5/drop_7x7_s1")


def _googlenet(net: Mapping[str, Any]) -> bool:
    return str(net["architecture"]).startswith("googlenet")


def fully_connected(net: Mapping[str, Any]) -> bool:
    """Whether a net has fc6 and fc7."""
    return "drop7" in FEATURES.get(net["architecture"], {}) and _own_top(net)


# What an option of a net needs to have an effect, in words and as a test of the resolved net. Where
# it lacks that, the entry that sets the option is refused; what a base sets may lie idle, as the
# options of fc6 do in a truncated net.
NET_NEEDS: dict[str, tuple[str, Callable[[Mapping[str, Any]], bool]]] = {
    "scales": ("the skips that it names", lambda net: set(net["scales"]) <= set(net["skips"])),
    "interpolation": ("skips", lambda net: bool(net["skips"])),
    "skip_fusion": ("skips", lambda net: bool(net["skips"])),
    "fusion": ("several inputs", lambda net: len(net["inputs"]) > 1),
    "fusion_weights": (
        "several inputs and fusion: late",
        lambda net: len(net["inputs"]) > 1 and net["fusion"] == "late",
    ),
    "hidden": ("fc6 and fc7 (AlexNet and VGG without a lower top)", fully_connected),
    "fc6_kernel": ("fc6 (AlexNet and VGG without a lower top)", fully_connected),
    "fc6_dilation": ("fc6 (AlexNet and VGG without a lower top)", fully_connected),
    "pool5_stride": (
        "pool5 (AlexNet and VGG without a lower top)",
        lambda net: not _googlenet(net) and (_own_top(net) or net["top"] == "pool5"),
    ),
    "dropout": ("the classifier's dropout (a net without a lower top)", _own_top),
    "average_pool": (
        "the classifier's average pool (GoogLeNet without a lower top)",
        lambda net: _googlenet(net) and (_own_top(net) or net["top"] == "pool5/7x7_s1"),
    ),
}
RUN_OPTIONS: dict[str, Any] = {
    "labels": ["semantic"],
    "mask": {"train": "none", "test": "none"},
    "inference": None,
}
RECIPE_OPTIONS: dict[str, Any] = {
    "scale": None,
    "canvas": 1,
    "class_balance": False,
    "score_bias_rate": None,
    "score_bias_decay": None,
}
RECIPE_REQUIRED = (
    "images",
    "batch",
    "learning_rate",
    "momentum",
    "weight_decay",
    "normalize",
    "sampling",
)
RECIPE_DEFAULTS: dict[str, Any] = {
    "loss": "softmax",
    "schedule": "fixed",
    "bias_rate": 2.0,
    "bias_decay": 0.0,
    "score_rate": 1.0,
    "train_layers": "all",
    "patch_keep": 1.0,
    "mirror": False,
    "jitter": 0,
    "precision": "fp32",
    "validate": 0,
}


def _strides(net: Mapping[str, Any]) -> dict[str, int]:
    """The features of a net with all its options, and the stride at each; empty if unknown."""
    strides = FEATURES.get(net["architecture"], {})
    if net["pool5_stride"] == 1:
        return {name: s // 2 if s == 32 else s for name, s in strides.items()}
    return dict(strides)


def check_inference(inference: Mapping[str, Any], net: Mapping[str, Any], where: str) -> None:
    """UserError where a net's scores cannot be made denser as an entry asks."""
    net = {**NET_DEFAULTS, **NET_OPTIONS, **net}
    if net["skips"]:
        raise UserError(f"{where}: dense scores are for a net without skips; take such a net.")
    strides, stride = _strides(net), inference["stride"]
    coarse = strides.get(net["top"] or next(reversed(strides), ""))
    if coarse and (stride >= coarse or coarse % stride):
        raise UserError(
            f"{where}.stride: the net's stride is {coarse}; {stride} is no smaller divisor of it."
        )


def check_net(own: Mapping[str, Any], net: Mapping[str, Any], where: str) -> None:
    """UserError where an entry sets an option that has no effect in the net that comes of it.

    Or one that names a feature which the architecture lacks, or skips that do not become finer.
    """
    usual = NET_DEFAULTS | NET_OPTIONS
    net = {**usual, **net}
    strides = _strides(net)
    above = next(reversed(strides), "") if net["top"] is None else ""
    for key, name in [("top", net["top"]), *(("skips", skip) for skip in net["skips"])]:
        if name is None or not strides:
            continue
        if name not in strides:
            raise UserError(f"{where}.{key}: {unknown('feature', name, strides)}")
        if key == "skips" and above and strides[name] >= strides[above]:
            raise UserError(
                f"{where}.skips: {name} has stride {strides[name]}, {above} before it "
                f"{strides[above]}; list the skips from coarse to fine."
            )
        above = name
    for option, (need, met) in NET_NEEDS.items():
        if own.get(option, usual[option]) != usual[option] and not met(net):
            raise UserError(f"{where}.{option}: it has no effect without {need}; leave it out.")
