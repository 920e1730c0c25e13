"""Label maps in MATLAB's files."""

from pathlib import Path

import numpy as np

from fcn.errors import UserError


def read_mat(path: Path, variable: str) -> np.ndarray:
    """The label map ``variable`` of a MAT v5 file as int64 (H, W).

    A file that is none, that lacks the variable, or in which it is not a matrix of whole numbers is
    a UserError.
    """
    from scipy.io import loadmat, whosmat  # slow to import, and few data sets need it

    try:
        values = loadmat(path, variable_names=[variable]).get(variable)
        there = [name for name, *_ in whosmat(path)] if values is None else []
    except Exception as error:  # scipy raises whatever its parser stumbles over
        raise UserError(f"{path}: not a readable MAT file ({error!r}).") from None
    if values is None:
        raise UserError(f"{path}: no variable {variable} in it, only {', '.join(there) or 'none'}.")
    whole = isinstance(values, np.ndarray) and values.ndim == 2 and values.dtype.kind in "iufb"
    if not whole or not (values == np.floor(values)).all():
        raise UserError(f"{path}: its {variable} is not a matrix of whole numbers.")
    return values.astype(np.int64)
