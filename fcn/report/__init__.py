"""Render the tables of the paper with ours beside them, from whatever results exist."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcn.files import alone_in, write_text
from fcn.report.claims import assumed_spread, read_claims
from fcn.report.exports import claim_records, to_csv, to_latex, to_markdown
from fcn.report.page import banners, build_page
from fcn.report.paper import parse_tables, read_paper
from fcn.report.results import load_results
from fcn.report.server import server_scores
from fcn.report.tables import build_book
from fcn.report.verdicts import counts, decide

if TYPE_CHECKING:
    from fcn.spec import Suite

CONFIG = Path(__file__).resolve().parents[2] / "config"


def render(
    suite: "Suite",
    results: Path,
    data_dir: Path,
    out: Path,
    images: bool = True,
    config: Path = CONFIG,
    place: Path | None = None,
) -> dict[str, Any]:
    """Write ``tables.html``, ``tables.csv``, ``tables.md`` and ``tables.tex`` into ``out``.

    Missing, failed, stale and broken results become holes with their reason; only a broken
    ``config/`` raises. The output depends on its inputs alone: its date is the newest result's.

    Args:
        suite: whose runs and tables are shown.
        results: folder of the results (docs/architecture.md).
        data_dir: folder with ``prepared/``, read for the example images only.
        out: folder to write into.
        images: show example segmentations (images of the data sets, not for redistribution).
        config: folder with ``paper_numbers.csv``, ``figure5.csv``, ``claims.yaml`` and
            ``server_scores.yaml``.
        place: where the report will lie, if it is moved from ``out`` when it is whole.

    Returns:
        suite, runs, scored (runs with a number), stale, claims (verdict to how many), problems
        (sentences), files (paths).

    Raises:
        UserError: a file of ``config/`` is broken.
    """
    paper = read_paper(config)
    tables = parse_tables(suite.tables)
    claims = read_claims(config, tables, paper)
    with alone_in(out):  # so that of two renders at once the later sees what the earlier saw
        found = load_results(suite, results, server_scores(config / "server_scores.yaml"))
        decided, unusable = decide(
            claims, tables, paper, found, suite.compare, assumed_spread(config)
        )
        found.problems += unusable
        if not suite.compare:
            tables = [
                replace(table, columns=tuple(replace(c, compare=False) for c in table.columns))
                for table in tables
            ]
        book = build_book(tables, paper, found)
        departures = _link(CONFIG.parent / "docs/deviations.md", place or out)
        html, problems = build_page(
            suite, paper, found, book, decided, data_dir, images, departures
        )
        notice = banners(suite, found)
        texts = {
            "tables.html": html,
            "tables.csv": to_csv(claim_records(decided) + book.records),
            "tables.md": to_markdown(suite.title, notice, decided, book.tables),
            "tables.tex": to_latex(suite.title, notice, decided, book.tables),
        }
        for name, text in texts.items():
            write_text(out / name, text)
    return {
        "suite": suite.name,
        "runs": len(found.runs),
        "scored": sum(bool(result.counted) for result in found.runs.values()),
        "stale": sum(result.stale for result in found.runs.values()),
        "claims": dict(counts(decided)),
        "problems": problems,
        "files": [str(out / name) for name in texts],
    }


def _link(file: Path, place: Path) -> str:
    """From a folder of the repository to a file of it; empty for a folder outside of it."""
    place = place.resolve()
    if not place.is_relative_to(CONFIG.parent):
        return ""
    return Path(os.path.relpath(file, place)).as_posix()
