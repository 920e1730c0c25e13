"""The papers' side of a claim: what their own numbers measure."""

from dataclasses import dataclass

import numpy as np

from fcn.report.claims import Test, Value
from fcn.report.curves import SMOOTH, level_at, mean_loss, reached
from fcn.report.paper import Column, Paper, Table

ANY = ""  # label of a number that belongs to every text


@dataclass(frozen=True)
class Printed:
    """The printed numbers by the values of a claim's tests."""

    tables: dict[str, Table]
    paper: Paper

    def column(self, value: Value) -> Column | None:
        """The column in which a value stands, if it stands in one."""
        columns = self.tables[str(value.table)].columns
        return next((column for column in columns if column.key == value.column), None)

    def measures(self, test: Test) -> list[tuple[str, float]]:
        """(label, measure) for each text that prints every value of a test."""
        sides = [self.value(value) for value in test.values.values()]
        against = {label for value in test.values.values() for label in value.against}
        of_texts = [side for side in sides if ANY not in side]
        found = []
        for label in of_texts[0] if of_texts else ():
            if against and label not in against:
                continue
            values = [side.get(label, side.get(ANY)) for side in sides]
            known = {k: v for k, v in zip(test.values, values, strict=True) if v is not None}
            if len(known) == len(values):
                found.append((label, float(test.measure(known))))
        return found

    def value(self, value: Value) -> dict[str, float]:
        """A value in the papers by the label of the text, under ``ANY`` where it stands in all."""
        if value.paper:
            return {ANY: value.paper.number}
        if value.bounds:
            if value.bounds == "distance":
                return {}
            table = next(t for t in self.tables.values() if t.kind == "bounds")
            return self.cell(table, value.bounds, table.columns[0])
        if value.classifier:
            return {} if value.printed is None else {ANY: value.printed}
        table = self.tables[str(value.table)]
        if value.loss or value.axis:
            point = self.curve(value)
            return {} if point is None else {"Figure 5": point}
        column = self.column(value)
        return {} if column is None else self.cell(table, str(value.row), column)

    def cell(self, table: Table, name: str, column: Column) -> dict[str, float]:
        """What the texts print in a cell of a table, by their labels."""
        row = next(row for row in table.rows if row.name == name)
        found: dict[str, float] = {}
        for read in table.reads:
            printed = self.paper.printed(read, row, column)
            if printed:
                found[read.label] = printed.number
        return found

    def curve(self, value: Value) -> float | None:
        """A value of Figure 5, whose digitised curves have no seconds."""
        if self.tables[str(value.table)].kind != "figure5" or value.axis == "seconds":
            return None

        def panel(name: str, side: str) -> tuple[np.ndarray, np.ndarray]:
            curves = self.paper.figure5
            part = curves[(curves.series == name) & (curves.panel == side)]
            return part.x.to_numpy(float), part.loss.to_numpy(float)

        x, y = panel(str(value.row), "left")
        if value.loss:
            return mean_loss(x, y, *value.loss)
        level = level_at(*panel(str(value.of), "left"), value.at, SMOOTH)
        x, y = panel(str(value.row), "left" if value.axis == "update" else "right")
        return None if level is None else reached(x, y, level, SMOOTH)
