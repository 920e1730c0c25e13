"""Writes .caffemodel files for the tests, in the three forms that files of the time have."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fcn.files import atomic_file
from fcn.weights.caffemodel import (
    BLOB_DATA,
    BLOB_LEGACY,
    BLOB_SHAPE,
    BYTES,
    NET_LAYER_V2,
    NET_LAYERS_V1,
    SHAPE_DIM,
    V1_BLOBS,
    V1_NAME,
    V1_TYPE,
    V1_TYPES,
    V2_BLOBS,
    V2_NAME,
    V2_TYPE,
    VARINT,
    Layer,
    Version,
)


def _encode(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number_field(number: int, value: int) -> bytes:
    return _encode(number << 3 | VARINT) + _encode(value)


def _bytes_field(number: int, payload: bytes) -> bytes:
    return _encode(number << 3 | BYTES) + _encode(len(payload)) + payload


def _blob_header(blob: np.ndarray, version: Version) -> bytes:
    """Everything of a BlobProto but the weights themselves, which follow it."""
    if version == "V1-legacy":
        if blob.ndim > 4:
            raise ValueError(f"the old format has four dimensions, not {blob.ndim}")
        dims = (1,) * (4 - blob.ndim) + blob.shape
        shape = b"".join(_number_field(n, dim) for n, dim in zip(BLOB_LEGACY, dims, strict=True))
    else:
        packed = b"".join(_encode(dim) for dim in blob.shape)
        shape = _bytes_field(BLOB_SHAPE, _bytes_field(SHAPE_DIM, packed))
    return shape + _encode(BLOB_DATA << 3 | BYTES) + _encode(4 * blob.size)


def write(path: str | Path, layers: Iterable[Layer], version: Version = "V2") -> None:
    """Write ``layers`` as a .caffemodel: V2, V1, or V1 with the old 4-D shapes.

    The V1 formats know the types Convolution, InnerProduct and Deconvolution only (ValueError).
    """
    v2 = version == "V2"
    blobs_at = V2_BLOBS if v2 else V1_BLOBS
    with atomic_file(path) as temporary, temporary.open("wb") as handle:
        for layer in layers:
            if v2:
                head = _bytes_field(V2_NAME, layer.name.encode())
                head += _bytes_field(V2_TYPE, layer.type.encode())
            else:
                numbers = [n for n, name in V1_TYPES.items() if name == layer.type]
                if not numbers:
                    raise ValueError(f"{layer.name}: the V1 format has no {layer.type} weights")
                head = _bytes_field(V1_NAME, layer.name.encode())
                head += _number_field(V1_TYPE, numbers[0])
            pieces: list[bytes | memoryview] = [head]
            for blob in layer.blobs:
                header = _blob_header(blob, version)
                size = len(header) + 4 * blob.size
                pieces.append(_encode(blobs_at << 3 | BYTES) + _encode(size) + header)
                pieces.append(np.ascontiguousarray(blob, "<f4").reshape(-1).data)
            total = sum(memoryview(piece).nbytes for piece in pieces)
            net_at = NET_LAYER_V2 if v2 else NET_LAYERS_V1
            handle.write(_encode(net_at << 3 | BYTES) + _encode(total))
            for piece in pieces:
                handle.write(piece)
