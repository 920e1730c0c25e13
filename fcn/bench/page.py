"""benchmarks.html: one file in the look of the report, from benchmarks.json alone."""

import re
from pathlib import Path
from typing import Any

import jinja2

from fcn.bench.record import entries
from fcn.files import write_text
from fcn.report.page import environment

DEVICES = {"cpu": "CPU", "cuda": "GPU"}


def _figure(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, thin spaces between thousands."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    size = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    return f"{value:,.{max(0, digits - max(size, 1))}f}".replace(",", "\u202f")


def _ms(value: float) -> str:
    """Milliseconds, or seconds from ten of them on."""
    return f"{_figure(value / 1e3)}\u00a0s" if value >= 1e4 else f"{_figure(value)}\u00a0ms"


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}\u00a0%"


def _mib(value: float | None) -> str:
    """Bytes of memory in MiB; a dash where none were measured."""
    return f"{_figure(value / 2**20, 4)} MiB" if value else "–"


def _style() -> str:
    """The report's own style sheet: two pages, one look."""
    report = environment()
    assert report.loader is not None
    source = report.loader.get_source(report, "report.html.j2")[0]
    found = re.search(r"<style>(.*?)</style>", source, re.DOTALL)
    assert found is not None
    return report.from_string(found.group(1)).render()


def write_page(measured: dict[str, Any], path: Path) -> None:
    """Render what was measured on each kind of device; the page loads nothing from elsewhere."""
    loaded = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    loaded.filters.update(figure=_figure, ms=_ms, percent=_percent, mib=_mib, entries=entries)
    devices = [(key, DEVICES[key], measured[key]) for key in DEVICES if key in measured]
    page = loaded.get_template("benchmarks.html.j2").render(
        style=_style(), devices=devices, gpu="cuda" in measured
    )
    write_text(path, page)
