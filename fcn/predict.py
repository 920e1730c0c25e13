"""Label images of one's own: a palette PNG of class indices for each, and an overlay on request."""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn
from torch.func import functional_call

from fcn.data.labels import ORIENTATION, VOID, stored, voc_palette, write_label
from fcn.device import autocast, chosen, deterministic
from fcn.errors import UserError
from fcn.files import atomic_file
from fcn.inputs import preprocess
from fcn.nets import FCN, build
from fcn.nets.padded import for_inference
from fcn.options import NET_DEFAULTS, PREDICT_NETS
from fcn.progress import bar, say
from fcn.schema import CONFIG, read_yaml, unknown
from fcn.weights import caffemodel
from fcn.weights.named import load_named, named_tensors, read, settle

AUTO = "auto"
IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
CPU = torch.device("cpu")
# What tells one net from another; the rest (padding, interpolation, dropout) the file itself says.
IDENTITY = ("architecture", "skips", "top", "scales")


class Labeller:
    """A net with its weights, the names of its classes and the input that its weights expect."""

    def __init__(
        self,
        net: FCN,
        classes: Sequence[str],
        convention: dict[str, Any],
        device: torch.device = CPU,
        precision: str = "fp32",
    ) -> None:
        self.net = net.eval().to(device).to(memory_format=torch.channels_last)
        self.fast = for_inference(self.net, precision)  # as in evaluation
        self.classes = list(classes)
        self.convention = convention
        self.device = device
        self.precision = precision
        self._bytes_per_pixel = 0.0

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> (H, W) uint8 class indices: the argmax of the net's scores.

        Raises:
            UserError: the image is too large for the memory or too small for the net.
        """
        height, width = image.shape[:2]
        too_large = f"{width}x{height} pixels need more memory than there is; scale the image down"
        if self.device.type == "cpu":  # a GPU refuses by itself, Linux ends the process
            need, have = self._memory(height * width), _physical_memory()
            if need > have:
                figures = f"over {need / 1e9:.0f} GB, here are {have / 1e9:.0f}"
                raise UserError(f"{too_large} ({figures}).")
        batch = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
        try:
            with torch.inference_mode(), autocast(self.precision, self.device):
                scores = self.fast(preprocess(batch, self.convention, self.device))["semantic"]
                labels: np.ndarray = scores[0].max(0).indices.to(torch.uint8).cpu().numpy()
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
                raise UserError(f"{too_large}.") from None
            raise
        return labels

    def _memory(self, pixels: int) -> float:
        """Bytes that an image of so many pixels takes, at the least: input and output of the
        largest layer, counted once on the ``meta`` device, which computes shapes only."""
        if not self._bytes_per_pixel:
            side = 4096  # of a small one the padding is a part that a large one does not have
            sizes = []

            def count(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
                found = [t for t in (*inputs, output) if isinstance(t, Tensor)]
                sizes.append(sum(t.numel() * t.element_size() for t in found))

            leaves = [module for module in self.net.modules() if not list(module.children())]
            hooks = [module.register_forward_hook(count) for module in leaves]
            weights = {key: value.to("meta") for key, value in self.net.state_dict().items()}
            with torch.inference_mode():
                functional_call(self.net, weights, torch.empty(1, 3, side, side, device="meta"))
            for hook in hooks:
                hook.remove()
            self._bytes_per_pixel = max(sizes) / side**2
        return self._bytes_per_pixel * pixels


def _physical_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# ---------------------------------------------------------------------------------------- weights


def named_net(name: str) -> dict[str, Any]:
    """The resolved configuration of one of ``PREDICT_NETS`` (config/nets.yaml)."""
    if name not in PREDICT_NETS:
        raise UserError(f"--net: {unknown('net', name, (*PREDICT_NETS, AUTO))}")
    library = read_yaml(CONFIG / "nets.yaml")
    entry: dict[str, Any] = {"base": name}
    while "base" in entry:
        entry = {**library[entry.pop("base")], **entry}
    entry.pop("gflop", None)
    return {**NET_DEFAULTS, **entry}


def load(name: str, weights: Path, device: torch.device = CPU, precision: str = "fp32") -> Labeller:
    """The net ``name`` with the weights of a file.

    A file of ours (.safetensors) says in its header which net, classes and input it is made for;
    ``auto`` takes the net from there, another name must agree with it. A .caffemodel says nothing:
    it is read as the authors' nets are, 21 VOC classes and BGR minus the mean of the backbone.
    Its upsampling layers may be absent (they are bilinear); layers that the net does not have are
    named on stderr.

    Raises:
        UserError: an unknown net, a missing or broken file, weights of another net or not finite.
    """
    if weights.suffix.lower() == ".safetensors":
        return _load_ours(name, weights, device, precision)
    if not weights.exists():
        raise UserError(f"{weights}: no such file.")
    if weights.is_dir():
        raise UserError(f"{weights}: a folder; give the model.safetensors in it.")
    if name == AUTO:
        raise UserError(
            f"--net {AUTO}: {weights} does not say what net it is of; choose "
            f"{', '.join(PREDICT_NETS)}."
        )
    config = named_net(name)
    layers = caffemodel.read(weights)
    classes = read_yaml(CONFIG / "datasets.yaml")["voc2012"]["classes"]
    net = build(config, {"semantic": len(classes)})
    own = dict.fromkeys(key.rsplit(".", 1)[0] for key in named_tensors(net))
    absent = [key for key in own if key not in layers and not key.startswith("upscore")]
    if absent:
        more = f" and {len(absent) - 8} more" if len(absent) > 8 else ""
        raise UserError(
            f"{weights}: lacks the layers {', '.join(absent[:8])}{more}, which {name} needs; "
            "these are weights of another net."
        )
    try:
        report = caffemodel.load_into(net, layers)
    except UserError as error:
        raise UserError(f"{weights}: {error}") from None
    if report.unused_in_file:
        print(
            f"{weights}: layers that {name} does not have, left unused: "
            f"{', '.join(report.unused_in_file)}",
            file=sys.stderr,
        )
    settle(net)
    backbones = read_yaml(CONFIG / "backbones.yaml").values()
    convention = next(
        b["input"]
        for b in backbones
        if b["format"] == "caffe" and b["architecture"] == config["architecture"]
    )
    return Labeller(net, classes, convention, device, precision)


def _load_ours(name: str, weights: Path, device: torch.device, precision: str) -> Labeller:
    wanted = None if name == AUTO else named_net(name)
    tensors, about = read(weights)
    if not {"net", "classes", "input"} <= about.keys():
        raise UserError(
            f"{weights}: its header describes no trained net; give the model.safetensors of a run."
        )
    config, labels = about["net"], about.get("labels", ["semantic"])
    if config.get("inputs", ["image"]) != ["image"] or "semantic" not in labels:
        reads = " and ".join(config.get("inputs", ["image"]))
        raise UserError(
            f"{weights}: a net that reads {reads} and labels {' and '.join(labels)}; only nets "
            "that give semantic labels of images can label files."
        )
    classes = about["classes"]["semantic"]
    if wanted:
        other = [key for key in IDENTITY if wanted[key] != config[key]]
        if other:
            differences = "; ".join(f"{key} is {config[key]}, not {wanted[key]}" for key in other)
            raise UserError(
                f"{weights}: not the weights of {name}: {differences}. --net {AUTO} takes the net "
                "that the file names."
            )
    net = build(config, {label: len(about["classes"][label]) for label in labels})
    load_named(net, tensors, str(weights))
    return Labeller(net, classes, about["input"], device, precision)


# ----------------------------------------------------------------------------------------- images


def find_images(given: Sequence[Path]) -> list[Path]:
    """Images in the order given; a folder stands for the images directly in it, by name."""
    found: list[Path] = []
    for path in given:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(
            p
            for p in path.iterdir()
            if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")
        )
        if not inside:
            kinds = ", ".join(sorted(IMAGE_SUFFIXES))
            raise UserError(f"{path}: no images in this folder ({kinds}).")
        found += inside
    return found


def read_image(path: Path) -> np.ndarray:
    """An image file as uint8 RGB (H, W, 3), in its stored pixels.

    Grey, palette and CMYK are converted; transparency is dropped; 16-bit grey keeps its upper
    eight bits. An EXIF orientation is not applied, so that labels and file agree pixel by pixel,
    and told on stderr.

    Raises:
        UserError: no such file, not an image, broken, or of a kind without a meaning in 0..255.
    """
    try:
        with warnings.catch_warnings():  # size is judged by the net's memory
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                image = stored(opened)
                if image.mode == "F":
                    raise UserError("floating-point values; save it with 8 bits a channel.")
                if image.mode.startswith("I"):
                    values = np.asarray(image).astype(np.int64)
                    if values.min() < 0 or values.max() > 0xFFFF:
                        raise UserError("more than 16 bits a pixel; save it with 8 bits a channel.")
                    grey = (values >> 8).astype(np.uint8)
                    pixels = np.repeat(grey[..., None], 3, axis=2)
                else:
                    pixels = np.array(image.convert("RGB"))
                orientation = image.getexif().get(ORIENTATION, 1)
    except FileNotFoundError:
        raise UserError("no such file.") from None
    except UnidentifiedImageError:
        raise UserError("not an image that can be read.") from None
    except Image.DecompressionBombError:
        raise UserError("too many pixels; scale the image down.") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"not readable ({error}).") from None
    if orientation not in (0, 1):
        print(
            f"{path}: its EXIF orientation ({orientation}) is not applied: the labels are in the "
            "stored pixels; turn the image itself where it lies on its side",
            file=sys.stderr,
        )
    return pixels


def overlay(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Image and VOC colours half and half, uint8 (H, W, 3); void (255) leaves the image alone."""
    mixed = ((image.astype(np.uint16) + voc_palette()[labels] + 1) // 2).astype(np.uint8)
    return np.where((labels == VOID)[..., None], image, mixed)


def _identity(path: Path) -> tuple[int, int] | None:
    """What a file is by whatever name, None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _check_outputs(images: Sequence[Path], out: Path, with_overlay: bool) -> None:
    """Refuse, before any work, outputs that would replace each other or an input.

    Also where only capitals tell their names apart: on many file systems they are one file.
    """
    made: dict[str, tuple[str, Path]] = {}  # by its name without capitals: name, image
    inputs = {_identity(path) for path in images} - {None}
    for path in images:
        for name in (f"{path.stem}.png", f"{path.stem}_overlay.png")[: 1 + with_overlay]:
            target = out / name
            if name.casefold() in made:
                first, other = made[name.casefold()]
                where = "" if first == name else ", where capitals and small letters are the same"
                raise UserError(
                    f"{other} and {path} would both be written to {target}{where}; rename one, or "
                    "label them into different folders."
                )
            if _identity(target) in inputs:
                raise UserError(
                    f"{target} is one of the images, labels would replace it; choose another --out."
                )
            made[name.casefold()] = name, path
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: this folder cannot be made ({error.strerror}).") from None


def _shares(labels: np.ndarray, classes: Sequence[str]) -> str:
    counts = np.bincount(labels.ravel(), minlength=len(classes))
    order = [int(k) for k in np.argsort(-counts, kind="stable") if counts[k]]
    return ", ".join(f"{classes[k]} {100 * counts[k] / labels.size:.1f} %" for k in order)


def label_images(labeller: Labeller, images: Sequence[Path], out: Path, with_overlay: bool) -> None:
    """Write ``out/STEM.png`` for each image and print the share of each class that was found.

    An image that cannot be labelled does not stop the others.

    Raises:
        UserError: at the end, naming the images that were left out and why.
    """
    failed = []
    alone = len(images) == 1
    for path in bar(images, unit="img", desc="label", disable=alone):
        try:
            image = read_image(path)
            labels = labeller(image)
            if with_overlay:
                with atomic_file(out / f"{path.stem}_overlay.png") as temporary:
                    Image.fromarray(overlay(image, labels)).save(temporary, format="PNG")
            write_label(out / f"{path.stem}.png", labels)
        except (UserError, OSError) as error:
            failed.append(f"{path}: {error}".rstrip("."))
            continue
        say(f"{path}: {_shares(labels, labeller.classes)}", sys.stdout)
    if failed:
        raise UserError(f"{len(failed)} of {len(images)} images not labelled: {'; '.join(failed)}.")


def main(args: argparse.Namespace) -> None:
    """Label ``args.images`` with ``args.net`` and ``args.weights`` into ``args.out``."""
    images = find_images(args.images)
    _check_outputs(images, args.out, args.overlay)
    with chosen(args.device) as device, deterministic(args.precision == "reference"):
        labeller = load(args.net, args.weights, device, args.precision)
        label_images(labeller, images, args.out, args.overlay)
