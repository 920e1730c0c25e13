"""Scoring a run: every file against a plain recomputation from the predictions and the truth."""

import gzip
import json
import shutil
import time

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask

from fcn.errors import UserError
from fcn.evaluate import check_sizes, evaluate, evaluate_run, load_set
from fcn.files import digest, read_json, write_json
from fcn.inputs import preprocess
from fcn.nets import build
from fcn.provenance import device_facts
from fcn.rle import read_predictions
from fcn.train import train
from fcn.weights.named import load_named, read, save

CPU = torch.device("cpu")
VOID = 255


@pytest.fixture
def scored(make_run, data_dir, tmp_path):
    """A run of random score layers (so that several classes are predicted), trained and scored."""
    run = make_run(net={"base": "slim", "score_init": "random"})
    train(run, 0, device=CPU, data_dir=data_dir, results=tmp_path)
    place = run.directory(tmp_path, 0)
    tensors, about = read(place / "model.safetensors")
    for name in ("score_fr", "score_pool4", "score_pool3"):  # predictions of many classes
        generator = torch.Generator().manual_seed(len(name))
        shape = tensors[f"{name}.weight"].shape
        tensors[f"{name}.weight"] = torch.randn(shape, generator=generator)
    save(place / "model.safetensors", tensors, about)
    record = read_json(place / "train.json")
    write_json(
        place / "train.json", record | {"weights_sha256": digest(place / "model.safetensors")}
    )
    found = evaluate_run(run, 0, device=CPU, data_dir=data_dir, results=tmp_path)
    return run, place, found


def predictions(place):
    """id -> (H, W) labels, decoded by COCO's own code."""
    content = json.loads(gzip.decompress((place / "predictions.json.gz").read_bytes()))
    results = content if isinstance(content, list) else content["annotations"]
    labels: dict[str, np.ndarray] = {}
    for entry in results:
        inside = mask.decode(entry["segmentation"]).astype(bool)
        label = labels.setdefault(entry["image_id"], np.full(inside.shape, VOID, np.uint8))
        assert (label[inside] == VOID).all()  # a pixel has one class
        label[inside] = entry["category_id"]
    return labels


def counts_by_hand(place, data_dir, split="val"):
    """(images, n, n) pixel by pixel, from the prediction file and the label PNGs."""
    prepared = data_dir / "prepared" / "tiny"
    ids = (prepared / "splits" / f"{split}.txt").read_text().split()
    names = read_json(prepared / "dataset.json")["classes"]["semantic"]
    decoded = predictions(place)
    assert sorted(decoded) == sorted(ids)
    matrices = np.zeros((len(ids), len(names), len(names)), int)
    for n, name in enumerate(ids):
        truth = np.array(Image.open(prepared / "labels" / f"{name}.png"))
        assert decoded[name].shape == truth.shape and (decoded[name] != VOID).all()
        for t, p in zip(truth.ravel(), decoded[name].ravel(), strict=True):
            if t != VOID:
                matrices[n, t, p] += 1
    return ids, names, matrices


def test_metrics_are_a_plain_recomputation(scored, data_dir):
    _, place, found = scored
    _, names, matrices = counts_by_hand(place, data_dir)
    total = matrices.sum(0)
    assert (total.sum(0) > 0).sum() > 2  # several classes are predicted, or the test says little
    task = read_json(place / "metrics.json")["tasks"]["semantic"]
    assert task == found["tasks"]["semantic"]
    assert task["confusion"] == total.tolist()
    hit, present, claimed = np.diagonal(total), total.sum(1), total.sum(0)
    assert task["pixel_accuracy"] == pytest.approx(hit.sum() / total.sum(), rel=1e-12)
    seen, union = present > 0, present + claimed - hit
    assert task["mean_accuracy"] == pytest.approx((hit[seen] / present[seen]).mean(), rel=1e-12)
    iu = {n: hit[i] / union[i] if union[i] else None for i, n in enumerate(names)}
    assert task["per_class_iu"] == pytest.approx(iu, rel=1e-12)
    defined = [value for value in iu.values() if value is not None]
    assert task["mean_iu"] == pytest.approx(np.mean(defined), rel=1e-12)
    weighted = (present[seen] * hit[seen] / union[seen]).sum() / present.sum()
    assert task["frequency_weighted_iu"] == pytest.approx(weighted, rel=1e-12)


def test_counts_of_each_image(scored, data_dir):
    _, place, found = scored
    ids, _, matrices = counts_by_hand(place, data_dir)
    with np.load(place / "per_image.npz") as arrays:
        assert arrays["ids"].tolist() == ids
        for name, expected in (
            ("true_positive", np.diagonal(matrices, axis1=1, axis2=2)),
            ("truth", matrices.sum(2)),
            ("predicted", matrices.sum(1)),
            ("predicted_on_objects", matrices[:, 1:].sum(1)),
        ):
            values = arrays[f"semantic_{name}"]
            assert values.dtype == np.int64
            np.testing.assert_array_equal(values, expected)
    total = np.array(found["tasks"]["semantic"]["confusion"])
    np.testing.assert_array_equal(matrices.sum(0), total)


def test_what_else_it_says(scored):
    run, place, found = scored
    stored = read_json(place / "metrics.json")
    assert stored == found
    assert (stored["run"], stored["dataset"], stored["split"], stored["seed"]) == (
        "run", "tiny", "val", 0,
    )  # fmt: skip
    assert stored["images"] == 4 and stored["subset"] is False
    assert stored["config_hash"] == run.hash and stored["config"] == run.config
    assert stored["provenance"]["device"] == device_facts(CPU)


def test_other_weights_than_those_of_train_json_are_not_scored(make_run, data_dir, tmp_path):
    run = make_run()
    for seed in (0, 1):
        train(run, seed, device=torch.device("cpu"), data_dir=data_dir, results=tmp_path)
    one, other = (run.directory(tmp_path, seed) / "model.safetensors" for seed in (0, 1))
    shutil.copy(other, one)
    with pytest.raises(UserError, match=r"seed0/model\.safetensors: not the weights that train"):
        evaluate_run(run, 0, device=torch.device("cpu"), data_dir=data_dir, results=tmp_path)
    (one.parent / "train.json").write_text("{}")
    with pytest.raises(UserError, match=r"train\.json: not written by this program"):
        evaluate_run(run, 0, device=torch.device("cpu"), data_dir=data_dir, results=tmp_path)


def test_labels_are_the_argmax_at_the_images_own_size(scored, data_dir):
    run, place, _ = scored
    dataset = load_set(data_dir, run, "test")
    net = build(run.config["net"], {"semantic": len(dataset.classes["semantic"])}).eval()
    tensors, _ = read(place / "model.safetensors")
    load_named(net, tensors, "model")
    decoded = predictions(place)
    for i in range(len(dataset)):
        item = dataset[i]
        with torch.inference_mode():
            scores = net(preprocess(item["image"][None], run.config["input"], CPU))["semantic"]
        assert scores.shape[2:] == item["semantic"].shape
        top = scores[0].topk(2, dim=0).values
        sure = (top[0] - top[1] > 1e-4 * scores.abs().max()).numpy()
        assert (scores[0].argmax(0).numpy() == decoded[item["id"]])[sure].all()
        assert sure.mean() > 0.9


def test_weights_of_another_configuration_are_refused(make_run, scored, data_dir, tmp_path):
    other = make_run(net={"base": "slim", "score_init": "random", "dropout": 0.1})
    with pytest.raises(UserError, match=rf"{other.hash}; train it again"):
        evaluate_run(other, 0, device=CPU, data_dir=data_dir, results=tmp_path)


def test_untrained_run_is_refused(make_run, data_dir, tmp_path):
    with pytest.raises(UserError, match=r"train\.json: no such file"):
        evaluate_run(make_run(), 0, device=CPU, data_dir=data_dir, results=tmp_path)


def test_weights_of_another_net_are_refused(scored, data_dir, tmp_path):
    run, place, _ = scored
    tensors, about = read(place / "model.safetensors")
    save(place / "model.safetensors", {**tensors, "fc8.bias": torch.zeros(3)}, about)
    with pytest.raises(UserError, match=r"weights of another net: the file has also fc8\.bias"):
        evaluate_run(run, 0, device=CPU, data_dir=data_dir, results=tmp_path)
    del tensors["conv3_2.weight"]
    save(place / "model.safetensors", tensors, about)
    with pytest.raises(UserError, match=r"weights of another net: the file lacks conv3_2\.weight"):
        evaluate_run(run, 0, device=CPU, data_dir=data_dir, results=tmp_path)
    (place / "model.safetensors").write_bytes(b"\x08half")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        evaluate_run(run, 0, device=CPU, data_dir=data_dir, results=tmp_path)


def test_subset_is_passed_on(scored, data_dir, tmp_path):
    run, place, _ = scored
    trained = read_json(place / "train.json")
    write_json(place / "train.json", {**trained, "subset": True})
    found = evaluate_run(run, 0, device=CPU, data_dir=data_dir, results=tmp_path)
    assert found["subset"] is True


def test_split_without_images_is_refused(make_run, data_dir, tmp_path):
    prepared = tmp_path / "prepared" / "tiny"
    (prepared / "splits").mkdir(parents=True)
    source = data_dir / "prepared" / "tiny"
    for name in ("dataset.json", "index.csv"):
        (prepared / name).write_bytes((source / name).read_bytes())
    (prepared / "splits" / "val.txt").write_text("")
    with pytest.raises(UserError, match="split val has no image"):
        load_set(tmp_path, make_run(), "test")


def test_labels_are_kept_in_order_and_errors_come_through(make_run, data_dir):
    """They are encoded beside the next image, in another thread."""
    run = make_run()
    dataset = load_set(data_dir, run, "test")
    net = build(run.config["net"], {"semantic": len(dataset.classes["semantic"])})
    seen: list[str] = []

    def keep(name, labels):
        assert labels["semantic"].shape == dataset.sizes[len(seen)]
        time.sleep(0.05)
        seen.append(name)

    evaluate(net, dataset, run, CPU, "fp32", keep=keep)
    assert seen == dataset.ids
    for name in (dataset.ids[0], dataset.ids[-1]):

        def fail(found, labels, name=name):
            if found == name:
                raise UserError(f"{name}: no room.")

        with pytest.raises(UserError, match=f"{name}: no room"):
            evaluate(net, dataset, run, CPU, "fp32", keep=fail)


def test_evaluation_leaves_the_net_as_it_was(make_run, data_dir):
    run = make_run()
    dataset = load_set(data_dir, run, "test")
    net = build(run.config["net"], {"semantic": len(dataset.classes["semantic"])})
    for mode in (True, False):
        net.train(mode)
        evaluate(net, dataset, run, CPU, "fp32")
        assert net.training is mode


def test_predictions_name_their_images_and_classes(scored, data_dir):
    run, place, _ = scored
    dataset = load_set(data_dir, run, "test")
    content = read_predictions(place / "predictions.json.gz")
    classes = dataset.classes["semantic"]
    assert content["categories"] == [{"id": i, "name": name} for i, name in enumerate(classes)]
    assert any(height != width for height, width in dataset.sizes)
    assert content["images"] == [
        {"id": name, "height": height, "width": width}
        for name, (height, width) in zip(dataset.ids, dataset.sizes, strict=True)
    ]


def test_archives_of_weights_and_of_images_are_named_once(scored, data_dir, tmp_path):
    run, place, _ = scored
    shutil.copytree(data_dir, tmp_path / "own")
    info = tmp_path / "own/prepared/tiny/dataset.json"
    a, b, c = ({"name": name, "subset": False} for name in "abc")
    write_json(info, {**read_json(info), "archives": [a, b]})
    trained = read_json(place / "train.json")
    trained["provenance"]["archives"] = [a, c]
    write_json(place / "train.json", trained)
    found = evaluate_run(run, 0, device=CPU, data_dir=tmp_path / "own", results=tmp_path)
    assert [archive["name"] for archive in found["provenance"]["archives"]] == ["a", "c", "b"]


def test_the_main_label_set_has_the_plain_file_of_predictions(make_run, data_dir, tmp_path):
    run = make_run(labels=["geometric", "semantic"])
    train(run, 0, device=CPU, data_dir=data_dir, results=tmp_path)
    evaluate_run(run, 0, device=CPU, data_dir=data_dir, results=tmp_path)
    place = run.directory(tmp_path, 0)
    for name, classes in (("predictions", 3), ("predictions-semantic", 16)):
        assert len(read_predictions(place / f"{name}.json.gz")["categories"]) == classes


def test_an_image_of_the_least_size_is_large_enough(make_run, data_dir, monkeypatch):
    run = make_run()
    dataset = load_set(data_dir, run, "test")
    net = build(run.config["net"], {"semantic": len(dataset.classes["semantic"])})
    sizes = [(net.least, net.least)] * len(dataset)
    monkeypatch.setattr(type(dataset), "sizes", sizes)
    check_sizes(net, dataset)
    monkeypatch.setattr(type(dataset), "sizes", [*sizes[1:], (net.least, net.least - 1)])
    with pytest.raises(UserError, match=f"image {dataset.ids[-1]} has {net.least - 1}x{net.least}"):
        check_sizes(net, dataset)


def test_notes_of_the_images_are_passed_on(scored, data_dir, tmp_path):
    run, _, found = scored
    assert found["notes"] == []
    shutil.copytree(data_dir, tmp_path / "own")
    info = tmp_path / "own/prepared/tiny/dataset.json"
    write_json(info, {**read_json(info), "notes": ["val: 4 of 5 ids are in this subset"]})
    found = evaluate_run(run, 0, device=CPU, data_dir=tmp_path / "own", results=tmp_path)
    assert found["notes"] == ["val: 4 of 5 ids are in this subset"]


def test_a_mask_is_of_the_semantic_labels_whatever_is_scored(make_run, data_dir):
    run = make_run(labels=["geometric"], mask={"train": "none", "test": "background"})
    dataset = load_set(data_dir, run, "test")
    net = build(run.config["net"], {"geometric": len(dataset.classes["geometric"])})
    done = evaluate(net, dataset, run, CPU, "fp32")
    assert list(done.matrices) == ["geometric"] and done.matrices["geometric"].matrix.sum() > 0
