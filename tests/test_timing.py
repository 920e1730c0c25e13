"""Timing: the protocol is followed, and its statistics are those of its samples."""

import pytest
import torch

from fcn.evaluate import BatchLabeller, inference_net
from fcn.files import read_json
from fcn.timing import PAPER_TRIALS, measure, time_run

CPU = torch.device("cpu")


def test_measured_time_is_time(monkeypatch):
    clock = [0.0]
    calls: list[None] = []
    monkeypatch.setattr("fcn.timing.time.perf_counter", lambda: clock[0])

    def call():
        calls.append(None)
        clock[0] += 0.03 if len(calls) == 4 else 0.01

    found = measure(call, CPU, warmup=2, trials=4)
    assert len(calls) == 6
    assert (found["trials"], found["warmup"]) == (4, 2)
    assert (found["min_ms"], found["median_ms"]) == pytest.approx((10, 10))
    assert (found["mean_ms"], found["max_ms"]) == pytest.approx((15, 30))
    assert found["std_ms"] == pytest.approx(10)


def test_one_trial_has_no_spread():
    assert measure(lambda: None, CPU, 0, 1)["std_ms"] == 0.0


def test_statistics_of_given_samples(monkeypatch):
    clock = iter([0.0, 0.001, 5.0, 5.002, 6.0, 6.006])
    monkeypatch.setattr("fcn.timing.time.perf_counter", lambda: next(clock))
    found = measure(lambda: None, CPU, 3, 3)
    assert found["mean_ms"] == pytest.approx(3, abs=1e-6)
    assert found["median_ms"] == pytest.approx(2, abs=1e-6)
    assert found["std_ms"] == pytest.approx(7**0.5, abs=1e-6)  # (4 + 1 + 9) / 2
    assert (found["min_ms"], found["max_ms"]) == pytest.approx((1, 6), abs=1e-6)


def test_time_run(make_run, data_dir, tmp_path):
    run = make_run()
    found = time_run(
        run, 0, device=CPU, data_dir=data_dir, results=tmp_path, size=(33, 47), trials=4
    )
    assert read_json(run.directory(tmp_path, 0) / "timing.json") == found
    assert found["input"] == [33, 47] and found["config_hash"] == run.hash
    protocols = found["protocols"]
    assert set(protocols) == {
        "paper",
        "synchronised",
        "with_transfer",
        "synchronised_bf16",
        "with_transfer_bf16",
    }
    paper = protocols["paper"]
    assert (paper["trials"], paper["warmup"], paper["precision"]) == (PAPER_TRIALS, 1, "fp32")
    assert paper["includes_transfer"] is False and paper["device"] == "cpu"
    assert protocols["with_transfer_bf16"]["includes_transfer"] is True
    for name, protocol in protocols.items():
        assert 0 < protocol["min_ms"] <= protocol["median_ms"] <= protocol["max_ms"], name
        if name != "paper":
            assert protocol["trials"] == 4


@pytest.mark.parametrize("method", ["shift-and-stitch", "rarefaction"])
def test_dense_inference_is_what_is_timed(make_run, data_dir, tmp_path, monkeypatch, method):
    """Not the net alone: at stride 16 a net of stride 32 runs on four shifts, or on finer maps."""
    inference = {"method": method, "stride": 16}
    net = {"base": "slim", "skips": []}
    run = make_run(train=None, weights="none", recipe="none", net=net, inference=inference)
    asked = []

    def dense(net, x, **how):
        asked.append(how)
        return net(x)

    monkeypatch.setattr("fcn.evaluate.dense_scores", dense)
    found = time_run(
        run, 0, device=CPU, data_dir=data_dir, results=tmp_path, size=(33, 47), trials=2
    )
    assert found["inference"] == {"method": method, "stride": 16}
    trials = sum(p["trials"] + p["warmup"] for p in found["protocols"].values())
    assert asked == [{"method": method, "stride": 16}] * trials


def test_labels_are_timed_with_their_way_back_and_nets_as_they_infer(
    make_run, data_dir, tmp_path, monkeypatch
):
    nets, batches = [], []

    def made(net, *arguments):
        nets.append(net)
        return inference_net(net, *arguments)

    class Counted(BatchLabeller):
        def __call__(self, batch):
            batches.append(batch)
            return super().__call__(batch)

    monkeypatch.setattr("fcn.timing.inference_net", made)
    monkeypatch.setattr("fcn.timing.BatchLabeller", Counted)
    found = time_run(
        make_run(), 0, device=CPU, data_dir=data_dir, results=tmp_path, size=(33, 47), trials=2
    )["protocols"]
    assert nets and not any(net.training for net in nets)  # else dropout is timed, and padding
    with_transfer = [p for name, p in found.items() if name.startswith("with_transfer")]
    assert len(batches) == sum(p["trials"] + p["warmup"] for p in with_transfer)
    assert {batch["image"].dtype for batch in batches} == {torch.uint8}
