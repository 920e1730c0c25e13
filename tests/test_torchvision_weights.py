"""Weights of torchvision's own models, converted, compute what those models compute."""

import io

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from fcn.errors import UserError
from fcn.nets.trunks import build_trunk
from fcn.options import NET_DEFAULTS
from fcn.weights.torchvision import load_torchvision


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Well-scaled weights and batch statistics that are anything but the identity."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.3, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, std=0.3, generator=generator)
            nn.init.normal_(module.running_mean, std=0.5, generator=generator)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.01, 2, generator=generator)  # type: ignore[arg-type]
    return model.eval()


@pytest.fixture(scope="module")
def googlenet():
    return randomise(
        torchvision.models.googlenet(weights=None, init_weights=False, aux_logits=True)
    )


def slim(architecture):
    """The real net with narrow fully connected layers, so that the test is fast."""
    maker = getattr(torchvision.models, architecture)
    with torch.device("meta"):
        model = maker(weights=None)
    side = 6 if architecture == "alexnet" else 7
    channels = 256 if architecture == "alexnet" else 512
    first = 1 if architecture == "alexnet" else 0
    model.classifier[first] = nn.Linear(channels * side**2, 24)
    model.classifier[first + 3] = nn.Linear(24, 16)
    model.classifier[6] = nn.Linear(16, 10)
    return randomise(model.to_empty(device="cpu"))


def converted(tmp_path, model, architecture):
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    return load_torchvision(tmp_path / "weights.pth", architecture)


def conv(tensors: dict[str, Tensor], name: str, x: Tensor, stride: int = 1, pad: int = 0) -> Tensor:
    weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
    return F.conv2d(x, weight, bias, stride, pad)


def classify(tensors: dict[str, Tensor], x: Tensor) -> Tensor:
    for name in ("fc6", "fc7"):
        x = F.relu(conv(tensors, name, x))
    return conv(tensors, "fc8", x)


def assert_close(found, expected):
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("architecture, blocks", [("vgg16", "22333"), ("vgg19", "22444")])
@torch.inference_mode()
def test_vgg(tmp_path, architecture, blocks):
    model = slim(architecture)
    tensors = converted(tmp_path, model, architecture)
    image = torch.randn(1, 3, 32, 32)
    x = image
    for block, count in enumerate(blocks, start=1):
        for i in range(1, int(count) + 1):
            x = F.relu(conv(tensors, f"conv{block}_{i}", x, pad=1))
        x = F.max_pool2d(x, 2)
    assert_close(x, model.features(image))
    # The fully connected layers, slid over a map larger than what they were trained on.
    features = torch.randn(1, 512, 8, 9)
    scores = classify(tensors, features)
    assert scores.shape == (1, 10, 2, 3)
    for row in range(2):
        for column in range(3):
            window = features[:, :, row : row + 7, column : column + 7].flatten(1)
            assert_close(scores[:, :, row, column], model.classifier(window))


@pytest.mark.parametrize("name", ["alexnet", "alexnet-owt"])
@torch.inference_mode()
def test_alexnet(tmp_path, name):
    model = slim("alexnet")
    tensors = converted(tmp_path, model, name)
    image = torch.randn(1, 3, 71, 83)
    x = F.max_pool2d(F.relu(conv(tensors, "conv1", image, 4, 2)), 3, 2)
    x = F.max_pool2d(F.relu(conv(tensors, "conv2", x, pad=2)), 3, 2)
    for name in ("conv3", "conv4", "conv5"):
        x = F.relu(conv(tensors, name, x, pad=1))
    assert_close(F.max_pool2d(x, 3, 2), model.features(image))
    features = torch.randn(1, 256, 6, 6)
    assert_close(classify(tensors, features).flatten(1), model.classifier(features.flatten(1)))
    assert tensors["fc6.weight"].shape == (24, 256, 6, 6)


def pooled(x: Tensor, kernel: int, stride: int, pad: int = 0) -> Tensor:
    return F.max_pool2d(x, kernel, stride, pad, ceil_mode=True)


def inception(tensors: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    def step(layer: str, x: Tensor, pad: int = 0) -> Tensor:
        return F.relu(conv(tensors, f"inception_{name}/{layer}", x, pad=pad))

    branches = [
        step("1x1", x),
        step("3x3", step("3x3_reduce", x), 1),
        step("5x5", step("5x5_reduce", x), 1),
        step("pool_proj", pooled(x, 3, 1, 1)),
    ]
    return torch.cat(branches, 1)


@torch.inference_mode()
def test_googlenet_with_folded_batch_normalisation(tmp_path, googlenet):
    tensors = converted(tmp_path, googlenet, "googlenet")
    image = torch.randn(1, 3, 75, 66)
    x = pooled(F.relu(conv(tensors, "conv1/7x7_s2", image, 2, 3)), 3, 2)
    x = F.relu(conv(tensors, "conv2/3x3", F.relu(conv(tensors, "conv2/3x3_reduce", x)), pad=1))
    x = pooled(x, 3, 2)
    for name in ("3a", "3b"):
        x = inception(tensors, name, x)
    x = pooled(x, 3, 2)
    for name in ("4a", "4b", "4c", "4d", "4e"):
        x = inception(tensors, name, x)
        if name in ("4a", "4d"):  # the auxiliary heads of torchvision read these
            head = "1" if name == "4a" else "2"
            aux = getattr(googlenet, f"aux{head}")
            y = F.relu(conv(tensors, f"loss{head}/conv", F.adaptive_avg_pool2d(x, 4)))
            y = F.relu(conv(tensors, f"loss{head}/fc", y))
            assert_close(conv(tensors, f"loss{head}/classifier", y).flatten(1), aux(x))
    x = pooled(x, 2, 2)
    for name in ("5a", "5b"):
        x = inception(tensors, name, x)
    scores = conv(tensors, "loss3/classifier", x.mean((2, 3), keepdim=True)).flatten(1)
    assert_close(scores, googlenet(image))
    # Without the folding it would be another net.
    state = googlenet.state_dict()
    assert not torch.allclose(tensors["conv1/7x7_s2.weight"], state["conv1.conv.weight"], rtol=0.1)
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())


@torch.inference_mode()
def test_our_googlenet_trunk_computes_torchvisions_features(tmp_path, googlenet):
    net = {**NET_DEFAULTS, "architecture": "googlenet-torchvision", "padding": "tight"}
    trunk = build_trunk(net, channels=3).eval()
    tensors = converted(tmp_path, googlenet, "googlenet-torchvision")
    for key, target in trunk.layers.state_dict().items():
        target.copy_(tensors[".".join(key.split(".")[-2:])])
    image, features = torch.randn(1, 3, 97, 83), []
    handle = googlenet.inception5b.register_forward_hook(lambda *call: features.append(call[2]))
    googlenet(image)
    handle.remove()
    assert_close(trunk(image, frozenset(["inception_5b"]))["inception_5b"], features[0])


def test_a_googlenet_without_auxiliary_heads(tmp_path, googlenet):
    state = {k: v for k, v in googlenet.state_dict().items() if not k.startswith("aux")}
    torch.save(state, tmp_path / "weights.pth")
    tensors = load_torchvision(tmp_path / "weights.pth", "googlenet-torchvision")
    assert len(tensors) == 2 * (57 + 1)
    assert not any(name.startswith(("loss1", "loss2")) for name in tensors)


def alexnet_state():
    return slim("alexnet").state_dict()


def without(state, key):
    return {name: value for name, value in state.items() if name != key}


def nan_classifier(state):
    state["classifier.1.weight"][3, 5] = float("nan")
    return state


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda s: without(s, "features.3.bias"), r"lacks features\.3\.bias"),
        (lambda s: s | {"features.99.weight": torch.ones(1)}, r"features\.99\.weight too"),
        (nan_classifier, r"classifier\.1\.weight is not finite"),
        (lambda s: s | {"classifier.1.weight": torch.zeros(4, 35)}, r"\(4, 35\) .* 6x6"),
        (lambda s: s | {"epoch": 3}, "not a state dict"),
        (lambda s: [s], "not a state dict"),
    ],
)
def test_other_weights_are_refused(tmp_path, spoil, words):
    torch.save(spoil(alexnet_state()), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=words) as error:
        load_torchvision(tmp_path / "weights.pth", "alexnet")
    assert "weights.pth" in str(error.value)


class Danger:
    """Unpickling it would run code."""

    def __reduce__(self):
        return (pytest.fail, ("pickled code was run",))


def test_files_that_are_no_weights(tmp_path):
    whole = io.BytesIO()
    torch.save({"a": torch.ones(100)}, whole)
    path = tmp_path / "weights.pth"
    for content in (b"", b"<html>", whole.getvalue()[:200], whole.getvalue()[:-30]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"weights\.pth"):
            load_torchvision(path, "vgg16")
    torch.save({"a": Danger()}, path)
    with pytest.raises(UserError, match=r"weights\.pth"):
        load_torchvision(path, "vgg16")
    with pytest.raises(UserError, match="cannot be read"):
        load_torchvision(tmp_path / "none.pth", "vgg16")
    with pytest.raises(UserError, match="resnet50"):
        load_torchvision(path, "resnet50")
