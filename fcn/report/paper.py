"""The paper's side of the report: its numbers, its Figure 5 and the shape of its tables.

All of it is data: ``config/paper_numbers.csv`` (one printed number a row, with version, table and
source), ``config/figure5.csv`` (the digitised curves) and ``config/tables.yaml``.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd

from fcn.errors import UserError
from fcn.schema import unknown


@dataclass(frozen=True)
class Read:
    """A (version, table) pair of ``paper_numbers.csv`` and the short label that the page prints."""

    version: str
    table: str
    label: str


@dataclass(frozen=True)
class Column:
    """One quantity: the paper's name for it (empty: it prints none), and where ours stands.

    ``origin`` is a dotted path whose first part names the source (metrics, train, timing, config,
    architecture, server); empty where nothing here measures it. Of a metric, ``average`` says
    which classes and pixels count (``fcn.report.averages``). Ours times ``scale`` is in ``unit``.
    """

    key: str
    title: str
    unit: str
    paper: str = ""
    origin: tuple[str, ...] = ()
    average: str = "all"
    better: str | None = None
    scale: float = 1.0
    digits: int = 1
    compare: bool = True
    dataset: str | None = None


@dataclass(frozen=True)
class Row:
    """A row of the paper; ``method`` is its name in ``paper_numbers.csv``.

    ``sources``: column to a dotted path in ``results/``, for a row that no run fills.
    """

    name: str
    method: str
    dataset: str | None = None
    reference: bool = False
    net: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Note:
    """A known discrepancy; without rows and columns it belongs to the whole table."""

    text: str
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    def marks(self, row: str | None, column: str | None) -> bool:
        """Does the mark of this note stand at this cell, row head or column head?"""
        if self.rows and self.columns:
            return row in self.rows and column in self.columns
        if self.rows:
            return row in self.rows and column is None
        return bool(self.columns) and column in self.columns and row is None


@dataclass(frozen=True)
class Table:
    """One table of the report, in the paper's shape."""

    id: str
    title: str
    short: str
    source: str
    kind: str = "numbers"
    reads: tuple[Read, ...] = ()
    columns: tuple[Column, ...] = ()
    rows: tuple[Row, ...] = ()
    notes: tuple[Note, ...] = ()
    images: bool = False
    ablation: bool = False


@dataclass(frozen=True)
class PaperNumber:
    """A line of ``paper_numbers.csv``; ``value`` as printed (its decimals are its precision)."""

    paper_version: str
    table: str
    dataset: str
    split: str
    method: str
    metric: str
    value: str
    unit: str
    hardware: str
    notes: str

    @property
    def number(self) -> float:
        return float(self.value)

    @property
    def decimals(self) -> int:
        return len(self.value.partition(".")[2])


@dataclass(frozen=True)
class Paper:
    """``paper_numbers.csv`` by version, table, method and metric, and ``figure5.csv``."""

    numbers: dict[tuple[str, str, str, str], list[PaperNumber]]
    figure5: pd.DataFrame

    def printed(self, read: Read, row: Row, column: Column) -> PaperNumber | None:
        """The number that a version prints in a cell, or None; two candidates are a UserError."""
        if not column.paper:
            return None
        found = self.numbers.get((read.version, read.table, row.method, column.paper), [])
        dataset = column.dataset or row.dataset
        if dataset is not None:
            found = [printed for printed in found if printed.dataset == dataset]
        if len(found) > 1:
            raise UserError(
                f"config/tables.yaml: {read.table} of {read.version} has {len(found)} numbers for "
                f"{row.method}, {column.paper}; name the dataset of the row or the column."
            )
        return found[0] if found else None

    def of(self, read: Read) -> list[PaperNumber]:
        """All numbers of one (version, table), in the order of the file."""
        return [
            printed
            for (version, table, _, _), group in self.numbers.items()
            for printed in group
            if (version, table) == (read.version, read.table)
        ]


def read_paper(folder: Path) -> Paper:
    """Read ``paper_numbers.csv`` and ``figure5.csv`` of a config folder.

    Raises:
        UserError: a file or a column is missing, or a value is no number.
    """
    numbers: dict[tuple[str, str, str, str], list[PaperNumber]] = {}
    path = folder / "paper_numbers.csv"
    names = [part.name for part in fields(PaperNumber)]
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            for line in csv.DictReader(handle):
                printed = PaperNumber(**{name: line[name] for name in names})
                float(printed.value)
                key = (printed.paper_version, printed.table, printed.method, printed.metric)
                numbers.setdefault(key, []).append(printed)
    except KeyError as error:
        raise UserError(f"{path}: no column {error}; it needs {', '.join(names)}.") from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}).") from None
    path = folder / "figure5.csv"
    try:
        figure5 = pd.read_csv(path).astype({"x": float, "loss": float})
        figure5[["panel", "series"]]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: cannot be read ({error}).") from None
    return Paper(numbers, figure5)


def _column(key: str, values: Mapping[str, Any]) -> Column:
    rest = {name: value for name, value in values.items() if name != "from"}
    return Column(
        key=key, origin=tuple(values["from"].split(".")) if "from" in values else (), **rest
    )


def _table(id: str, values: Mapping[str, Any]) -> Table:
    """A table, whose names must fit each other."""
    where = f"config/tables.yaml: {id}"
    columns, extra = values.get("columns", {}), values.get("extra", {})
    names = [row["name"] for row in values.get("rows", ())]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{where}.rows: two rows are named {twice[0]!r}; rename one.")
    if twice := sorted(columns.keys() & extra.keys()):
        raise UserError(f"{where}.extra: {twice[0]!r} stands in columns too; rename one.")
    for i, note in enumerate(values.get("notes", ())):
        for kind, known in (("row", names), ("column", [*columns, *extra])):
            for name in note.get(f"{kind}s", ()):
                if name not in known:
                    raise UserError(f"{where}.notes.{i}.{kind}s: {unknown(kind, name, known)}")
    rest = {name: value for name, value in values.items() if name != "extra"}
    rest["columns"] = tuple(_column(key, column) for key, column in {**columns, **extra}.items())
    rest["reads"] = tuple(Read(**read) for read in values.get("reads", ()))
    rest["rows"] = tuple(Row(**{"method": row["name"], **row}) for row in values.get("rows", ()))
    rest["notes"] = tuple(
        Note(note["text"], tuple(note.get("rows", ())), tuple(note.get("columns", ())))
        for note in values.get("notes", ())
    )
    return Table(id=id, **rest)


def parse_tables(tables: Mapping[str, Any]) -> list[Table]:
    """The tables of ``config/tables.yaml``, which is right by its schema, in its order."""
    return [_table(id, values) for id, values in tables.items()]
