"""The VOC server's archive: what is written, what is refused, what a run that made it is called."""

import io
import itertools
import shutil
import struct
import tarfile
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fcn.__main__ import main
from fcn.data.dataset import SegmentationSet
from fcn.data.labels import label_png, voc_palette
from fcn.data.prepare import prepare
from fcn.errors import UserError
from fcn.evaluate import score_maps
from fcn.files import digest, read_json, write_json
from fcn.nets import build
from fcn.nets.padded import PaddedTrunk
from fcn.schema import CONFIG, read_yaml
from fcn.submission import (
    SPLIT,
    check_archive,
    competition,
    sidecar,
    submit,
    write_archive,
    year_of,
)
from fcn.suites import load_suite
from fcn.train import train
from fcn.weights.named import load_named, read, save

CPU = torch.device("cpu")
FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"
SIZES = {"2008_000001": (30, 41), "2008_000002": (52, 17), "2010_000007": (33, 33)}
CLASSES = read_yaml(CONFIG / "datasets.yaml")["voc2012"]["classes"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data folder with the images of a test list, unpacked as the devkit and prepared."""
    data = tmp_path_factory.mktemp("test-set")
    definition = read_yaml(CONFIG / "datasets.yaml")["voc2012test"]
    (archive,) = definition["archives"]
    root = data / "extracted" / archive / definition["root"]
    (root / "JPEGImages").mkdir(parents=True)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    rng = np.random.default_rng(4)
    for name, (height, width) in SIZES.items():
        pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"JPEGImages/{name}.jpg")
    (root / "ImageSets/Segmentation/test.txt").write_text("".join(f"{name}\n" for name in SIZES))
    about = {"name": archive, "sha256": "0", "size": 1, "subset": True}
    write_json(data / "extracted" / f"{archive}.json", {"archive": about, "members": 4})
    prepare("voc2012test", definition, data)
    return data


@pytest.fixture(scope="module")
def listed(prepared):
    return SegmentationSet(prepared / "prepared/voc2012test", "test", labels=())


def labels_of(seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, 21, size).astype(np.uint8) for name, size in SIZES.items()}


def tgz(path, files):
    """An archive by hand: (name, bytes) or a TarInfo without content."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def good_files(seed=0):
    return [(f"{FOLDER}/{name}.png", label_png(label)) for name, label in labels_of(seed).items()]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), number=st.sampled_from([5, 6]), year=st.sampled_from([2011, 2012]))
def test_what_is_written_is_read_back_and_passes(tmp_path_factory, listed, seed, number, year):
    path = tmp_path_factory.mktemp("w") / "a.tgz"
    folder = f"results/VOC{year}/Segmentation/comp{number}_test_cls"
    labels = labels_of(seed)
    write_archive(path, iter(labels.items()), folder)
    assert check_archive(path, listed, year) == {"competition": number, "images": 3}
    with tarfile.open(path) as archive:
        assert archive.getnames() == [f"{folder}/{name}.png" for name in SIZES]
        for name, label in labels.items():
            stream = archive.extractfile(f"{folder}/{name}.png")
            assert stream is not None
            with Image.open(stream) as image:
                np.testing.assert_array_equal(np.array(image), label)
                assert image.getpalette() == voc_palette().ravel().tolist()
    other = 4023 - year
    with pytest.raises(UserError, match="does not belong there"):
        check_archive(path, listed, other)


def test_same_labels_are_the_same_bytes(tmp_path, monkeypatch):
    clock = itertools.count(1e9, 1000)  # gzip writes the second into its header
    monkeypatch.setattr("time.time", lambda: next(clock))
    for name in "ab":
        write_archive(tmp_path / name, iter(labels_of().items()), FOLDER)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_an_archive_of_the_whole_tree_passes(tmp_path, listed):
    """As `tar czf x.tgz results` or `./results` makes it, folders included."""
    for top in ("results", "./results"):
        members = []
        for i in range(4):
            info = tarfile.TarInfo("/".join([top, *FOLDER.split("/")[1 : i + 1]]))
            info.type = tarfile.DIRTYPE
            members.append((info, b""))
        files = [(name.replace("results", top, 1), content) for name, content in good_files()]
        assert check_archive(tgz(tmp_path / "a.tgz", members + files), listed, 2012)["images"] == 3


def png(values, mode="P", palette=None, form="PNG"):
    image = Image.fromarray(values)
    if mode == "P":
        image.putpalette((voc_palette() if palette is None else palette).tobytes())
    stream = io.BytesIO()
    image.save(stream, form)
    return stream.getvalue()


def claiming(width, height):
    """A PNG whose header says so."""
    content = bytearray(png(np.zeros((2, 2), np.uint8)))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


FIRST = "2008_000001"
LABEL = np.full(SIZES[FIRST], 3, np.uint8)


def with_value(value):
    values = LABEL.copy()
    values[7, 9] = value
    return png(values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (with_value(255), "has the value 255, classes are 0 to 20"),
        (with_value(21), "has the value 21"),
        (png(LABEL.T), "has 30x41 pixels, the image 41x30"),
        (png(LABEL, palette=voc_palette()[::-1].copy()), "is not in VOC's palette"),
        (png(LABEL, mode="L"), "is PNG of mode L, not a palette PNG"),
        (png(np.stack([LABEL] * 3, 2), mode="RGB"), "is PNG of mode RGB"),
        (png(LABEL, form="GIF"), "is GIF of mode"),
        (label_png(LABEL)[:60], "is not a readable image"),
        (png(np.zeros((12000, 12000), np.uint8)), "has 12000x12000 pixels, the image 41x30"),
        (claiming(30000, 30000), "has far more pixels than the image, 41x30"),
        (b"", "is not a readable image"),
    ],
)
def test_a_faulty_image_is_named(tmp_path, listed, content, message):
    files = [(f"{FOLDER}/{FIRST}.png", content), *good_files()[1:]]
    with pytest.raises(UserError, match=rf"would refuse it: {FIRST}.png {message}"):
        check_archive(tgz(tmp_path / "a.tgz", files), listed, 2012)


def test_colours_that_no_pixel_has_do_not_matter(tmp_path, listed):
    palette = voc_palette()
    palette[4:] = 7
    files = [(f"{FOLDER}/{FIRST}.png", png(LABEL, palette=palette)), *good_files()[1:]]
    check_archive(tgz(tmp_path / "a.tgz", files), listed, 2012)
    palette[3] = 7
    files = [(f"{FOLDER}/{FIRST}.png", png(LABEL, palette=palette)), *good_files()[1:]]
    with pytest.raises(UserError, match="palette"):
        check_archive(tgz(tmp_path / "a.tgz", files), listed, 2012)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f[1:], f"{FIRST} is missing"),
        (lambda f: [*f, f[0]], f"{FIRST} is there twice"),
        (lambda f: [*f, (f"{FOLDER}/2012_000001.png", f[0][1])], "2012_000001 is not an image of"),
        (lambda f: [*f, (f"{FOLDER}/._{FIRST}.png", b"x")], "is not an image of the list"),
        (lambda f: [*f, (f"{FOLDER}/notes.txt", b"x")], "notes.txt does not belong there"),
        (lambda f: [*f, ("results/x.png", b"x")], "results/x.png does not belong there"),
        (lambda f: [(n.removeprefix("results/"), c) for n, c in f], "does not belong there"),
        (lambda f: [(n.replace("comp6", "comp3"), c) for n, c in f], "does not belong there"),
        (lambda f: [(f[0][0].replace("p6", "p5"), f[0][1]), *f[1:]], "both comp5_test_cls and"),
        (lambda f: [], "missing; 2008_000002 is missing; 2010_000007 is missing"),
    ],
)
def test_a_faulty_list_is_told(tmp_path, listed, change, message):
    with pytest.raises(UserError, match=message):
        check_archive(tgz(tmp_path / "a.tgz", change(good_files())), listed, 2012)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("target", ["2008_000002.png", "nowhere.png", f"{FIRST}.png"])
def test_links_are_refused(tmp_path, listed, kind, target):
    link = tarfile.TarInfo(f"{FOLDER}/{FIRST}.png")
    link.type, link.linkname = kind, target
    path = tgz(tmp_path / "a.tgz", [(link, b""), *good_files()[1:]])
    with pytest.raises(UserError, match=f"{FIRST}.png does not belong there"):
        check_archive(path, listed, 2012)


def test_a_damaged_archive_is_a_sentence_wherever_it_is_found(tmp_path, listed):
    """In a header, in the checksum at the end, or by zlib in the midst of an image."""
    text = np.random.default_rng(0).choice(list(b"abcdefg"), 200_000).astype(np.uint8).tobytes()
    path = tgz(tmp_path / "a.tgz", [(good_files()[0][0], text), *good_files()[1:]])
    whole, found = path.read_bytes(), []
    for offset in range(0, len(whole), len(whole) // 60):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0xFF]) + whole[offset + 1 :])
        with pytest.raises(UserError) as told:
            check_archive(path, listed, 2012)
        found.append(told.value.__context__)
    assert any(isinstance(error, zlib.error) for error in found)


def test_no_archive(tmp_path, listed):
    whole = tgz(tmp_path / "a.tgz", good_files()).read_bytes()
    (tmp_path / "cut.tgz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.tgz").write_text("results")
    with tarfile.open(tmp_path / "plain.tgz", "w") as archive:
        archive.addfile(tarfile.TarInfo("results"))
    for name in ("cut", "text", "plain"):
        with pytest.raises(UserError, match=rf"{name}\.tgz: not a whole \.tgz"):
            check_archive(tmp_path / f"{name}.tgz", listed, 2012)
    with pytest.raises(UserError, match=r"gone\.tgz: no such file"):
        check_archive(tmp_path / "gone.tgz", listed, 2012)


# ------------------------------------------------------------------------------ of a trained run


@pytest.fixture
def trained(write_suite, data_dir, prepared, tmp_path):
    """A run that knows VOC's classes, trained for a moment, beside the test set."""
    data = tmp_path / "data"
    shutil.copytree(data_dir, data)
    for name in ("tiny", "square"):
        place = data / f"prepared/{name}/dataset.json"
        write_json(place, read_json(place) | {"classes": {"semantic": CLASSES}})
    shutil.copytree(prepared / "prepared/voc2012test", data / "prepared/voc2012test")
    suite = write_suite({"recipes": {"short": {"images": 4}}})
    run = load_suite(str(suite)).run("tiny/run")
    train(run, 0, device=CPU, data_dir=data, results=tmp_path / "results")
    return suite, run, data, tmp_path / "results"


def command(trained, *arguments):
    suite, _, data, results = trained
    options = ["--suite", suite, "--data-dir", data, "--results", results, "--device", "cpu"]
    return main([str(a) for a in ["submission", *arguments, *options]])


def test_a_run_labels_the_test_images(trained, listed, one_thread):
    _, run, _, results = trained
    assert command(trained, "tiny/run") == 0
    path = results / "tiny/run/seed0/voc2012test.tgz"
    about = read_json(sidecar(path))
    assert about["sha256"] == digest(path) and about["config_hash"] == run.hash
    assert (about["competition"], about["images"], about["subset"]) == (6, 3, True)
    assert "VOC2012test.tar" in {a["name"] for a in about["provenance"]["archives"]}
    net = build(run.config["net"], {"semantic": 21})
    load_named(net, read(results / "tiny/run/seed0/model.safetensors")[0], "")
    net.eval()
    mean = torch.tensor(run.config["input"]["mean"]).view(3, 1, 1)
    with tarfile.open(path) as archive, torch.inference_mode():
        assert archive.getnames() == [f"{FOLDER}/{name}.png" for name in SIZES]
        for i, name in enumerate(SIZES):
            x = listed[i]["image"].flip(0).float() - mean
            truth = net(x[None].contiguous(memory_format=torch.channels_last))["semantic"].argmax(1)
            stream = archive.extractfile(f"{FOLDER}/{name}.png")
            assert stream
            np.testing.assert_array_equal(np.array(Image.open(stream)), truth[0].numpy())
    assert command(trained, "--check", path) == 0
    write_archive(path, iter(list(labels_of().items())[1:]), FOLDER)
    assert command(trained, "--check", path) == 2


@pytest.mark.parametrize("of_weights", [False, True])
@pytest.mark.parametrize("of_images", [False, True])
def test_what_weights_and_images_come_from_is_said(trained, of_weights, of_images):
    _, run, data, results = trained
    info = data / "prepared/voc2012test/dataset.json"
    write_json(info, read_json(info) | {"subset": of_images, "archives": [{"name": "images"}]})
    place = run.directory(results, 0) / "train.json"
    about = read_json(place)
    about["provenance"]["archives"] = [{"name": "weights"}]
    write_json(place, about | {"subset": of_weights})
    assert command(trained, "run") == 0
    found = read_json(sidecar(results / "tiny/run/seed0/voc2012test.tgz"))
    assert found["subset"] is (of_weights or of_images)
    assert {a["name"] for a in found["provenance"]["archives"]} == {"weights", "images"}


def test_labels_are_made_as_in_evaluation(trained, monkeypatch):
    """By the net that is made for inference, once for all images."""
    nets = []

    def watched(net, *arguments):
        nets.append(net)
        return score_maps(net, *arguments)

    monkeypatch.setattr("fcn.evaluate.score_maps", watched)
    assert command(trained, "run") == 0
    assert len(nets) > 1 and all(net is nets[0] for net in nets)
    assert isinstance(nets[0].trunk, PaddedTrunk)


def test_nothing_stands_where_labelling_fails(trained, capsys):
    _, _, data, results = trained
    image = data / f"prepared/voc2012test/images/{FIRST}.jpg"
    image.write_bytes(image.read_bytes()[:100])
    before = sorted(results.rglob("*"))
    assert command(trained, "run") == 2
    assert f"{FIRST}.jpg: not readable" in capsys.readouterr().err
    assert sorted(results.rglob("*")) == before


def test_what_cannot_be_submitted(trained, tmp_path, capsys):
    _, run, data, results = trained
    for arguments, message in (
        ((), "name the run"),
        (("run", "--out", tmp_path / "x.zip"), "name it so"),
        (("run", "--dataset", "tiny"), "choose one"),
        (("run", "--dataset", "voc2011test"), "python -m fcn prepare voc2011test"),
        (("run", "--seed", 4), "python -m fcn train tiny/run --seed 4"),
        (("nothing",), "no run 'nothing'"),
    ):
        assert command(trained, *arguments) == 2
        assert message in capsys.readouterr().err
    options = {"runs": {}, "device": CPU, "data_dir": data, "results": results}
    for change, message in (
        ({"version": 2}, "train it again"),
        ({"mask": {"train": "none", "test": "both"}}, "masked"),
    ):
        other = replace(run, config=run.config | change)
        write_json(
            results / "tiny/run/seed0/train.json",
            read_json(results / "tiny/run/seed0/train.json")
            | ({"config_hash": other.hash} if "mask" in change else {}),
        )
        with pytest.raises(UserError, match=message):
            submit(other, 0, "voc2012test", tmp_path / "x.tgz", **options)


def test_a_run_of_other_classes_is_refused(make_run, data_dir, prepared, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(data_dir, data)
    shutil.copytree(prepared / "prepared/voc2012test", data / "prepared/voc2012test")
    run = make_run(recipe={"base": "short", "images": 2})
    train(run, 0, device=CPU, data_dir=data, results=tmp_path)
    with pytest.raises(UserError, match="classes are not PASCAL VOC's"):
        submit(
            run, 0, "voc2012test", tmp_path / "x.tgz",
            runs={}, device=CPU, data_dir=data, results=tmp_path,
        )  # fmt: skip


# ------------------------------------------------------------------------------ which competition


def test_outside_data_decide_the_competition(make_run):
    base = make_run()

    def run(train, weights, name="x/y"):
        part = {"dataset": train, "split": "train"} if train else None
        return replace(base, id=name, config=base.config | {"train": part, "weights": weights})

    def also(train, *more):
        parts = [{"dataset": name, "split": "train"} for name in more]
        found = run(train, "none")
        return replace(found, config=found.config | {"also_train": parts})

    own, sbd = run("voc2011", "none", "a/own"), run("sbd", "none", "a/sbd")
    runs = {r.id: r for r in (own, sbd)}
    below = run("voc2012", {"run": "a/own"}, "a/below")
    runs["a/below"] = below
    for number, year, tried in (
        (5, 2011, own),
        (5, 2012, own),
        (5, 2012, run("voc2012", "none")),
        (6, 2011, run("voc2012", "none")),  # images that came after the challenge
        (6, 2012, sbd),
        (6, 2012, run("voc2012", {"backbone": "vgg16-caffe"})),
        (6, 2012, run(None, {"released": "fcn8s-heavy-pascal"})),
        (5, 2012, also("voc2011", "voc2012")),
        (6, 2011, also("voc2011", "voc2012")),
        (6, 2012, also("voc2011", "voc2012", "sbd")),
        (6, 2012, also("voc2012", "coco")),
        (5, 2012, below),
        (6, 2011, below),
        (5, 2012, run("voc2012", {"run": "a/below"})),
        (6, 2012, run("voc2012", {"run": "a/sbd"})),
        (6, 2012, run("voc2012", {"runs": {"image": "a/own", "hha": "a/sbd"}})),
        (5, 2012, run("voc2012", {"runs": {"image": "a/own", "hha": "a/own"}})),
    ):
        assert competition(tried, runs, year) == number, (number, year, tried.config)


def test_every_run_of_the_paper_uses_outside_data():
    suite = load_suite("paper")
    found = {competition(r, suite.runs, 2012) for r in suite.runs.values() if r.backbone}
    assert found == {6}


def test_years():
    assert (year_of("voc2011test"), year_of("voc2012test")) == (2011, 2012)
    for name in ("voc2010test", "voc2012", "camvid", "voc2012test2"):
        with pytest.raises(UserError, match="choose one"):
            year_of(name)


@pytest.mark.parametrize("year", [2011, 2012])
def test_the_test_sets_are_known(year):
    definition = read_yaml(CONFIG / "datasets.yaml")[f"voc{year}test"]
    assert SPLIT in definition["splits"] and definition["labels"] == {}


def test_what_the_server_would_refuse_is_not_written(trained, tmp_path, monkeypatch):
    _, run, data, results = trained
    options = {"runs": {}, "device": CPU, "data_dir": data, "results": results}
    monkeypatch.setattr("fcn.submission.label_png", lambda values: label_png(values, palette=False))
    with pytest.raises(UserError, match=r"would refuse it: .* not a palette PNG"):
        submit(run, 0, "voc2012test", tmp_path / "x.tgz", **options)
    assert not (tmp_path / "x.tgz").exists() and not (tmp_path / "x.json").exists()


def test_vocs_classes_in_another_order_are_refused(trained, tmp_path):
    _, run, data, results = trained
    path = run.directory(results, 0) / "model.safetensors"
    tensors, about = read(path)
    about["classes"]["semantic"][1:3] = reversed(CLASSES[1:3])
    save(path, tensors, about)
    with pytest.raises(UserError, match="classes are not PASCAL VOC's"):
        submit(
            run, 0, "voc2012test", tmp_path / "x.tgz",
            runs={}, device=CPU, data_dir=data, results=results,
        )  # fmt: skip
