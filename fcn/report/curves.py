"""Loss curves as values: what they average to, and where they reach a level."""

from dataclasses import dataclass

import numpy as np

from fcn.errors import UserError
from fcn.report.results import RunResult, SeedResult, finite, read_curve

# Rows of loss.csv, 20 updates each, that are averaged before a level counts as reached: of the run
# with the largest batch. The others are averaged over as many images (whole ones, where patches are
# sampled): over fewer, a curve would fall below a level sooner by its noise alone.
SMOOTH = 3


@dataclass(frozen=True)
class LossCurve:
    """A loss curve along an axis; ``images``: whole ones of which a row of it is the mean."""

    x: np.ndarray
    loss: np.ndarray
    images: float

    def rows(self, window: float) -> int:
        """How many rows hold ``window`` images."""
        return max(1, round(window / max(1.0, self.images)))


def loss_curve(run: RunResult, seed: SeedResult, axis: str) -> LossCurve | str:
    """The loss curve of a seed along an axis of loss.csv, or what is wrong with it.

    Shares of a training are asked of it: one that ends before the training did has none.
    """
    try:
        frame = read_curve(seed.directory / "loss.csv", (axis, "update", "images", "loss"))
    except UserError:
        return "cannot be read"
    if frame is None or not len(frame):
        return "missing" if frame is None else "empty"
    last, updates = float(frame["update"].iloc[-1]), finite(seed.train.get("updates"))
    if updates is not None and last + float(frame["update"].iloc[0]) <= updates:
        return f"ends at update {last:.0f} of {updates:.0f}"
    keep = np.isfinite(frame["loss"].to_numpy())
    if not keep.any():
        return "has no finite loss"
    kept = (run.run.config["recipe"] or {}).get("patch_keep", 1)
    images = float(frame["images"].iloc[0] * kept)
    return LossCurve(frame[axis].to_numpy()[keep], frame["loss"].to_numpy()[keep], images)


def _smooth(x: np.ndarray, y: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Running means: the middle of ``rows`` rows, and their loss."""
    mean = np.ones(rows) / rows
    return np.convolve(x, mean, "valid"), np.convolve(y, mean, "valid")


def mean_loss(x: np.ndarray, y: np.ndarray, start: float, end: float) -> float | None:
    """Mean of ``y`` between two shares of the last ``x``."""
    if not len(x):
        return None
    part = y[(x >= start * x[-1]) & (x <= end * x[-1])]
    return float(part.mean()) if len(part) else None


def level_at(x: np.ndarray, y: np.ndarray, share: float, rows: int) -> float | None:
    """The loss, averaged over ``rows`` and interpolated, at a share of the last update."""
    if len(x) < rows:
        return None
    return float(np.interp(share * x[-1], *_smooth(x, y, rows)))


def reached(x: np.ndarray, y: np.ndarray, level: float, rows: int) -> float | None:
    """Where the loss, averaged over ``rows``, first falls to the level; None for never.

    Between two rows along a straight line: on the grid of the rows alone two curves would reach
    a level at once whose distance is less.
    """
    if len(x) < rows:
        return None
    x, y = _smooth(x, y, rows)
    below = np.flatnonzero(y <= level)
    if not len(below):
        return None
    i = int(below[0])
    if i == 0:
        return float(x[0])
    return float(np.interp(-level, [-y[i - 1], -y[i]], [x[i - 1], x[i]]))
