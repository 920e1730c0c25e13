"""``python -m fcn bench``: all measurements of one device, into benchmarks.json and its page."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from fcn.bench import cases, memory, scale
from fcn.bench.canvas import GRADIENTS, canvas
from fcn.bench.floors import ceilings, floors_of, floors_of_suite, on_meta, per_layer
from fcn.bench.page import write_page
from fcn.bench.plain import Peer
from fcn.bench.record import NEEDS, joined
from fcn.data.dataset import SegmentationSet
from fcn.data.scenes import semantic_classes
from fcn.device import chosen
from fcn.errors import UserError
from fcn.files import read_json, write_json
from fcn.graphs import on_stream
from fcn.nets.padded import for_inference
from fcn.provenance import Clock
from fcn.suites import load_suite

TABLE1, VOC = (500, 500), (375, 500)  # height, width
NETS = ("voc-fcn32s", "voc-fcn8s", "voc-fcn-googlenet")
HEAVY, SMALL, SCORED = "voc2011/fcn32s", "voc2011/googlenet", "voc2011/fcn8s"
DEMO = "demo/fcn32s"
LOADERS = 8  # processes at the most
UPDATES = {False: 3000, True: 300}  # of the loop
ROUNDS = {("cpu", False): 7, ("cpu", True): 3, ("cuda", False): 15, ("cuda", True): 5}


def bench(
    device_name: str = "auto",
    out: Path = Path("reports"),
    quick: bool = False,
    peer: Path | None = None,
    weights: Sequence[Path] = (),
    data: Path | None = None,
    split: str = "val",
    images: int = 50,
    canvas_images: int | None = None,
    demo: Path | None = None,
    logs: Sequence[Path] = (),
) -> dict[str, Any]:
    """Measure and write ``benchmarks.json`` (a key for each kind of device) and the page.

    What an option that is not given would have measured stays as the last record has it
    (``fcn.bench.record``).
    What was measured before a stop stays in ``benchmarks.partial.json``, of the same form.

    Args:
        quick: fewer rounds.
        peer: a checkout of pytorch-fcn to compare with.
        weights: model.safetensors of runs, each for an agreement of the precisions.
        data: a prepared data set for the agreement and for loading.
        images: of the agreement.
        canvas_images: whose labels are read on a larger canvas too; None: all of the split.
        demo: a working tree in which the demo's DAG has run.
        logs: folders ``logs`` of further trees, for the peak memory of their stages.

    Raises:
        UserError: a path lacks what it should have.
    """
    if weights and not data:
        raise UserError("bench --weights: the agreement needs images; give --data FOLDER too.")
    port = Peer(peer) if peer else None
    if data:
        SegmentationSet(data, split)
    for file in weights:
        cases.trained(file)
    others = [scale.logged(folder) for folder in logs]
    dag = scale.dag(demo) if demo else None  # a measurement takes long: first see that all is there
    path, partial = out / "benchmarks.json", out / "benchmarks.partial.json"
    known = read_json(path) if path.exists() else {}
    found: dict[str, Any] = {}
    with chosen(device_name) as device, on_stream(device):
        for found in _measure(
            device, quick, port, weights, data, split, images, canvas_images, dag, others
        ):
            write_json(partial, {device.type: found})
    known[device.type] = joined(found, known.get(device.type))
    write_json(path, known)
    write_page(known, out / "benchmarks.html")
    partial.unlink()
    return found


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _measure(
    device: torch.device,
    quick: bool,
    peer: Peer | None,
    weights: Sequence[Path],
    data: Path | None,
    split: str,
    images: int,
    canvas_images: int | None,
    dag: dict[str, Any] | None,
    logs: Sequence[dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    """What is known so far, after every part of the measurement."""
    clock, load = Clock(device), os.getloadavg()[0]
    paper, slim = load_suite("paper"), load_suite("demo")
    rounds = ROUNDS[device.type, quick]
    missing: list[str] = []
    measured: list[dict[str, Any]] = []
    passes: dict[str, Any] = {}
    found: dict[str, Any] = {
        "complete": False,
        "quick": quick,
        "peer": port_facts(peer),
        "cases": measured,
        "passes": passes,
        "agreement": None,
        "canvas": None,
        "loading": None,
        "harness": [],
        "processes": [],
        "dag": dag,
        "logs": list(logs),
        "missing": missing,
    }

    def so_far(**more: Any) -> dict[str, Any]:
        found.update(more)
        found["load"] = [load, os.getloadavg()[0]]
        found["provenance"] = clock.provenance(precision="see variants", seed=0)
        return found

    given = {
        "peer": peer is not None,
        "agreement": bool(weights and data),
        "canvas": bool(weights and data),
        "loading": bool(data),
        "dag": dag is not None or device.type != "cpu",
    }
    missing += [NEEDS[part] for part, there in given.items() if not there]
    _say("ceilings of the machine")
    rates = ceilings(device)
    _say("floors of the nets")
    rows = []
    for name in NETS:
        rows += floors_of(name, paper.resolved_net(name), cases.CLASSES, [TABLE1, VOC], rates)
    lean = for_inference(on_meta(paper.resolved_net("voc-fcn32s"), cases.CLASSES))
    layers = per_layer(lean, TABLE1)
    yield so_far(
        ceilings=rates,
        floors=rows,
        suite_floors=floors_of_suite(paper, rates),
        layers={"net": "voc-fcn32s", "size": list(TABLE1), "rows": layers},
        start_seconds=scale.process_start(3 if quick or device.type == "cuda" else 5),
    )
    plan = [(name, 1) for name in NETS]
    if device.type == "cuda":
        plan += [("voc-fcn8s", 8)]
    for name, batch in plan:
        _say(f"inference: {name}, {batch}")
        measured.append(
            cases.inference(
                paper,
                name,
                TABLE1,
                device,
                rounds if batch == 1 else -(-rounds // 2),
                rates,
                peer if batch == 1 else None,
                batch,
            )
        )
        yield so_far()
    _say("training step: FCN-32s")
    heavy = paper.run(HEAVY)
    measured.append(
        cases.training(
            "training",
            "bf16",
            "FCN-32s heavy",
            heavy.config["net"],
            heavy.config["recipe"],
            cases.CLASSES,
            VOC,
            device,
            rounds,
            rates,
            peer,
            "voc-fcn32s",
        )
    )
    yield so_far()
    if device.type == "cuda":
        _say("training step: FCN-GoogLeNet")
        run = paper.run(SMALL)
        measured.append(
            cases.training(
                "small",
                "bf16",
                "FCN-GoogLeNet",
                run.config["net"],
                {**run.config["recipe"], "batch": 4},
                cases.CLASSES,
                VOC,
                device,
                rounds,
                rates,
            )
        )
    threads = torch.get_num_threads()
    if device.type == "cpu":
        _say("training step: demo")
        run = slim.run(DEMO)
        size = slim.datasets[run.dataset]["size"]
        torch.set_num_threads(slim.threads or threads)
        measured.append(
            cases.training(
                "demo",
                run.config["recipe"]["precision"],
                "the demo's slim FCN-32s",
                run.config["net"],
                run.config["recipe"],
                len(semantic_classes()),
                (size[0], size[1]),
                device,
                3 * rounds,
                ceilings(device),  # of these threads
                repeat=5,
            )
        )
        torch.set_num_threads(threads)
        _say("training step: with and without keeping freed memory")
        measured.append(memory.kept(rounds, rates))
    yield so_far()
    if device.type == "cuda" and data:
        workers = min(LOADERS, (os.cpu_count() or 2) - 1)
        _say("an evaluation pass")
        scored = paper.run(SCORED)
        count = 100 if quick else cases.EVALUATION_GOAL[0]
        passes["evaluation"] = cases.evaluation(scored, data, split, count, device, workers)
        yield so_far()
        _say("the training loop")
        passes["loop"] = cases.loop(heavy, data, split, UPDATES[quick], device, workers)
        yield so_far()
    if weights and data:
        few = 10 if quick else images
        agreed: list[dict[str, Any]] = []
        for file in weights:
            _say(f"agreement of the precisions on images: {file}")
            agreed.append(cases.agreement(file, data, split, few, device, rates))
            yield so_far(agreement=agreed)
        canvases: list[dict[str, Any]] = []
        for file in weights:
            _say(f"images on a larger canvas: {file}")
            shown, gradients = (10, 3) if quick else (canvas_images, GRADIENTS)
            canvases.append(canvas(file, data, split, shown, device, gradients))
            yield so_far(canvas=canvases)
    if data:
        seconds = 2.0 if quick or device.type == "cuda" else 8.0
        yield so_far(loading=cases.loading(data, split, seconds))
    if device.type == "cpu":  # no other device changes them
        _say("the DAG, the report, the largest data set")
        found["harness"] = scale.harness()
        yield so_far()
        _say("stages alone: extract, submission, predict")
        found["processes"] = scale.processes(paper, paper.run(SCORED))
    yield so_far(complete=True)


def port_facts(peer: Peer | None) -> dict[str, Any] | None:
    return None if peer is None else {"name": "wkentaro/pytorch-fcn", "commit": peer.commit}
