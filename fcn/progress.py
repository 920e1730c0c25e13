"""Progress bars: of a terminal, or as the few lines that a log can bear."""

import sys
from typing import Any

from tqdm import tqdm


def bar(*args: Any, **options: Any) -> Any:
    """A ``tqdm`` bar; where nobody looks, a line every half minute and none of what is shorter."""
    pace = 0.5 if sys.stderr.isatty() else 30.0
    options |= {"mininterval": pace, "delay": pace, "dynamic_ncols": True}
    return tqdm(*args, **options)


def say(text: str, file: Any = None) -> None:
    """A line above whatever bar there is; by default on stderr."""
    if sys.stderr.isatty():
        tqdm.write(text, file=file or sys.stderr)
    else:
        print(text, file=file or sys.stderr, flush=True)
