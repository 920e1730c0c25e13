"""Graphs off the GPU: the function itself. What a GPU does of them is in test_cuda.py."""

import pytest
import torch

from fcn import graphs as module
from fcn.graphs import AFTER, Graphs, hold, on_stream

CPU = torch.device("cpu")


@pytest.fixture
def recorded(monkeypatch):
    """Graphs of a stand-in for a recording, which notes the shapes it was made for."""
    shapes = []

    class Recording:
        def __init__(self, function, inputs, pool):
            shapes.append(tuple(inputs[0].shape))
            self.function = function

        def __call__(self, inputs):
            return -self.function(*inputs)

    monkeypatch.setattr(module, "_Graph", Recording)
    made = Graphs(lambda x: x + 1, CPU)
    made.cuda = True
    return made, shapes


def test_a_shape_is_recorded_once_it_has_come_often(recorded):
    graphs, shapes = recorded
    for i in range(1, AFTER + 3):
        assert graphs(torch.ones(2)).tolist() == [2 if i <= AFTER else -2] * 2
        graphs(torch.ones(2).double())  # another type is another graph
        if i < AFTER:
            graphs(torch.ones(3))
    assert shapes == [(2,), (2,)]


def test_the_number_of_graphs_is_bounded(recorded, monkeypatch):
    graphs, shapes = recorded
    monkeypatch.setattr(graphs, "_room", 2)
    for size in range(1, 6):
        for _ in range(AFTER + 1):
            graphs(torch.ones(size))
    assert shapes == [(1,), (2,)]


def test_without_memory_for_a_graph_it_goes_on_call_by_call(monkeypatch):
    tries = []

    def full(*_):
        tries.append(1)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(module, "_Graph", full)
    graphs = Graphs(lambda x: x + 1, CPU)
    graphs.cuda = True
    assert all(graphs(torch.tensor(i)) == i + 1 for i in range(3 * AFTER))
    assert tries == [1]


def test_on_the_cpu_it_is_the_function():
    calls = []

    def function(x, y):
        calls.append((x, y))
        return x + y

    graphs = Graphs(function, CPU)
    with on_stream(CPU):
        for i in range(5):
            assert graphs(torch.tensor(i), torch.tensor(1)) == i + 1
    assert len(calls) == 5


def test_nothing_is_held_outside_of_a_recording():
    tensor = torch.zeros(1)
    assert hold(tensor) is tensor
