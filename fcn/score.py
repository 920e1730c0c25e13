"""Score a folder of predicted label maps against a folder of true ones, whoever made them."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fcn.data.labels import CONVERT, VOID, read_label
from fcn.errors import UserError
from fcn.metrics import ConfusionMatrix


def _label_files(folder: Path, option: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"{option} {folder}: no such folder.")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".png")
    named = {path.stem: path for path in files}
    if not named:
        raise UserError(f"{option} {folder}: no PNG files in it.")
    return named


def score_folders(truth: Path, pred: Path, classes: int, void: int = VOID) -> dict[str, Any]:
    """Metrics of ``pred/NAME.png`` against ``truth/NAME.png``, 8-bit index PNGs of equal sizes.

    ``void`` is the value of void in the truth; predictions have none, but what they hold where the
    truth is void does not matter. Every truth needs a prediction; predictions without a truth are
    named on stderr.

    Returns:
        images, classes, void, and the metrics of ``fcn.metrics.scores`` (fractions or None).

    Raises:
        UserError: a missing folder or file, an unreadable or colour PNG, sizes that differ, a value
            that is not a class.
    """
    if not 0 < classes <= VOID:
        raise UserError(f"--classes {classes}: must be from 1 to {VOID}.")
    if not 0 <= void <= 255:
        raise UserError(f"--void {void}: must be from 0 to 255.")
    truths, predictions = _label_files(truth, "--truth"), _label_files(pred, "--pred")
    missing = [name for name in truths if name not in predictions]
    if missing:
        shown = ", ".join(f"{name}.png" for name in missing[:5]) + (", .." if missing[5:] else "")
        raise UserError(
            f"{pred}: {len(missing)} of {len(truths)} predictions are missing: {shown}."
        )
    extra = [name for name in predictions if name not in truths]
    if extra:
        shown = ", ".join(extra[:5]) + (", .." if len(extra) > 5 else "")
        print(f"warning: {len(extra)} predictions have no truth: {shown}", file=sys.stderr)

    matrix = ConfusionMatrix(classes)
    for name, path in truths.items():
        true = read_label(path, classes, void, CONVERT)
        # Any 8-bit value; checked below.
        guess = read_label(predictions[name], classes, VOID, CONVERT, beyond=True)
        if true.shape != guess.shape:
            sizes = ["x".join(map(str, reversed(array.shape))) for array in (guess, true)]
            raise UserError(
                f"{predictions[name]}: {sizes[0]} pixels, but its truth has {sizes[1]}."
            )
        wrong = np.unique(guess[(guess >= classes) & (true != VOID)])
        if wrong.size:
            shown = ", ".join(map(str, wrong[:5])) + (", .." if wrong.size > 5 else "")
            raise UserError(
                f"{predictions[name]}: value {shown} is predicted where the truth is not void, but "
                f"only 0 to {classes - 1} are classes."
            )
        matrix.update(torch.from_numpy(true), torch.from_numpy(guess))
    head = {"images": len(truths), "classes": classes, "void": void}
    return head | asdict(matrix.scores())


def main(args: argparse.Namespace) -> None:
    """Score and print a table, or with ``--json`` one JSON object of fractions (null for 0/0)."""
    result = score_folders(args.truth, args.pred, args.classes, args.void)
    if args.json:
        print(json.dumps(result, allow_nan=False))
        return
    lines = [("images", str(result["images"]))]
    for name, title in {
        "pixel_accuracy": "pixel accuracy",
        "mean_accuracy": "mean accuracy",
        "mean_iu": "mean IU",
        "frequency_weighted_iu": "frequency-weighted IU",
    }.items():
        lines.append((title, _percent(result[name])))
    for index, value in enumerate(result["per_class_iu"]):
        lines.append((f"IU of class {index}", _percent(value)))
    for name, value in lines:
        print(f"{name:<22}{value:>8}")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}%"
