"""Graphs off the GPU: the function itself. What a GPU does of them is in test_cuda.py."""

import torch

from fcn.graphs import Graphs, hold, on_stream

CPU = torch.device("cpu")


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
