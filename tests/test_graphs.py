"""Graphs off the GPU: the function itself. What a GPU does of them is in test_cuda.py."""

import pytest
import torch

from fcn import graphs as module
from fcn.graphs import AFTER, Graphs, hold, on_stream
from fcn.nets import build
from fcn.nets.padded import for_inference
from fcn.train import train
from fcn.weights.named import read

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


def test_a_recording_that_fails_changes_no_training(
    make_run, data_dir, tmp_path, monkeypatch, capsys
):
    """It fails within the backward pass, when some weights already have what are no gradients."""
    tries = []

    def full(function, inputs, _):
        tries.append(1)
        first = next(function.__self__.net.parameters())

        def fail(gradient):
            raise torch.OutOfMemoryError

        handle = first.register_hook(fail)
        try:
            function(*inputs)
        finally:
            handle.remove()

    recipe = {"base": "short", "images": 4 * AFTER, "batch": 1, "learning_rate": 1e-2}
    run = make_run(recipe=recipe, net={"base": "slim", "score_init": "random", "dropout": 0.0})
    weights = []
    for failing in (False, True):
        if failing:
            monkeypatch.setattr(module, "_Graph", full)
            cuda = property(lambda _: True, lambda *_: None)
            monkeypatch.setattr(Graphs, "cuda", cuda, raising=False)
            monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
        train(run, 0, device=CPU, data_dir=data_dir, results=tmp_path / str(failing))
        file = run.directory(tmp_path / str(failing), 0) / "model.safetensors"
        weights.append(read(file)[0])
    assert tries and "call by call from here on" in capsys.readouterr().err
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_call_that_lacks_memory_beside_graphs_is_made_again_without_them(recorded, capsys):
    graphs, shapes = recorded
    undone = []
    graphs.undo = lambda: undone.append(len(graphs._graphs))

    def function(x):
        if len(x) > 2 and graphs._graphs:
            raise torch.OutOfMemoryError("full")
        return x + 1

    graphs.function = function
    for _ in range(AFTER + 1):
        graphs(torch.ones(2))
    assert shapes == [(2,)]
    assert graphs(torch.ones(3)).tolist() == [2, 2, 2] and undone == [1]
    assert "graphs given up, call by call from here on: full" in capsys.readouterr().err
    for _ in range(2 * AFTER):
        assert graphs(torch.ones(2)).tolist() == [2, 2]
    assert shapes == [(2,)]

    def small(x):
        raise torch.OutOfMemoryError

    graphs.function = small
    with pytest.raises(torch.OutOfMemoryError):  # no graph is to blame
        graphs(torch.ones(2))


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


def test_caches_give_what_they_drop_to_a_recording(named_nets, monkeypatch):
    """All tensors that a pass for inference reads and its weights do not hold."""
    fast = for_inference(build(named_nets["voc-fcn8s"][0] | {"width": 0.05}, {"semantic": 3}))
    x = torch.zeros(1, 3, 40, 50)
    with torch.inference_mode():
        fast.eval()(x)
        held: list[torch.Tensor] = []
        monkeypatch.setattr(module, "_held", held)
        fast(x)
    kept = {id(tensor) for tensor in held}
    for layer in fast.modules():
        for tensor in getattr(layer, "_matrices", {}).values():
            assert id(tensor) in kept
        for maps in getattr(layer, "_quiet", {}).values():
            assert all(id(tensor) in kept for tensor in maps)
    assert any(tensor.dtype == torch.int64 for tensor in held)  # rows of the surroundings
    monkeypatch.setattr(module, "_held", None)
    tensor = torch.zeros(1)
    assert hold(tensor) is tensor and id(tensor) not in {id(t) for t in held}
