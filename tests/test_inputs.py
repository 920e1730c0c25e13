"""What a net reads: preprocessing, several inputs, hidden pixels, canvases; class weights."""

import math

import numpy as np
import pytest
import torch

from fcn import predict
from fcn.data.dataset import SegmentationSet
from fcn.errors import UserError
from fcn.evaluate import evaluate_run, load_set
from fcn.files import read_json
from fcn.inputs import class_weights, count_pixels, net_input, preprocess
from fcn.loss import batch_loss
from fcn.train import train
from fcn.weights.named import read

CPU = torch.device("cpu")
VOID = 255

pytestmark = pytest.mark.usefixtures("one_thread")


def batch_of(data_dir, size=(40, 56)):
    """The first image of the tiny set as a batch of one, with all its inputs and label sets."""
    whole = SegmentationSet(
        data_dir / "prepared" / "tiny", "train", ("image", "depth"), ("semantic", "geometric")
    )
    item = whole[0]
    return {key: value[None] for key, value in item.items() if key != "id"}


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_preprocessing_by_hand(order):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, 3, 4, 5), dtype=np.uint8)
    mean, std = [104.0, 117.5, 123.0], [58.0, 2.0, 0.5]
    before = image.copy()
    found = preprocess(torch.from_numpy(image), {"order": order, "mean": mean, "std": std}, CPU)
    channels = image[:, ::-1] if order == "bgr" else image
    expected = (channels - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    real = torch.from_numpy(image).float()
    preprocess(real, {"order": "file", "mean": mean, "std": std}, CPU)
    np.testing.assert_array_equal(image, before)  # the input is left as it was
    np.testing.assert_array_equal(real, before)
    ones = preprocess(
        torch.from_numpy(image), {"order": order, "mean": mean, "std": [1, 1, 1]}, CPU
    )
    np.testing.assert_allclose(ones, expected * np.array(std)[:, None, None], rtol=1e-5, atol=1e-4)


def test_depth_is_its_logarithm_and_holes_are_the_mean():
    depth = torch.tensor([0.0, 1.0, 2550.0, 8000.0]).view(1, 1, 2, 2)
    convention = {"order": "file", "mean": [7.844], "std": [1.0], "log": True}
    found = preprocess(depth, convention, CPU).flatten().tolist()
    expected = [0.0, -7.844, math.log(2550) - 7.844, math.log(8000) - 7.844]
    assert found == pytest.approx(expected, abs=1e-5)


def test_inputs_are_joined_in_the_order_of_the_net(make_run, data_dir):
    batch = batch_of(data_dir)
    run = make_run(net={"base": "slim", "inputs": ["image", "depth"]})
    x = net_input(batch, run, CPU, "train")
    assert x.shape[1] == 4
    torch.testing.assert_close(x[:, :3], preprocess(batch["image"], run.config["input"], CPU))
    depth = run.config["inputs"]["depth"]
    assert depth == {"order": "file", "mean": [9.2], "std": [1.0], "log": True}
    torch.testing.assert_close(x[:, 3:], preprocess(batch["depth"], depth, CPU))
    other = make_run(net={"base": "slim", "inputs": ["depth", "image"]})
    torch.testing.assert_close(net_input(batch, other, CPU, "train"), x[:, [3, 0, 1, 2]])


@pytest.mark.parametrize("hidden", ["foreground", "background", "both"])
def test_masks_hide_what_they_say(make_run, data_dir, hidden):
    batch = batch_of(data_dir)
    run = make_run(mask={"train": hidden, "test": "none"})
    plain = preprocess(batch["image"], run.config["input"], CPU)
    torch.testing.assert_close(net_input(batch, run, CPU, "test"), plain)
    x = net_input(batch, run, CPU, "train")
    ground = (batch["semantic"] == 0)[:, None].expand_as(x)
    assert ground.any() and (~ground).any()
    if hidden == "both":
        black = preprocess(torch.zeros_like(batch["image"]), run.config["input"], CPU)
        white = preprocess(torch.full_like(batch["image"], 255), run.config["input"], CPU)
        torch.testing.assert_close(x, torch.where(ground, black, white))
    else:
        shown = ground if hidden == "foreground" else ~ground
        torch.testing.assert_close(x, torch.where(shown, plain, 0.0))


def test_what_is_outside_the_extent_is_zero(make_run, data_dir):
    run = make_run()
    batch = batch_of(data_dir)
    height, width = batch["semantic"].shape[1:]
    padded = torch.nn.functional.pad(batch["image"], (0, 8, 0, 24), value=77)
    x = net_input({"image": padded, "extent": torch.tensor([[height, width]])}, run, CPU, "train")
    torch.testing.assert_close(x[:, :, :height, :width], net_input(batch, run, CPU, "train"))
    assert (x[:, :, height:] == 0).all() and (x[..., width:] == 0).all()


# ------------------------------------------------------------------------------------ class balance


def test_balanced_classes_weigh_the_same():
    counts = torch.tensor([600, 0, 300, 100])
    weights = class_weights(counts)
    total = weights.double() * counts
    torch.testing.assert_close(total[[0, 2, 3]], torch.full((3,), 1000 / 3, dtype=torch.float64))
    assert weights[1] == 0 and total.sum() == pytest.approx(counts.sum())
    labels = [torch.tensor([[0, 2], [VOID, 3]], dtype=torch.uint8)] * 2
    assert count_pixels(labels, 4).tolist() == [2, 0, 2, 2]


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_class_weights_scale_the_loss_of_their_pixels(kind):
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(2, 3, 4, 5, generator=generator)
    truth = torch.randint(0, 3, (2, 4, 5), generator=generator).to(torch.uint8)
    truth[0, 0] = VOID
    weights = torch.tensor([0.5, 2.0, 3.0])
    by_class = []
    for task in range(3):
        alone = torch.where(truth == task, truth, VOID)
        by_class.append(batch_loss(scores, alone, kind, False)[0])
    found = batch_loss(scores, truth, kind, False, weights)[0]
    torch.testing.assert_close(
        found, sum(w * part for w, part in zip(weights, by_class, strict=True))
    )


# ------------------------------------------------------------------- whole runs of the other kinds

KINDS = {
    "early fusion": {"net": {"base": "slim", "inputs": ["image", "depth"]}},
    "late fusion": {
        "net": {"base": "slim", "inputs": ["image", "depth"], "fusion": "late", "skips": []}
    },
    "two heads": {"labels": ["semantic", "geometric"]},
    "one other head": {"labels": ["geometric"]},
    "joined training sets": {"train": ["tiny/train", "square/train"]},
    "masked": {"mask": {"train": "background", "test": "foreground"}},
    "balanced": {"recipe": {"base": "short", "class_balance": True}},
    "canvas": {"recipe": {"base": "short", "canvas": 32, "scale": [0.8, 1.6]}},
    "null background": {
        "net": {"base": "slim", "null_background": True},
        "recipe": {"base": "short", "loss": "sigmoid"},
    },
}


@pytest.mark.parametrize("entry", KINDS.values(), ids=list(KINDS))
def test_runs_of_every_kind_train_and_are_scored(make_run, data_dir, tmp_path, entry, monkeypatch):
    phases: list[str] = []

    def watched(batch, run, device, phase):
        phases.append(phase)
        return net_input(batch, run, device, phase)

    for module in ("fcn.train", "fcn.evaluate"):
        monkeypatch.setattr(f"{module}.net_input", watched)
    run = make_run(**entry)
    result = train(run, 0, device=CPU, data_dir=data_dir, results=tmp_path)
    assert result["updates"] == 6 and math.isfinite(result["loss"])
    assert result["train_images"] == 8 * len(run.training_sets)
    assert set(phases) == {"train"}
    phases.clear()
    found = evaluate_run(run, 0, device=CPU, data_dir=data_dir, results=tmp_path)
    assert set(phases) == {"test"}
    assert list(found["tasks"]) == list(run.labels)
    names = read_json(data_dir / "prepared" / "tiny" / "dataset.json")["classes"]
    pixels = 0
    for task in run.labels:
        matrix = np.array(found["tasks"][task]["confusion"])
        assert matrix.shape == (len(names[task]),) * 2
        dataset = load_set(data_dir, run, "test")
        pixels = sum(int((dataset[i][task] != VOID).sum()) for i in range(len(dataset)))
        assert matrix.sum() == pixels
    tensors, about = read(run.directory(tmp_path, 0) / "model.safetensors")
    assert set(about["classes"]) >= set(run.labels)
    # score_fr starts at zero: training moved it
    assert all(v.abs().sum() > 0 for k, v in tensors.items() if "score_fr" in k and "weight" in k)


def test_a_trained_two_headed_net_labels_files_and_one_of_depth_refuses(
    make_run, data_dir, tmp_path
):
    two = make_run(labels=["semantic", "geometric"])
    deep = make_run(net={"base": "slim", "inputs": ["image", "depth"]})
    image = np.zeros((40, 56, 3), np.uint8)
    for run, folder in ((two, "two"), (deep, "deep")):
        train(run, 0, device=CPU, data_dir=data_dir, results=tmp_path / folder)
    weights = two.directory(tmp_path / "two", 0) / "model.safetensors"
    assert predict.load("auto", weights)(image).shape == (40, 56)
    weights = deep.directory(tmp_path / "deep", 0) / "model.safetensors"
    with pytest.raises(UserError, match="a net that reads image and depth"):
        predict.load("auto", weights)
