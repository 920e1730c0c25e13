"""Labelling images of one's own: the same argmax as the net's, for every image that there is."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fcn import predict
from fcn.__main__ import main
from fcn.data.labels import ORIENTATION, VOID, voc_palette
from fcn.device import autocast
from fcn.errors import UserError
from fcn.inputs import preprocess
from fcn.nets import build
from fcn.nets.padded import PaddedTrunk, for_inference
from fcn.weights import caffemodel
from fcn.weights.backbone import initialise
from fcn.weights.named import named_tensors, read, save
from tests.caffemodel_writer import write

BGR = {"order": "bgr", "mean": [104.0, 117.0, 123.0], "std": [1.0, 1.0, 1.0]}
RGB = {"order": "rgb", "mean": [120.0, 110.0, 100.0], "std": [50.0, 60.0, 70.0]}


def random_net(config, classes, seed=0):
    """A net whose score layers tell pixels apart, so that the labels are not all one class."""
    net = build({**config, "score_init": "random"}, {"semantic": classes}).eval()
    initialise(net, seed)
    torch.manual_seed(seed)
    for module in net.heads.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)  # type: ignore[arg-type]
    return net


def write_caffemodel(path, net, leave_out=(), extra=()):
    """The net's weights as Caffe writes them; fixed upsampling as its full C x C kernel."""
    tensors = named_tensors(net)
    layers = []
    for key in (k for k in tensors if not k.endswith(".bias")):
        name = key.rsplit(".", 1)[0]
        if name in leave_out:
            continue
        blobs = [tensors[key].detach().numpy()]
        kind = "Scale" if key.endswith(".scale") else "Convolution"
        if name.startswith("upscore"):
            kind = "Deconvolution"
            classes, _, k, _ = blobs[0].shape
            full = np.zeros((classes, classes, k, k), np.float32)
            full[range(classes), range(classes)] = blobs[0][:, 0]
            blobs = [full]
        elif f"{name}.bias" in tensors:
            blobs.append(tensors[f"{name}.bias"].detach().numpy())
        layers.append(caffemodel.Layer(name, kind, blobs))
    write(path, [*layers, *extra])
    return path


def write_ours(path, config, classes, convention=RGB, seed=0):
    net = random_net(config, len(classes), seed)
    about = {"net": config, "classes": {"semantic": classes}, "input": convention}
    save(path, named_tensors(net), about)
    return net


SLIM = {"width": 0.1, "hidden": 8}
COLOURS = ["sky", "grass", "cow", "road"]


@pytest.fixture(scope="module")
def googlenet(tmp_path_factory):
    """FCN-GoogLeNet with random weights and its .caffemodel (24 MB)."""
    net = random_net(predict.named_net("voc-fcn-googlenet"), 21)
    path = tmp_path_factory.mktemp("googlenet") / "net.caffemodel"
    extra = [caffemodel.Layer("loss3/classifier", "InnerProduct", [np.ones((2, 3), np.float32)])]
    return net, write_caffemodel(path, net, extra=extra)


@pytest.fixture(scope="module")
def slim(tmp_path_factory):
    """A slim FCN-8s of ours with four classes, RGB input and reference padding."""
    path = tmp_path_factory.mktemp("slim") / "model.safetensors"
    config = {**predict.named_net("voc-fcn8s"), **SLIM}
    return write_ours(path, config, COLOURS), path


def photo(path, size=(60, 80), seed=0, mode="RGB", **options):
    """A file with smooth random content; ``size`` is (height, width)."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    image = Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC)
    path.parent.mkdir(exist_ok=True, parents=True)
    image.convert(mode).save(path, **options)
    return path


@torch.inference_mode()
def expected(net, rgb, convention):
    """Labels (H, W) of the net's own forward, the preprocessing written anew."""
    x = rgb.astype(np.float32)
    if convention["order"] == "bgr":
        x = x[..., ::-1]
    x = (x - np.float32(convention["mean"])) / np.float32(convention["std"])
    scores = net(torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1)))[None])["semantic"]
    return scores[0].argmax(0).numpy()


def run(*arguments, weights, net="auto", out):
    command = ["predict", "--device", "cpu", "--net", net, "--weights", weights, "--out", out]
    return main([str(a) for a in [*command, *arguments]])


def test_caffemodel_labels_are_the_argmax_of_the_net(googlenet, tmp_path, capsys):
    net, weights = googlenet
    image = photo(tmp_path / "in/a photo.png", (131, 173))
    assert run(image, net="voc-fcn-googlenet", weights=weights, out=tmp_path / "out") == 0
    with Image.open(tmp_path / "out/a photo.png") as written:
        assert written.mode == "P" and written.size == (173, 131)
        assert written.getpalette() == voc_palette().ravel().tolist()
        labels = np.array(written)
    truth = expected(net, np.array(Image.open(image)), BGR)
    assert len(np.unique(truth)) > 2
    np.testing.assert_array_equal(labels, truth)
    said = capsys.readouterr()
    assert "left unused: loss3/classifier" in said.err
    shares = [float(part.split()[-2]) for part in said.out.split(": ", 1)[1].split(",")]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(100, abs=1)


def test_our_own_file_says_net_classes_and_input(slim, tmp_path, capsys):
    net, weights = slim
    image = photo(tmp_path / "in/x.png", (40, 50), seed=3)
    for name in ("auto", "voc-fcn8s"):
        assert run(image, net=name, weights=weights, out=tmp_path / name) == 0
        labels = np.array(Image.open(tmp_path / name / "x.png"))
        np.testing.assert_array_equal(labels, expected(net, np.array(Image.open(image)), RGB))
        said = capsys.readouterr().out
        assert any(colour in said for colour in COLOURS)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_labels_are_those_of_evaluation(slim, precision):
    """The same arithmetic, on the window that the image reaches: to the last tie."""
    labeller = predict.load("auto", slim[1], precision=precision)
    fixed = for_inference(slim[0].to(memory_format=torch.channels_last), precision)
    rng = np.random.default_rng(5)
    for size in ((60, 80), (33, 47)):
        image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        x = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
        with torch.inference_mode(), autocast(precision, predict.CPU):
            scores = fixed(preprocess(x, RGB, predict.CPU))["semantic"]
        np.testing.assert_array_equal(labeller(image), scores[0].argmax(0).numpy())


def test_at_once_net_from_a_caffemodel_without_its_upsampling(tmp_path, monkeypatch):
    """Scale layers come from the file; the authors' padding by 100 makes room for one pixel."""
    config = predict.named_net("voc-fcn8s-atonce") | {"hidden": 8}  # 60 MB instead of 540
    monkeypatch.setattr(predict, "named_net", lambda name: config)
    net = random_net(config, 21)
    net.heads["semantic"].scale_pool4.scale.fill_(0.02)
    weights = write_caffemodel(
        tmp_path / "net.caffemodel", net, {"upscore2", "upscore_pool4", "upscore8"}
    )
    for size in (1, 1), (41, 30):
        image = photo(tmp_path / f"in/{size[0]}.png", size)
        assert run(image, net="voc-fcn8s-atonce", weights=weights, out=tmp_path / "out") == 0
        labels = np.array(Image.open(tmp_path / f"out/{size[0]}.png"))
        convention = {**BGR, "mean": [104.00699, 116.66877, 122.67892]}
        truth = expected(net, np.array(Image.open(image)), convention)
        np.testing.assert_array_equal(labels, truth)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (2, 3), (500, 3)])
def test_tiny_and_narrow_images(slim, size, tmp_path):
    image = photo(tmp_path / "in/x.png", size)
    assert run(image, weights=slim[1], out=tmp_path / "out") == 0
    labels = np.array(Image.open(tmp_path / "out/x.png"))
    assert labels.shape == size
    np.testing.assert_array_equal(labels, expected(slim[0], np.array(Image.open(image)), RGB))


def test_too_small_for_a_net_without_padding(googlenet, tmp_path, capsys):
    image = photo(tmp_path / "x.png", (8, 90))
    assert run(image, net="voc-fcn-googlenet", weights=googlenet[1], out=tmp_path / "o") == 2
    assert "90x8 pixels is too small" in capsys.readouterr().err


def test_too_large_for_the_memory(slim, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(predict, "_physical_memory", lambda: 30_000_000)
    small, large = photo(tmp_path / "s.png", (20, 20)), photo(tmp_path / "l.png", (2000, 3000))
    assert run(large, small, weights=slim[1], out=tmp_path / "out") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "l.png: 3000x2000 pixels need more memory than there is; scale" in error
    assert (tmp_path / "out/s.png").exists() and not (tmp_path / "out/l.png").exists()


def test_memory_grows_with_the_largest_layer():
    config = predict.named_net("voc-fcn32s") | {"hidden": 8}
    labeller = predict.Labeller(random_net(config, 21), ["x"] * 21, BGR)
    conv1_2 = 2 * 64 * 4  # its input and its output; the padding by 100 is little of a large image
    assert 1.0 < labeller._memory(1000) / (1000 * conv1_2) < 1.15
    assert isinstance(labeller.fast.trunk, PaddedTrunk)
    assert not labeller.fast.trunk._quiet  # nothing of this is left to the images


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("L", "png"),
        ("P", "png"),
        ("RGBA", "png"),
        ("LA", "png"),
        ("1", "png"),
        ("CMYK", "jpg"),
        ("RGB", "jpg"),
        ("RGB", "webp"),
        ("P", "gif"),
        ("YCbCr", "tif"),
    ],
)
def test_modes_of_images(slim, mode, suffix, tmp_path):
    image = photo(tmp_path / f"in/x.{suffix}", mode=mode)
    assert run(image, weights=slim[1], out=tmp_path / "out") == 0
    rgb = np.array(Image.open(image).convert("RGB"))
    labels = np.array(Image.open(tmp_path / "out/x.png"))
    np.testing.assert_array_equal(labels, expected(slim[0], rgb, RGB))


def test_16_bit_grey_is_the_8_bit_image_at_a_finer_scale(tmp_path):
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(grey * 257).save(tmp_path / "deep.png")
    assert Image.open(tmp_path / "deep.png").mode.startswith("I")
    found = predict.read_image(tmp_path / "deep.png")
    np.testing.assert_array_equal(found, np.repeat(grey[..., None], 3, 2))


def test_orientation_is_left_alone_and_told(tmp_path, capsys):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    photo(tmp_path / "x.jpg", (30, 50), exif=exif)
    assert predict.read_image(tmp_path / "x.jpg").shape == (30, 50, 3)
    assert "EXIF orientation (6) is not applied" in capsys.readouterr().err


@pytest.mark.parametrize("orientation", [3, 6])
def test_orientation_of_a_tiff_is_left_alone_and_told(tmp_path, capsys, orientation):
    path = photo(tmp_path / "x.tif", (30, 50), compression="tiff_lzw")
    as_stored = predict.read_image(path)
    assert capsys.readouterr().err == ""
    tags = {ORIENTATION: orientation}
    photo(path, (30, 50), compression="tiff_lzw", tiffinfo=tags)
    np.testing.assert_array_equal(predict.read_image(path), as_stored)
    assert f"EXIF orientation ({orientation}) is not applied" in capsys.readouterr().err


def test_overlay_blends_and_leaves_void_alone(slim, tmp_path):
    image = photo(tmp_path / "in/x.png")
    assert run("--overlay", image, weights=slim[1], out=tmp_path / "out") == 0
    rgb = np.array(Image.open(image)).astype(int)
    labels = np.array(Image.open(tmp_path / "out/x.png"))
    blended = np.array(Image.open(tmp_path / "out/x_overlay.png")).astype(int)
    assert np.abs(2 * blended - rgb - voc_palette()[labels]).max() <= 1
    void = np.full(rgb.shape[:2], VOID, np.uint8)
    np.testing.assert_array_equal(predict.overlay(rgb.astype(np.uint8), void), rgb)


def test_a_folder_means_its_images_and_bad_ones_do_not_stop_the_rest(slim, tmp_path, capsys):
    folder = tmp_path / "in"
    for name in ("b.png", "a.JPG"):
        photo(folder / name, (20, 20))
    (folder / "broken.jpg").write_bytes((folder / "a.JPG").read_bytes()[:200])
    (folder / "text.png").write_text("not an image")
    (folder / "notes.txt").write_text("left alone")
    (folder / ".hidden.png").write_text("left alone")
    assert run(folder, tmp_path / "gone.png", weights=slim[1], out=tmp_path / "out") == 2
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: 3 of 5 images not labelled: ")
    assert "text.png: not an image that can be read" in error
    assert "broken.jpg: not readable" in error and "gone.png: no such file" in error


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (("1/x.png", "2/x.jpg"), (), "out/x.png; rename one"),
        (("1/X.png", "2/x.jpg"), (), "out/x.png, where capitals and small letters are the same;"),
        (("1/x.png", "2/x_overlay.jpg"), ("--overlay",), "would both be written to"),
        (("out/x.png",), (), "is one of the images"),
    ],
)
def test_outputs_that_would_be_lost_are_refused_before_work(
    names, options, message, tmp_path, capsys
):
    images = [photo(tmp_path / name, (5, 5)) for name in names]
    before = [p.read_bytes() for p in images]
    assert run(*options, *images, weights=tmp_path / "none", out=tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert [p.read_bytes() for p in images] == before
    assert not (tmp_path / "out").exists() or len(list((tmp_path / "out").iterdir())) == 1


def test_an_image_is_not_replaced_under_another_name(tmp_path, capsys):
    """A hard link, as capitals make no other file on many systems: x.PNG is there also x.png."""
    image = photo(tmp_path / "in/x.PNG", (5, 5))
    for name in ("x.png", "x_overlay.png"):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / name).hardlink_to(image)
        assert run("--overlay", image, weights=tmp_path / "none", out=tmp_path / "out") == 2
        assert f"{name} is one of the images, labels would replace it" in one_error(capsys)
        (tmp_path / "out" / name).unlink()


def test_an_image_that_is_given_twice_is_told(tmp_path, capsys):
    image = photo(tmp_path / "x.png", (5, 5))
    assert run(image, image, weights=tmp_path / "none", out=tmp_path / "out") == 2
    assert "would both be written to" in one_error(capsys)


def one_error(capsys):
    lines = [ln for ln in capsys.readouterr().err.splitlines() if ln.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_bad_folders(slim, tmp_path, capsys):
    image = photo(tmp_path / "x.png", (5, 5))
    assert run(image, weights=slim[1], out=image) == 2
    assert "cannot be made" in one_error(capsys)
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", weights=slim[1], out=tmp_path / "out") == 2
    assert "no images in this folder" in one_error(capsys)


def test_bad_weights(googlenet, slim, tmp_path, capsys):
    image = photo(tmp_path / "x.png", (40, 40))
    backbone = tmp_path / "backbone.safetensors"
    save(backbone, named_tensors(slim[0].trunk), {"architecture": "vgg16"})
    headless = tmp_path / "broken.safetensors"
    headless.write_bytes(slim[1].read_bytes()[:-100])
    (tmp_path / "net.prototxt").write_text('name: "net"')
    absent = write_caffemodel(
        tmp_path / "absent.caffemodel", googlenet[0], {"score_fr", "inception_3a/1x1"}
    )
    for name, weights, message in (
        ("voc-fcn8s", tmp_path / "gone.caffemodel", "gone.caffemodel: no such file"),
        ("voc-fcn8s", tmp_path / "gone.safetensors", "gone.safetensors: no such file"),
        ("voc-fcn8s", tmp_path / "net.prototxt", "not a binary caffemodel"),
        ("voc-fcn9s", slim[1], "did you mean"),
        ("auto", googlenet[1], "does not say what net it is of"),
        ("voc-fcn-alexnet", googlenet[1], "lacks the layers conv1, "),
        ("voc-fcn-googlenet", absent, "lacks the layers inception_3a/1x1, score_fr"),
        ("voc-fcn32s", slim[1], "skips is ['pool4', 'pool3'], not []"),
        ("voc-fcn8s-atonce", slim[1], "scales is {}, not {'pool4': 0.01"),
        ("auto", backbone, "describes no trained net"),
        ("auto", headless, "not a whole safetensors file"),
    ):
        assert run(image, net=name, weights=weights, out=tmp_path / "out") == 2
        assert message in one_error(capsys)
    assert not list((tmp_path / "out").iterdir())


def test_weights_of_another_number_of_classes(googlenet, tmp_path):
    layers = list(caffemodel.read(googlenet[1]).values())
    layers = [
        caffemodel.Layer("score_fr", "Convolution", [np.ones((5, 1024, 1, 1), np.float32)])
        if layer.name == "score_fr"
        else layer
        for layer in layers
    ]
    write(tmp_path / "five.caffemodel", layers)
    with pytest.raises(UserError, match=r"five\.caffemodel: layer 'score_fr'"):
        predict.load("voc-fcn-googlenet", tmp_path / "five.caffemodel")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(googlenet, slim, value, tmp_path, capsys):
    image = photo(tmp_path / "x.png", (40, 40))
    tensors, about = read(slim[1])
    tensors["conv1_2.bias"][0] = value
    save(tmp_path / "ours.safetensors", tensors, about)
    layers = caffemodel.read(googlenet[1])
    blobs = [blob.copy() for blob in layers["score_fr"].blobs]
    blobs[0].flat[-1] = value
    layers["score_fr"] = caffemodel.Layer("score_fr", "Convolution", blobs)
    write(tmp_path / "theirs.caffemodel", list(layers.values()))
    for net, name, layer in (
        ("auto", "ours.safetensors", "the weights conv1_2.bias are"),
        ("voc-fcn-googlenet", "theirs.caffemodel", "layer 'score_fr': the file's weights are"),
    ):
        assert run(image, net=net, weights=tmp_path / name, out=tmp_path / "out") == 2
        assert f"{name}: {layer} not all finite" in one_error(capsys)
    assert not list((tmp_path / "out").iterdir())


def test_16_bit_grey_keeps_its_upper_eight_bits(tmp_path):
    Image.fromarray(np.array([[0x00FF, 0x0100, 0xFF00]], np.uint16)).save(tmp_path / "deep.png")
    assert predict.read_image(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 1, 255]


def test_images_of_a_folder_come_by_name(tmp_path, monkeypatch):
    for name in ("b.png", "a.png", "c.png"):
        (tmp_path / name).touch()
    listed = [tmp_path / name for name in ("c.png", "a.png", "b.png")]
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(listed))
    assert [path.name for path in predict.find_images([tmp_path])] == ["a.png", "b.png", "c.png"]
