"""Section 3.1: the classifier and its net are one function; what is measured is what is said."""

import pytest
import torch
from torch import nn

from fcn import classifier
from fcn.__main__ import main
from fcn.classifier import backward_of, classifier_nets, forward_of, time_classifier
from fcn.errors import UserError
from fcn.files import read_json
from fcn.nets.geometry import cells_after
from fcn.suites import load_suite

CPU = torch.device("cpu")
SLIM = {"architecture": "alexnet", "width": 0.05, "hidden": 8, "fc6_kernel": 1}


@pytest.fixture(scope="module")
def demo():
    return load_suite("demo")


def slim(**options):
    return load_suite("demo").resolved_net("slim-fcn-alexnet") | SLIM | options


@pytest.mark.parametrize(
    ("net", "crop"),
    [
        ({}, 63),
        ({"fc6_kernel": 2}, 99),
        ({"architecture": "alexnet-bvlc"}, 63),
        ({"architecture": "vgg16"}, 34),
        ({"architecture": "vgg16", "fc6_kernel": 3}, 90),
        ({"padding": "reference"}, 63),
    ],
)
def test_on_a_crop_the_net_is_the_classifier(net, crop):
    torch.manual_seed(1)
    connected, convolutional = classifier_nets(slim(**net), crop, classes=5)
    x = torch.randn(3, 3, crop, crop)
    with torch.inference_mode():
        scores, cells = connected(x), convolutional(x)
    assert scores.shape == (3, 5) and cells.shape == (3, 5, 1, 1)
    assert scores.std() > 0
    torch.testing.assert_close(cells.flatten(1), scores, rtol=1e-4, atol=1e-6)


def test_on_an_image_a_cell_is_the_classifier_on_its_crop():
    """Exactly so where no layer pads: here the paddings of conv2 to conv5 are taken away."""
    torch.manual_seed(2)
    connected, convolutional = classifier_nets(slim(), 63, classes=5)
    for net in (connected, convolutional):
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d):
                layer.padding = (0, 0)
    crop, stride = 195, 32  # the receptive field: no pooling window reaches beyond the crop
    image = crop + 2 * stride
    x = torch.randn(1, 3, image, image)
    with torch.inference_mode():
        cells = convolutional(x)
        assert cells.shape[2:] == (3, 3)
        for i in range(3):
            for j in range(3):
                window = x[:, :, i * stride : i * stride + crop, j * stride : j * stride + crop]
                torch.testing.assert_close(
                    cells[:, :, i, j], connected(window), rtol=1e-4, atol=1e-6
                )


def test_the_paper_s_classifier_and_its_grid():
    """CaffeNet as it is: 60,965,224 parameters (BVLC), and 10x10 cells of 500x500 (section 3.1)."""
    net = load_suite("voc-subset").resolved_net("voc-fcn-alexnet")
    with torch.device("meta"):
        connected, convolutional = (m.to("meta") for m in classifier_nets(net, 227))
    for model in (connected, convolutional):
        assert sum(p.numel() for p in model.parameters()) == 60_965_224
    assert cells_after(500, convolutional) == 10


def test_what_has_no_classifier_is_told():
    with pytest.raises(UserError, match="no fully connected layers"):
        classifier_nets(slim(architecture="googlenet", fc6_kernel=None), 224)
    with pytest.raises(UserError, match="its fc6 is dilated"):
        classifier_nets(slim(fc6_dilation=2), 127)
    for crop, cells in ((14, 0), (127, 3)):
        with pytest.raises(UserError, match=rf"classifier\.crop: {crop} pixels give {cells} cells"):
            classifier_nets(slim(), crop)


def test_forward_and_backward_are_those_of_the_net():
    torch.manual_seed(3)
    net = classifier_nets(slim(), 63, classes=5)[0]
    x = torch.randn(2, 3, 63, 63)
    scores = forward_of(net, x)()
    assert isinstance(scores, torch.Tensor) and scores.is_inference()
    torch.testing.assert_close(scores, net(x).detach())
    call = backward_of(net, x)
    first, again = call(), call()
    net(x).sum().backward()
    assert isinstance(first, tuple) and isinstance(again, tuple)
    for found, repeated, parameter in zip(first, again, net.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad)
        torch.testing.assert_close(repeated, found)


def suite_file(write_suite, **change):
    net = {"architecture": "alexnet", "width": 0.05, "hidden": 8, "fc6_kernel": 1}
    options = {"net": "small", "crop": 63, "image": 127, **change}
    return write_suite({"nets": {"small": net}, "classifier": options})


def test_the_file_holds_what_was_measured(write_suite, tmp_path, monkeypatch):
    """Medians are given here, so every figure of the file can be worked out by hand."""
    medians = iter([10.0, 20.0, 6.0, 8.0, 4.0, 5.0])
    calls = []

    def measured(call, device, warmup, trials):
        calls.append((call(), warmup, trials))
        return {"median_ms": next(medians)}

    monkeypatch.setattr(classifier, "measure", measured)
    suite = load_suite(str(suite_file(write_suite)))
    found = time_classifier(suite, device=CPU, results=tmp_path, trials=3)
    assert read_json(tmp_path / "classifier.json") == found
    assert (found["grid"], found["cells"], found["batch"]) == ([3, 3], 9, 9)
    assert (found["crop"], found["image"], found["net"]) == (63, 127, "small")
    assert (found["precision"], found["device"]) == ("fp32", "cpu")
    assert (found["forward_ms"], found["backward_ms"]) == (10, 20)
    assert (found["per_crop_batched_ms"], found["per_crop_batched_backward_ms"]) == pytest.approx(
        (6 / 9, 8 / 9)
    )
    assert (found["per_crop_single_ms"], found["per_crop_single_backward_ms"]) == (4, 5)
    assert found["speedup"] == pytest.approx(
        {"forward": 0.6, "backward": 0.4, "forward_single": 3.6, "backward_single": 2.25}
    )
    assert {(warmup, trials) for _, warmup, trials in calls} == {(1, 3)}
    shapes = [tuple(result.shape) for result, _, _ in calls[::2]]
    assert shapes == [(1, 1000, 3, 3), (9, 1000), (1, 1000)]
    assert all(isinstance(result, tuple) for result, _, _ in calls[1::2])  # gradients


def test_on_a_cpu_the_batch_is_bounded(write_suite, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "BATCH_CPU", 2)
    suite = load_suite(str(suite_file(write_suite)))
    found = time_classifier(suite, device=CPU, results=tmp_path, trials=2)
    batch = found["measurements"]["batch_forward"]
    assert found["batch"] == 2 and batch["trials"] == 2
    assert found["per_crop_batched_ms"] == pytest.approx(batch["median_ms"] / 2)
    for measurement in found["measurements"].values():
        assert 0 < measurement["min_ms"] <= measurement["median_ms"] <= measurement["max_ms"]


def test_command_line(write_suite, tmp_path, capsys):
    options = ["--results", str(tmp_path), "--device", "cpu", "--trials", "1"]
    plain = write_suite(name="plain.yaml")
    assert main(["classifier", "--suite", str(plain), *options]) == 2
    said = capsys.readouterr().err
    assert (
        "plain.yaml: no classifier is named; add classifier: {net: .., crop: .., image: ..} ("
        in said
    )
    small = suite_file(write_suite, image=30)
    assert main(["classifier", "--suite", str(small), *options]) == 2
    assert "30 pixels are too few for small" in capsys.readouterr().err
    assert not (tmp_path / "classifier.json").exists()
    assert main(["classifier", "--suite", str(suite_file(write_suite)), *options]) == 0
    assert (tmp_path / "classifier.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": 0}, r"classifier\.crop"),
        ({"size": 3}, "no key 'size'"),
        ({"net": None}, r"classifier\.net: None is not text"),
    ],
)
def test_the_option_is_checked(write_suite, change, message):
    with pytest.raises(UserError, match=message):
        load_suite(str(suite_file(write_suite, **change)))


def test_the_demo_s_grid_is_the_paper_s(demo):
    _, convolutional = classifier_nets(
        demo.resolved_net(demo.classifier["net"]), demo.classifier["crop"]
    )
    assert cells_after(demo.classifier["image"], convolutional) == 10
