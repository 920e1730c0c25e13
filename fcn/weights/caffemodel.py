"""Caffe's binary weights (.caffemodel) without Caffe: read, write, load into our nets.

A .caffemodel is one protobuf message, NetParameter, without a magic number or compression. Only
the fields that hold weights are looked at; their numbers are those of BVLC's caffe.proto.
"""

import math
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from fcn.errors import UserError

NET_LAYERS_V1, NET_LAYER_V2 = 2, 100
V2_NAME, V2_TYPE, V2_BLOBS = 1, 2, 7
V1_V0, V1_NAME, V1_TYPE, V1_BLOBS = 1, 4, 5, 6
V0_NAME, V0_TYPE, V0_BLOBS = 1, 2, 50
BLOB_LEGACY, BLOB_DATA, BLOB_SHAPE, BLOB_DOUBLE = (1, 2, 3, 4), 5, 7, 8
SHAPE_DIM = 1
# The layer types that have weights in the old formats, under their names of today.
V1_TYPES = {4: "Convolution", 14: "InnerProduct", 39: "Deconvolution"}
V0_TYPES = {"conv": "Convolution", "innerproduct": "InnerProduct"}

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
TINY = 1e-12

Version = Literal["V2", "V1", "V1-legacy"]


@dataclass(frozen=True)
class Layer:
    """One layer with weights: its name, its type in Caffe's V2 spelling, float32 blobs."""

    name: str
    type: str
    blobs: list[np.ndarray]


@dataclass
class LoadReport:
    """What ``load_into`` did, by layer name; nothing is left out in silence."""

    loaded: list[str] = field(default_factory=list)
    missing_in_file: list[str] = field(default_factory=list)
    unused_in_file: list[str] = field(default_factory=list)


# ---------------------------------------------------------------------------------------- reading


class _Broken(Exception):
    """The bytes are not the message that they should be."""


class _Field(NamedTuple):
    number: int
    wire: int
    value: int  # of a varint; else 0
    start: int  # of the payload
    end: int


def _varint(buffer: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:
        byte = buffer[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise _Broken(f"a number breaks off or is too long at byte {position}")


def _fields(buffer: mmap.mmap, position: int, end: int) -> Iterator[_Field]:
    while position < end:
        begin = position
        tag, position = _varint(buffer, position, end)
        number, wire, value = tag >> 3, tag & 7, 0
        start = position
        if wire == VARINT:
            value, position = _varint(buffer, position, end)
        elif wire == FIXED64:
            position += 8
        elif wire == FIXED32:
            position += 4
        elif wire == BYTES:
            length, start = _varint(buffer, position, end)
            position = start + length
        if number == 0 or wire not in (VARINT, FIXED64, FIXED32, BYTES):
            raise _Broken(f"no protobuf field at byte {begin}")
        if position > end:
            raise _Broken(
                f"the field at byte {begin} needs {position - end} bytes more than there are"
            )
        yield _Field(number, wire, value, start, position)


def _text(buffer: mmap.mmap, item: _Field) -> str:
    if item.wire != BYTES:
        raise _Broken(f"a name was expected at byte {item.start}")
    try:
        return buffer[item.start : item.end].decode("utf-8")
    except UnicodeDecodeError:
        raise _Broken(f"a name was expected at byte {item.start}") from None


def _numbers(buffer: mmap.mmap, pieces: list[_Field], dtype: Literal["<f4", "<f8"]) -> np.ndarray:
    """The values of a repeated float or double field: packed, unpacked or in several pieces."""
    size = int(dtype[-1])
    for piece in pieces:
        if piece.wire == VARINT or (piece.end - piece.start) % size:
            raise _Broken(f"weights were expected at byte {piece.start}")
    if len(pieces) == 1:  # the usual case: a view of the file
        (piece,) = pieces
        return np.frombuffer(buffer, dtype, (piece.end - piece.start) // size, piece.start)
    return np.frombuffer(b"".join(buffer[piece.start : piece.end] for piece in pieces), dtype)


def _dims(buffer: mmap.mmap, item: _Field) -> list[int]:
    dims: list[int] = []
    for part in _fields(buffer, item.start, item.end):
        if part.number != SHAPE_DIM:
            continue
        if part.wire == VARINT:
            dims.append(part.value)
            continue
        position = part.start
        while position < part.end:
            dim, position = _varint(buffer, position, part.end)
            dims.append(dim)
    return dims


def _blob(buffer: mmap.mmap, item: _Field) -> np.ndarray:
    if item.wire != BYTES:
        raise _Broken(f"a blob was expected at byte {item.start}")
    legacy: dict[int, int] = {}
    shape: list[int] = []
    single: list[_Field] = []
    double: list[_Field] = []
    for part in _fields(buffer, item.start, item.end):
        if part.number in BLOB_LEGACY:
            legacy[part.number] = part.value
        elif part.number == BLOB_SHAPE:
            shape += _dims(buffer, part)
        elif part.number == BLOB_DATA:
            single.append(part)
        elif part.number == BLOB_DOUBLE:
            double.append(part)
    if legacy:  # as Blob::FromProto: any of the four makes it a 4-D shape
        shape = [legacy.get(number, 0) for number in BLOB_LEGACY]
    if double:
        values = _numbers(buffer, double, "<f8").astype(np.float32)
    else:
        values = _numbers(buffer, single, "<f4")
    if math.prod(shape) != values.size:
        raise _Broken(
            f"a blob of shape {tuple(shape)} at byte {item.start} holds {values.size} values"
        )
    return values.reshape(shape)


def _layer(buffer: mmap.mmap, item: _Field, version: int) -> Layer:
    """A layer of the net in format ``version`` (0, 1 or 2); a V1 layer may hold a V0 layer."""
    if item.wire != BYTES:
        raise _Broken(f"a layer was expected at byte {item.start}")
    name_at, type_at, blobs_at = {
        0: (V0_NAME, V0_TYPE, V0_BLOBS),
        1: (V1_NAME, V1_TYPE, V1_BLOBS),
        2: (V2_NAME, V2_TYPE, V2_BLOBS),
    }[version]
    name = kind = ""
    blobs: list[np.ndarray] = []
    try:
        for part in _fields(buffer, item.start, item.end):
            if version == 1 and part.number == V1_V0:
                nested = _layer(buffer, part, 0)
                name, kind, blobs = nested.name, nested.type, blobs + nested.blobs
            elif part.number == name_at:
                name = _text(buffer, part)
            elif part.number == type_at and version == 1:
                kind = V1_TYPES.get(part.value, f"V1 type {part.value}")
            elif part.number == type_at:
                kind = _text(buffer, part)
                kind = V0_TYPES.get(kind, kind) if version == 0 else kind
            elif part.number == blobs_at:
                blobs.append(_blob(buffer, part))
    except _Broken as error:
        raise _Broken(f"layer {name!r}: {error}" if name else str(error)) from None
    return Layer(name, kind, blobs)


def _looks_like(head: bytes) -> str | None:
    """What a file that is no binary caffemodel seems to be, from its first bytes."""
    known = {
        b"\x89HDF": "an HDF5 file (Caffe's other format), which is not read here",
        b"PK\x03\x04": "a zip archive or a PyTorch file",
        b"\x1f\x8b": "a gzip archive",
        b"\x80\x02": "a Python pickle",
    }
    for magic, name in known.items():
        if head.startswith(magic):
            return name
    # A net holds bytes below 9 (tags, enums, sizes, weights) within its first layer; text has none.
    if any(byte < 32 and byte not in b"\t\n\r\f" for byte in head):
        return None
    text = head.decode("utf-8", "replace").lstrip("\ufeff \t\r\n").lower()
    if text.startswith("<"):
        return "a web page (HTML or XML): the download went to an error or login page"
    if text.startswith("version https://git-lfs"):
        return "a Git LFS pointer, not the file itself"
    if "layer" in text or "name:" in text:
        return "a text prototxt (the net's definition), not its weights"
    return "a text file"


def read(path: str | Path) -> dict[str, Layer]:
    """Layers that hold weights, by name, in file order.

    V2 (``layer``), V1 (``layers``) and the V0 layers inside V1 are read; layers without blobs are
    skipped. Blobs are read-only float32 views of the memory-mapped file where they can be, in the
    file's own shape: old files say (1, 1, 1, N) for a bias (see ``to_shape``).

    Raises UserError for a file that is missing, truncated or not a caffemodel, and for two layers
    of one name.
    """
    path = Path(path)
    try:
        with path.open("rb") as handle:
            head = handle.read(4096)
            if not head:
                raise UserError(f"{path}: the file is empty; download it again.")
            kind = _looks_like(head)
            if kind:
                raise UserError(f"{path}: not a binary caffemodel but {kind}.")
            buffer = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None

    layers: dict[str, Layer] = {}
    try:
        for item in _fields(buffer, 0, len(buffer)):
            if item.number not in (NET_LAYERS_V1, NET_LAYER_V2):
                continue
            layer = _layer(buffer, item, 1 if item.number == NET_LAYERS_V1 else 2)
            if not layer.blobs:
                continue
            if layer.name in layers:
                raise UserError(
                    f"{path}: two layers with weights are called {layer.name!r}; which one is "
                    "meant cannot be told."
                )
            layers[layer.name] = layer
    except _Broken as error:
        after = f" after {len(layers)} whole layers" if layers else ""
        raise UserError(
            f"{path}: truncated, or not a caffemodel{after}: {error} (the file has {len(buffer)} "
            "bytes); download it again."
        ) from None
    if not layers:
        raise UserError(f"{path}: no layer with weights in it; not a trained caffemodel.")
    return layers


# ---------------------------------------------------------------------------------------- loading


def to_shape(blob: np.ndarray, shape: Sequence[int], layer: str) -> np.ndarray:
    """Give ``blob`` the dimensions ``shape`` if they mean the same weights, else UserError.

    An inner product is a convolution over all of its input, and old files pad shapes to four
    dimensions with leading ones: (1, 1, 4096, 25088), (4096, 25088) and (4096, 512, 7, 7) are one
    thing (authors' surgery.py). A shape that is not padded is taken at its word.
    """
    ours = [dim for dim in shape if dim != 1]
    theirs = [dim for dim in blob.shape if dim != 1]
    padded = blob.shape[:2] == (1, 1) or blob.ndim < len(shape)
    same = blob.shape == tuple(shape) or (padded and ours == theirs)
    merged = (
        padded and len(theirs) == 2 and ours[:1] == theirs[:1] and math.prod(ours[1:]) == theirs[1]
    )
    if not (same or merged):
        raise UserError(
            f"layer {layer!r}: the file's weights have shape {tuple(blob.shape)}, the net needs "
            f"{tuple(shape)}; these weights are of another net."
        )
    return blob.reshape(tuple(shape))


def _diagonal(blob: np.ndarray, layer: str) -> np.ndarray:
    """(C, C, k, k) -> (C, 1, k, k): a deconvolution that mixes no channels, as a grouped one."""
    channels = np.arange(len(blob))
    diagonal = blob[channels, channels]
    rest = np.array(blob)
    rest[channels, channels] = 0
    if not (np.abs(rest) <= TINY).all():
        raise UserError(
            f"layer {layer!r}: this upsampling mixes channels in the file (up to "
            f"{np.abs(rest).max():g} off the diagonal), in the net it does not; "
            "the net needs a full deconvolution."
        )
    return diagonal[:, np.newaxis]


def _fit_weight(blob: np.ndarray, target: torch.Tensor, layer: Layer) -> np.ndarray:
    shape = tuple(target.shape)
    full = (shape[0], shape[0], *shape[2:]) if len(shape) == 4 and shape[1] == 1 else None
    if layer.type == "Deconvolution" and full != shape and blob.shape == full:
        return _diagonal(blob, layer.name)
    return to_shape(blob, shape, layer.name)


def _fit_scale(blob: np.ndarray, target: torch.Tensor, layer: Layer) -> np.ndarray:
    """A factor, or one per channel, whichever way the net keeps it."""
    if blob.size > 1 and target.numel() == 1 and (blob == blob.flat[0]).all():
        blob = blob.reshape(-1)[:1]
    if blob.size == 1:
        return np.full(tuple(target.shape), blob.item(), np.float32)
    return to_shape(blob, tuple(target.shape), layer.name)


def _tensor(module: nn.Module, name: str) -> torch.Tensor | None:
    own = {**module._parameters, **module._buffers}
    return own.get(name)


def _fill(module: nn.Module, layer: Layer) -> None:
    weight, scale, bias = (_tensor(module, name) for name in ("weight", "scale", "bias"))
    first = weight if weight is not None else scale
    if first is None or len(layer.blobs) > 2:
        raise UserError(
            f"layer {layer.name!r}: {len(layer.blobs)} blobs of type {layer.type} do not fit "
            f"{type(module).__name__}."
        )
    fit = _fit_weight if weight is not None else _fit_scale
    pairs = [(first, fit(layer.blobs[0], first, layer))]
    if bias is not None:
        if len(layer.blobs) < 2:
            raise UserError(f"layer {layer.name!r}: the net has a bias, the file has none.")
        pairs.append((bias, to_shape(layer.blobs[1], tuple(bias.shape), layer.name)))
    elif len(layer.blobs) == 2 and layer.blobs[1].any():
        raise UserError(f"layer {layer.name!r}: the file has a bias, the net has none.")
    for target, values in pairs:
        if not np.isfinite(values).all():
            raise UserError(f"layer {layer.name!r}: the file's weights are not all finite.")
        target.copy_(torch.from_numpy(np.array(values, np.float32)))


@torch.no_grad()
def load_into(module: nn.Module, layers: Mapping[str, Layer]) -> LoadReport:
    """Copy ``layers`` into the submodules of ``module`` that have the same name.

    A submodule's name is its path after the last dot (``trunk.inception_3a/1x1`` is Caffe's
    ``inception_3a/1x1``). Blob 0 goes to ``weight``, or to ``scale`` (Caffe's Scale layer: one
    factor, or one a channel), blob 1 to ``bias``. A deconvolution with the full C x C kernel loads
    into a grouped one (C, 1, k, k) if it mixes no channels.

    UserError if a pair of that name does not fit; layers without a partner are reported, and what
    that means is the caller's decision. ValueError if ``module`` uses a name twice.
    """
    targets: dict[str, nn.Module] = {}
    for path, submodule in module.named_modules():
        if any(_tensor(submodule, name) is not None for name in ("weight", "scale")):
            name = path.rsplit(".", 1)[-1]
            if name in targets:
                raise ValueError(f"two submodules are called {name!r}; load each part by itself")
            targets[name] = submodule
    report = LoadReport(unused_in_file=[name for name in layers if name not in targets])
    for name, submodule in targets.items():
        if name in layers:
            _fill(submodule, layers[name])
            report.loaded.append(name)
        else:
            report.missing_in_file.append(name)
    return report
