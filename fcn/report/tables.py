"""The paper's tables with ours beside them: one model that the page and every export read."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from fcn.files import lookup
from fcn.report.paper import Column, Paper, PaperNumber, Read, Row, Table
from fcn.report.results import Results, RunResult, Status, finite, is_time, mean_and_std

DASH = "–"
MINUS = "−"
THIN = "\u202f"


@dataclass(frozen=True)
class Cell:
    """What a reader sees in a cell, and what stands behind it (``title``: full precision)."""

    text: str = ""
    title: str = ""
    marks: str = ""
    below: str = ""


@dataclass
class Line:
    """One line of a row: the paper's, ours, what follows from the net, or the difference.

    ``span``: this line and the differences that follow it.
    """

    kind: str
    label: str
    cells: list[Cell]
    result: RunResult | None = None
    status: Status | None = None
    targets: tuple[str, ...] = ()
    span: int = 1


@dataclass
class Group:
    """A row of the paper with all its lines; ``extra`` when the paper has no such row."""

    name: str
    marks: str
    lines: list[Line]
    extra: bool = False


@dataclass
class TableView:
    """A table ready to print."""

    table: Table
    heads: list[Cell]
    groups: list[Group]
    notes: list[tuple[str, str]]
    runs: list[RunResult]
    verdict: str = ""

    @property
    def fed(self) -> bool:
        """Something here feeds the table: a run of the suite, or a value that belongs to none."""
        return any(
            line.targets or (line.kind == "ours" and line.status and line.status.kind == "done")
            for group in self.groups
            for line in group.lines
        )


@dataclass(frozen=True)
class Record:
    """One line of ``tables.csv``; ours and the difference are in the paper's unit, unrounded."""

    table: str
    row: str
    dataset: str
    split: str
    metric: str
    paper_version: str
    paper: str
    ours_mean: float | None
    ours_std: float | None
    seeds: str
    n_seeds: int
    difference: float | None
    status: str
    config_hash: str
    run: str
    unit: str
    interval_low: float | None = None
    interval_high: float | None = None


@dataclass
class Book:
    """All tables of the page, and the records of ``tables.csv``."""

    tables: list[TableView] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)


def number(value: float, digits: int) -> str:
    """A rounded number: true minus, no negative zero, from 1000 on thin spaces for thousands."""
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    if abs(value) >= 1000:
        text = f"{value:,.{digits}f}".replace(",", THIN)
    return text.replace("-", MINUS)


def signed(value: float, digits: int) -> str:
    text = number(value, digits)
    return text if text.startswith(MINUS) or not set(text) & set("123456789") else f"+{text}"


def ours(result: RunResult, column: Column) -> tuple[float | None, float | None, int]:
    """Mean, sample standard deviation and n over the measured seeds, in the column's unit."""
    values = [value * column.scale for value in result.values(column.origin, column.average)]
    return *mean_and_std(values), len(values)


def against(result: RunResult, table: str, row: str) -> tuple[str, ...]:
    """Labels of the texts that a run is set against in a row; empty for all."""
    rows = [r.against for r in result.run.rows if (r.table, r.row) == (table, row)]
    return rows[0] if rows else ()


def agrees(value: float, printed: PaperNumber) -> bool:
    """Does ``value`` round to the printed number at its own precision?"""
    return math.isclose(round(value, printed.decimals), printed.number, abs_tol=1e-9)


def _marks(table: Table) -> list[str]:
    """A letter for each note that names a row or a column, nothing for the others."""
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    return [next(letters) if note.rows or note.columns else "" for note in table.notes]


def _notes(table: Table) -> list[tuple[str, str]]:
    return list(zip(_marks(table), (note.text for note in table.notes), strict=True))


class _Builder:
    def __init__(self, table: Table, paper: Paper, results: Results) -> None:
        self.table, self.paper, self.results = table, paper, results
        self.columns = table.columns
        self.records: list[Record] = []

    def marks(self, row: str | None, column: str | None) -> str:
        pairs = zip(_marks(self.table), self.table.notes, strict=True)
        return " ".join(mark for mark, note in pairs if note.marks(row, column))

    def printed(self, row: Row) -> list[tuple[Read, list[PaperNumber | None]]]:
        """For each version that has the row: its numbers, one per column."""
        found = []
        for read in self.table.reads:
            numbers = [self.paper.printed(read, row, column) for column in self.columns]
            if any(numbers):
                found.append((read, numbers))
        return found

    def paper_lines(
        self, row: Row, printed: list[tuple[Read, list[PaperNumber | None]]]
    ) -> list[Line]:
        """One line for each version; versions with the same numbers share a line."""
        shared: dict[tuple[str, ...], list[Read]] = {}
        for read, numbers in printed:
            key = tuple(n.value if n else "" for n in numbers)
            shared.setdefault(key, []).append(read)
        lines = []
        for texts, reads in shared.items():
            numbers = next(numbers for read, numbers in printed if read is reads[0])
            cells = [
                Cell(
                    text,
                    title=n.notes if n else "",
                    marks=self.marks(row.name, column.key) if text else "",
                    below=n.hardware.removeprefix("NVIDIA ") if n else "",
                )
                for text, n, column in zip(texts, numbers, self.columns, strict=True)
            ]
            lines.append(Line("paper", " = ".join(dict.fromkeys(r.label for r in reads)), cells))
        return lines

    def record(
        self,
        row: str,
        column: Column,
        printed: PaperNumber | None,
        result: RunResult | None,
        status: str,
        value: float | None = None,
        std: float | None = None,
        seeds: Iterable[int] = (),
        config_hash: str = "",
    ) -> None:
        test = result.run.config["test"] if result else {}
        seeds = list(seeds)
        difference = None
        stale = result is not None and result.stale
        if value is not None and printed is not None and column.compare and not stale:
            difference = value - printed.number
        self.records.append(
            Record(
                table=self.table.id,
                row=row,
                dataset=test.get("dataset", printed.dataset if printed else ""),
                split=test.get("split", printed.split if printed else ""),
                metric=column.key,
                paper_version=printed.paper_version if printed else "",
                paper=printed.value if printed else "",
                ours_mean=value,
                ours_std=std,
                seeds=" ".join(map(str, seeds)),
                n_seeds=len(seeds),
                difference=difference,
                status=status,
                config_hash=config_hash,
                run=result.run.id if result else "",
                unit=column.unit,
            )
        )

    def difference_lines(
        self, values: list[float | None], printed: list[tuple[Read, list[PaperNumber | None]]]
    ) -> list[Line]:
        """Ours minus the paper's, once for each version that differs in what is compared."""
        lines: dict[tuple[str, ...], list[str]] = {}
        for read, numbers in printed:
            texts = tuple(
                signed(value - n.number, max(n.decimals, column.digits))
                if value is not None and n is not None and column.compare
                else ""
                for value, n, column in zip(values, numbers, self.columns, strict=True)
            )
            if any(texts):
                lines.setdefault(texts, []).append(read.label)
        many = len(lines) > 1
        return [
            Line(
                "difference",
                f"ours {MINUS} {' = '.join(labels)}" if many else f"ours {MINUS} paper",
                [Cell(text) for text in texts],
            )
            for texts, labels in lines.items()
        ]

    def ours_lines(
        self, row: str, result: RunResult, printed: list[tuple[Read, list[PaperNumber | None]]]
    ) -> list[Line]:
        status = result.status
        cells: list[Cell] = []
        values: list[float | None] = []
        for i, column in enumerate(self.columns):
            if column.origin[:1] in (("architecture",), ("server",)):
                cells.append(Cell())
                values.append(None)
                continue
            mean, std, n = ours(result, column)
            values.append(mean)
            used = result.measured(column.origin, column.average)
            for one in [n[i] for _, n in printed if n[i]] or [None]:
                self.record(
                    row,
                    column,
                    one,
                    result,
                    status.text if mean is not None or not result.counted else "not measured",
                    mean,
                    std,
                    [seed.seed for seed in used],
                    used[0].any.get("config_hash", "") if used else "",
                )
            if mean is None:
                cells.append(Cell(DASH if result.counted and column.origin else ""))
                continue
            text = number_of(mean, std, column)
            title = f"{mean!r} {column.unit}" + (
                f", standard deviation {std!r}" if std is not None else ""
            )
            device = used[0].device(column.origin) if is_time(column.origin) else ""
            cells.append(Cell(text, title=f"{title}, n = {n}", below=device))
        targets = tuple(seed.target for seed in result.seeds)
        differences = [] if result.stale else self.difference_lines(values, printed)
        span = 1 + len(differences)
        return [Line("ours", "ours", cells, result, status, targets, span), *differences]

    def computed_lines(
        self, row: Row, printed: list[tuple[Read, list[PaperNumber | None]]]
    ) -> list[Line]:
        """What follows from the net alone, set against the paper at the paper's precision."""
        if row.sources:
            return self.sourced_lines(row, printed)
        if row.net is None:
            return []
        net = self.results.nets.get(row.net)
        cells, differ = [], []
        for i, column in enumerate(self.columns):
            value = None
            if column.origin[:1] == ("architecture",):
                value = finite(lookup(net, column.origin[1:]))
                value = None if value is None else value * column.scale
                pairs = [one for _, n in printed if (one := n[i])]
                status = "computed from the net" if value is not None else "no architecture.json"
                for one in pairs:
                    self.record(row.name, column, one, None, status, value)
                if value is not None and not all(agrees(value, one) for one in pairs):
                    differ.append(column.title)
            text = "" if value is None else number(value, column.digits)
            cells.append(Cell(text, "" if value is None else repr(value)))
        if net is None:
            verdict = Status("missing", f"results/architecture.json has no net {row.net}")
        elif differ:
            verdict = Status("partial", f"differs from the paper: {', '.join(differ)}")
        else:
            verdict = Status("done", "agrees with the paper at its precision")
        note = lookup(net, ("receptive_field_note",))
        if note:
            verdict = Status(verdict.kind, f"{verdict.text}. {note}")
        return [Line("computed", "computed from the full-size net", cells, None, verdict)]

    def sourced_lines(
        self, row: Row, printed: list[tuple[Read, list[PaperNumber | None]]]
    ) -> list[Line]:
        """A row that no run fills: its values from files that belong to none."""
        cells = []
        for i, column in enumerate(self.columns):
            value = self.results.number(tuple(row.sources.get(column.key, "").split(".")))
            value = None if value is None else value * column.scale
            said = "not run" if value is None else "done"
            for one in [n[i] for _, n in printed if n[i]] or [None]:
                self.record(row.name, column, one, None, said, value)
            cells.append(
                Cell() if value is None else Cell(number(value, column.digits), repr(value))
            )
        found = any(cell.text for cell in cells)
        device = self.results.classifier.get("device")
        name = lookup(self.results.classifier, ("provenance", "device", "name"))
        text = f"measured on {name or device}" if found else "not run"
        status = Status("done" if found else "missing", text)
        return [Line("ours", "ours", cells, None, status)]

    def server_lines(
        self, row: str, printed: list[tuple[Read, list[PaperNumber | None]]]
    ) -> list[Line]:
        """What the evaluation server gave back for archives of ours."""
        lines = []
        for entry in self.results.server:
            if (entry["table"], entry["row"]) != (self.table.id, row):
                continue
            values: list[float | None] = []
            for i, column in enumerate(self.columns):
                here = column.origin[1] if column.origin[:1] == ("server",) else ""
                value = finite(entry.get(here))
                values.append(value)
                for one in [n[i] for _, n in printed if n[i]] or [None]:
                    if value is not None:
                        self.record(row, column, one, None, f"server, {entry['date']}", value)
            cells = [
                Cell() if v is None else Cell(number(v, c.digits), repr(v))
                for v, c in zip(values, self.columns, strict=True)
            ]
            text = f"scored by the server on {entry['date']}"
            text += f". {entry['note']}" if entry.get("note") else ""
            differences = self.difference_lines(values, printed)
            label = f"{entry['run']}, seed {entry['seed']}"
            status = Status("done", text)
            lines.append(Line("ours", label, cells, None, status, span=1 + len(differences)))
            lines += differences
        return lines

    def group(self, row: Row, feeding: list[RunResult], extra: bool = False) -> Group:
        printed = [] if extra else self.printed(row)
        lines = self.paper_lines(row, printed) + self.computed_lines(row, printed)
        for result in feeding:
            texts = against(result, self.table.id, row.name)
            chosen = [(read, n) for read, n in printed if not texts or read.label in texts]
            lines += self.ours_lines(row.name, result, chosen)
        served = self.server_lines(row.name, printed)
        lines += served
        if not feeding and not row.sources and not served:
            text = "another author's" if row.reference else "no run in this suite"
            for _, numbers in printed:
                for column, n in zip(self.columns, numbers, strict=True):
                    if n and column.origin[:1] != ("architecture",):
                        self.record(row.name, column, n, None, text)
            if not row.reference:
                lines.append(
                    Line("ours", "ours", [Cell() for _ in self.columns], None, Status("none", text))
                )
        return Group(row.name, self.marks(row.name, None), lines, extra)


def number_of(mean: float, std: float | None, column: Column) -> str:
    """``63.1 ± 0.3``, or ``63.1`` from one seed."""
    text = number(mean, column.digits)
    return text if std is None else f"{text} ± {number(std, column.digits)}"


def feeding(results: Results, table: str) -> dict[str, list[RunResult]]:
    """Row name to the runs that name it, in the suite's order."""
    rows: dict[str, list[RunResult]] = {}
    for result in results.runs.values():
        for row in result.run.rows:
            if row.table == table:
                rows.setdefault(row.row, []).append(result)
    return rows


def _filled(column: Column, table: Table, rows: dict[str, list[RunResult]]) -> bool:
    """Whether a row's source or a run has a value for a column."""
    runs = (result for of_row in rows.values() for result in of_row)
    return any(column.key in row.sources for row in table.rows) or any(
        result.values(column.origin, column.average) for result in runs
    )


def build_table(
    table: Table, paper: Paper, results: Results, rows: dict[str, list[RunResult]]
) -> tuple[TableView, list[Record]]:
    """Join a table of the paper with the runs that feed its rows; a row it lacks is added.

    Of an ablation, rows without a run and without a printed number are only named below it. A
    column that no paper prints and no run fills is left out.
    """
    table = replace(
        table, columns=tuple(c for c in table.columns if c.paper or _filled(c, table, rows))
    )
    builder = _Builder(table, paper, results)
    idle = [
        row
        for row in table.rows
        if table.ablation and row.name not in rows and not builder.printed(row)
    ]
    groups = [builder.group(row, rows.get(row.name, [])) for row in table.rows if row not in idle]
    names = ", ".join(f"“{row.name}”" for row in idle)
    verdict = f"No run in this suite: {names}." if names else ""
    known = {row.name for row in table.rows}
    for name, runs in rows.items():
        if name not in known:
            groups.append(builder.group(Row(name, name), runs, extra=True))
    heads = [
        Cell(c.title, marks=builder.marks(None, c.key), below=c.unit, title=c.better or "")
        for c in table.columns
    ]
    order = [*(row.name for row in table.rows), *(name for name in rows if name not in known)]
    runs = list({r.run.id: r for name in order for r in rows.get(name, [])}.values())
    return TableView(table, heads, groups, _notes(table), runs, verdict), builder.records


def build_book(tables: list[Table], paper: Paper, results: Results) -> Book:
    """Every table in order; a table of kind ``other`` takes the runs that no other table names."""
    tabled = {table.id for table in tables}
    untabled = [
        result
        for result in results.runs.values()
        if not any(row.table in tabled for row in result.run.rows)
    ]
    book = Book()
    for table in tables:
        rows = feeding(results, table.id)
        if table.kind == "other":
            titles = [result.run.title for result in untabled]
            rows = {
                r.run.title if titles.count(r.run.title) == 1 else r.run.id: [r] for r in untabled
            }
        if table.kind == "bounds":
            view = bounds_view(table, paper, results)
            records = bounds_records(table, paper, results)
        elif table.kind == "list":
            view, records = list_view(table, paper), []
        else:
            view, records = build_table(table, paper, results, rows)
        if view.groups or table.kind != "other":
            book.tables.append(view)
        book.records += records
    return book


def bounds_view(table: Table, paper: Paper, results: Results) -> TableView:
    """Factors across, resampling methods down, each set against the printed numbers.

    A method fits when every one of its values rounds to the printed number at its precision.
    """
    column = table.columns[0]
    builder = _Builder(table, paper, results)
    printed = [builder.printed(row) for row in table.rows]
    lines: dict[tuple[str, ...], list[str]] = {}
    for read in table.reads:
        found = [next((n[0] for r, n in numbers if r is read), None) for numbers in printed]
        if any(found):
            lines.setdefault(tuple(n.value if n else "" for n in found), []).append(read.label)
    groups = [
        Group(
            "paper",
            "",
            [
                Line("paper", " = ".join(names), [Cell(t) for t in texts])
                for texts, names in lines.items()
            ],
        )
    ]
    verdicts = []
    for entry, bounds in results.bounds:
        where = f"{entry['dataset']} {entry['split']}"
        images = bounds.get("images")
        group = Group(f"{where}, {images} images" if images else where, "", [])
        targets = (f"results/{entry['dataset']}/bounds.json",)
        fitting = []
        distances: dict[str, float] = {}
        for method, values in bounds.get("methods", {}).items():
            own = [finite(lookup(values, (row.name,))) for row in table.rows]
            scaled = [None if value is None else value * column.scale for value in own]
            pairs = [
                (value, n[0])
                for value, numbers in zip(scaled, printed, strict=True)
                for _, n in numbers
                if n[0] is not None
            ]
            worst = max((abs(v - n.number) for v, n in pairs if v is not None), default=0.0)
            distances[method] = worst if None not in scaled else math.inf
            fits = bool(pairs) and all(v is not None and agrees(v, n) for v, n in pairs)
            fitting += [method] if fits else []
            text = "agrees with every number" if fits else f"off by up to {number(worst, 1)}"
            text = text if column.compare else "done"
            cells = [
                Cell(DASH) if v is None else Cell(number(v, column.digits), repr(v)) for v in scaled
            ]
            status = Status("done" if fits else "partial", text)
            group.lines.append(Line("ours", method, cells, None, status, targets))
        if not group.lines:
            status = Status("missing", "not run")
            empty = [Cell() for _ in table.rows]
            group.lines.append(Line("ours", "ours", empty, None, status, targets))
        elif column.compare:
            verdicts.append(
                f"On {where}, {len(fitting) or 'none'} of {len(group.lines)} methods agree"
                f"{'' if len(fitting) > 1 else 's'} with every printed number"
                + (f": {', '.join(fitting)}." if fitting else ".")
            )
            group.lines.sort(key=lambda line: distances[line.label])
            nearest = group.lines[0].label
            if not fitting and distances[nearest] < math.inf:
                verdicts.append(
                    f"Nearest: {nearest}, off by up to {number(distances[nearest], 1)}."
                )
        groups.append(group)
    heads = [Cell(f"factor {row.name}", below=column.unit) for row in table.rows]
    told = [bounds["explanations"] for _, bounds in results.bounds if "explanations" in bounds]
    notes = _notes(table)
    if told and isinstance(told[0], dict):
        named = "A method names how the map is reduced, how it is enlarged, what becomes of void:"
        notes += [("", named), *(("", f"{name}: {text}.") for name, text in told[0].items())]
    return TableView(table, heads, groups, notes, [], " ".join(verdicts))


def list_view(table: Table, paper: Paper) -> TableView:
    """Numbers as they stand in ``paper_numbers.csv``, a line for each method."""
    groups = []
    for read in table.reads:
        lines: dict[tuple[str, str], dict[str, Cell]] = {}
        for entry in paper.of(read):
            cells = lines.setdefault((entry.method, entry.split), {})
            cells[entry.metric] = Cell(entry.value, title=entry.notes)
        group = Group(read.label, "", [])
        for (method, split), cells in lines.items():
            row = [cells.get(column.paper, Cell()) for column in table.columns]
            group.lines.append(Line("paper", f"{method}, {split}", row))
        groups.append(group)
    heads = [Cell(c.title, below=c.unit, title=c.better or "") for c in table.columns]
    return TableView(table, heads, groups, _notes(table), [])


def bounds_records(table: Table, paper: Paper, results: Results) -> list[Record]:
    """``tables.csv`` lines of the upper bounds: one for each factor, method and version."""
    column, records = table.columns[0], []
    for entry, bounds in results.bounds or [({}, {})]:
        for row in table.rows:
            values = {
                method: finite(lookup(of_method, (row.name,)))
                for method, of_method in bounds.get("methods", {}).items()
            }
            for read in table.reads:
                printed = paper.printed(read, row, column)
                if printed is None:
                    continue
                for method, value in (values or {"": None}).items():
                    mean = None if value is None else value * column.scale
                    difference = None
                    if mean is not None and column.compare:
                        difference = mean - printed.number
                    records.append(
                        Record(
                            table=table.id,
                            row=f"{row.name} {method}".strip(),
                            dataset=entry.get("dataset", printed.dataset),
                            split=entry.get("split", printed.split),
                            metric=column.key,
                            paper_version=read.version,
                            paper=printed.value,
                            ours_mean=mean,
                            ours_std=None,
                            seeds="",
                            n_seeds=0,
                            difference=difference,
                            status="not run" if mean is None else "done",
                            config_hash="",
                            run="",
                            unit=column.unit,
                        )
                    )
    return records
