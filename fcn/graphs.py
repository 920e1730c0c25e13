"""CUDA graphs: what a GPU is to do, recorded once for each shape and then asked for in one call.

PyTorch takes longer to ask for the few hundred small kernels of a net than an H100 takes to run
them: of a training step of FCN-GoogLeNet, 28 ms, the device had work for 6.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
AFTER = 8  # calls at one shape before it is recorded, which takes longer than a few more of them
KEPT = 96  # graphs; further shapes are computed call by call

_held: list[Tensor] | None = None


def hold(tensor: Tensor) -> Tensor:
    """``tensor``, which a cache may drop, kept as long as the graph that is being recorded."""
    if _held is not None:
        _held.append(tensor)
    return tensor


@contextmanager
def on_stream(device: torch.device) -> Iterator[None]:
    """On a GPU a stream of its own, which recording asks for; after what was asked before."""
    if device.type != "cuda":
        yield
        return
    outer, own = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    own.wait_stream(outer)
    try:
        with torch.cuda.stream(own):
            yield
    finally:
        outer.wait_stream(own)


class _Graph(Generic[T]):
    """One recording: its inputs, what it reads besides, and its result."""

    def __init__(self, function: Callable[..., T], inputs: tuple[Tensor, ...], pool: Any) -> None:
        global _held
        self.inputs = [tensor.clone() for tensor in inputs]
        self.graph = torch.cuda.CUDAGraph()
        self.held: list[Tensor] = []
        _held = self.held
        try:
            # The thread that pins images goes on meanwhile: its calls are no part of the graph.
            with torch.cuda.graph(
                self.graph,
                pool=pool,
                stream=torch.cuda.current_stream(),
                capture_error_mode="thread_local",
            ):
                self.result = function(*self.inputs)
        finally:
            _held = None

    def __call__(self, inputs: tuple[Tensor, ...]) -> T:
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.result


class Graphs(Generic[T]):
    """``function`` of tensors of one device, replayed as a graph at shapes that come again.

    On a GPU it must be called within ``on_stream``, and the function must neither wait for the
    device nor depend on anything but its tensors and on state that stays in its place (weights,
    buffers). Tensors of a result are good until the next call. On the CPU it calls the function.

    Where a recording fails, for want of memory say, ``undo`` is called, to clear away what the
    function had begun and the device has not computed, and all goes on call by call. Where a call
    lacks memory beside the graphs, which keep theirs, they are given up and it is made again: until
    its last operation the function must have changed nothing that ``undo`` does not clear away.
    """

    def __init__(
        self,
        function: Callable[..., T],
        device: torch.device,
        undo: Callable[[], None] = lambda: None,
    ) -> None:
        self.function = function
        self.undo = undo
        self.cuda = device.type == "cuda"
        self._calls: Counter[Any] = Counter()
        self._graphs: dict[Any, _Graph[T]] = {}
        self._room = KEPT
        # Graphs never run side by side, so their intermediate results may share memory.
        self._pool = torch.cuda.graph_pool_handle() if self.cuda else None

    def __call__(self, *tensors: Tensor) -> T:
        if not self.cuda:
            return self.function(*tensors)
        key = tuple((tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors)
        graph = self._graphs.get(key)
        if graph is not None:
            return graph(tensors)
        result = self._call(tensors)
        self._calls[key] += 1
        # Just computed at this shape: all that is made once for it is there.
        if self._calls[key] >= AFTER and len(self._graphs) < self._room:
            try:
                self._graphs[key] = _Graph(self.function, tensors, self._pool)
            except RuntimeError as error:
                self.undo()
                self._room = 0
                print(f"no graph, call by call from here on: {error}", file=sys.stderr)
        return result

    def _call(self, tensors: tuple[Tensor, ...]) -> T:
        try:
            return self.function(*tensors)
        except torch.OutOfMemoryError as error:
            if not self._graphs:
                raise
            reason = str(error)
        # Not above: the error holds the tensors of the call that failed.
        self.undo()
        self._graphs.clear()
        self._room = 0
        torch.cuda.empty_cache()
        print(f"graphs given up, call by call from here on: {reason}", file=sys.stderr)
        return self.function(*tensors)
