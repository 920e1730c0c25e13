"""What the papers claim, as data: ``config/claims.yaml`` read and checked."""

import ast
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from fcn.errors import UserError
from fcn.report.paper import Paper, PaperNumber, Table
from fcn.report.spread import Deviation, Spread
from fcn.schema import CONFIG, check, read_yaml, unknown

Number = float | np.ndarray
_OPERATIONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
}
_CHOICES: dict[str, Callable[[Any, Any], Any]] = {"min": np.minimum, "max": np.maximum}


def _call(node: ast.expr, names: Iterable[str]) -> tuple[str, list[ast.expr]] | None:
    """The name and arguments of a call of one of ``names``."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        return (node.func.id, node.args) if node.func.id in names else None
    return None


@dataclass(frozen=True)
class Part:
    """An expression of + - * /, numbers and letters, or its absolute value."""

    tree: ast.expr
    absolute: bool

    @staticmethod
    def of(node: ast.expr) -> "Part":
        found = _call(node, ("abs",))
        absolute = found is not None and len(found[1]) == 1
        part = Part(found[1][0] if found and absolute else node, absolute)
        part._check(part.tree)
        return part

    def _check(self, node: ast.AST) -> None:
        match node:
            case ast.BinOp(left, op, right) if type(op) in _OPERATIONS:
                self._check(left)
                self._check(right)
            case ast.UnaryOp(ast.USub(), operand):
                self._check(operand)
            case ast.Name():
                pass
            case ast.Constant(value) if type(value) in (int, float):
                pass
            case _:
                raise ValueError(
                    f"{ast.unparse(node)!r} is not one of + - * /, nor abs around all of them, "
                    "nor min or max around several such"
                )

    @property
    def letters(self) -> set[str]:
        return {node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name)}

    def signed(self, values: Mapping[str, Number]) -> np.ndarray:
        """Its value before abs, of numbers or of draws; inf or NaN where it divides by zero."""
        with np.errstate(all="ignore"):
            return np.asarray(self._value(self.tree, values), np.float64)

    def _value(self, node: ast.AST, values: Mapping[str, Number]) -> Any:
        match node:
            case ast.BinOp(left, op, right):
                return _OPERATIONS[type(op)](self._value(left, values), self._value(right, values))
            case ast.UnaryOp(_, operand):
                return np.negative(self._value(operand, values))
            case ast.Name(name):
                return np.asarray(values[name], np.float64)
            case ast.Constant(value):
                return np.asarray(value, np.float64)
        raise AssertionError(ast.dump(node))  # _check lets nothing else pass

    def __call__(self, values: Mapping[str, Number]) -> np.ndarray:
        found = self.signed(values)
        return np.abs(found) if self.absolute else found


@dataclass(frozen=True)
class Measure:
    """An expression, or the least or greatest of several (``choice``: min, max or empty)."""

    text: str
    choice: str
    parts: tuple[Part, ...]

    @staticmethod
    def parse(text: str, where: str) -> "Measure":
        try:
            tree = ast.parse(text, mode="eval").body
            found = _call(tree, _CHOICES)
            choice, several = found if found and len(found[1]) > 1 else ("", [tree])
            return Measure(text, choice, tuple(map(Part.of, several)))
        except (SyntaxError, ValueError) as error:
            raise UserError(f"{where}: {text!r} is no measure: {error}.") from None

    @property
    def letters(self) -> set[str]:
        return set().union(*(part.letters for part in self.parts))

    def choose(self, values: Sequence[Number]) -> np.ndarray:
        """One value of those of the parts."""
        chosen = reduce(_CHOICES[self.choice], values) if self.choice else values[0]
        return np.asarray(chosen, np.float64)

    def __call__(self, values: Mapping[str, Number]) -> np.ndarray:
        """The measure of numbers or of arrays of draws; inf or NaN where it divides by zero."""
        return self.choose([part(values) for part in self.parts])

    def named(self, names: Mapping[str, str]) -> str:
        """The expression with names for its letters, in quotes where they hold an operator."""

        def shown(part: str) -> str:
            if part not in names:
                return part.replace("-", "−").replace("*", "×")
            return f"“{names[part]}”" if set(names[part]) & set("/,( ") else names[part]

        return "".join(map(shown, re.findall(r"[\w.]+|[^\w.]+", self.text)))


@dataclass(frozen=True)
class Tolerance:
    """Where a measure must lie, and why there; open bounds are infinite."""

    low: float
    high: float
    why: str

    def verdict(self, low: float, high: float) -> str:
        """Of an interval: inside, outside, or across a bound (which decides nothing)."""
        if self.low < low and high < self.high:
            return "reproduced"
        return "not reproduced" if high < self.low or low > self.high else "inconclusive"

    def of_parts(self, choice: str, verdicts: Sequence[str]) -> str:
        """Of the least or the greatest of several, from the verdict of each.

        The least lies above a bound if all do, the greatest if one does: no interval of a least
        value is made, which would lie below it.
        """
        all_must = np.isinf(self.high) == (choice == "min")
        enough, else_all = (
            ("not reproduced", "reproduced") if all_must else ("reproduced", "not reproduced")
        )
        if enough in verdicts:
            return enough
        return else_all if set(verdicts) == {else_all} else "inconclusive"


@dataclass(frozen=True)
class Value:
    """One letter of a test; which fields are set says what it is (config/claims.yaml).

    ``against``: labels of the texts that a run must be set against to count; empty for any.
    """

    table: str | None = None
    row: str | None = None
    column: str | None = None
    origin: tuple[str, ...] = ()
    printed: float | None = None
    loss: tuple[float, float] | None = None
    axis: str | None = None
    of: str | None = None
    at: float = 0.0
    paper: PaperNumber | None = None
    bounds: str | None = None
    classifier: str | None = None
    against: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What the page calls it."""
        if self.paper:
            return f"{self.paper.method}, as printed"
        if self.bounds:
            return (
                "nearest bounds" if self.bounds == "distance" else f"bound of factor {self.bounds}"
            )
        return self.row or self.classifier or ""


@dataclass(frozen=True)
class Test:
    """One test of a claim."""

    __test__ = False  # for pytest

    what: str
    values: dict[str, Value]
    measure: Measure
    unit: str
    expect: Tolerance
    diverged: dict[str, str] = field(default_factory=dict)  # letter: verdict if its run diverges


@dataclass(frozen=True)
class Claim:
    """One claim; ``printed`` are the papers' own figures, each with the label of its text."""

    id: str
    number: int
    section: str
    claim: str
    note: str
    by_test: str
    printed: list[tuple[str, PaperNumber]]
    tests: list[Test]


class _Reader:
    def __init__(self, path: Path, raw: Any, tables: list[Table], paper: Paper) -> None:
        self.path, self.raw, self.paper = path, raw, paper
        self.tables = {table.id: table for table in tables}

    def claims(self) -> list[Claim]:
        return [
            Claim(
                id=key,
                number=number,
                section=entry["section"],
                claim=entry["claim"],
                note=entry.get("note", ""),
                by_test=entry.get("by_test", ""),
                printed=[
                    (self.edition(of, key)["label"], self.number(of, key))
                    for of in entry.get("printed", [])
                ],
                tests=[
                    self.test(test, f"{key}.tests.{i}")
                    for i, test in enumerate(entry.get("tests", []))
                ],
            )
            for number, (key, entry) in enumerate(self.raw["claims"].items(), 1)
        ]

    def fail(self, where: str, text: str) -> UserError:
        return UserError(f"{self.path}: {where}: {text}")

    def edition(self, of: Mapping[str, str], where: str) -> dict[str, str]:
        if of["edition"] not in self.raw["editions"]:
            raise self.fail(where, unknown("edition", of["edition"], self.raw["editions"]))
        found: dict[str, str] = self.raw["editions"][of["edition"]]
        return found

    def number(self, of: Mapping[str, str], where: str) -> PaperNumber:
        key = (self.edition(of, where)["version"], of["table"], of["method"], of["metric"])
        found = [
            one
            for one in self.paper.numbers.get(key, [])
            if of.get("dataset") in (None, one.dataset)
        ]
        if len(found) != 1:
            count = "no number" if not found else f"{len(found)} numbers (name the dataset)"
            raise self.fail(where, f"paper_numbers.csv has {count} for {', '.join(key)}.")
        return found[0]

    def test(self, test: Mapping[str, Any], where: str) -> Test:
        measure = Measure.parse(test["measure"], f"{self.path}: {where}.measure")
        if measure.letters != set(test["values"]):
            odd = ", ".join(sorted(measure.letters ^ set(test["values"])))
            raise self.fail(where, f"measure and values differ in: {odd}.")
        expect = test["expect"]
        if isinstance(expect, str):
            if expect not in self.raw["tolerances"]:
                raise self.fail(where, unknown("tolerance", expect, self.raw["tolerances"]))
            expect = self.raw["tolerances"][expect]
        low, high = expect.get("between", (-np.inf, np.inf))
        tolerance = Tolerance(expect.get("above", low), expect.get("below", high), expect["why"])
        if measure.choice and np.isfinite(tolerance.low) and np.isfinite(tolerance.high):
            raise self.fail(where, f"a {measure.choice} lies above or below a bound, not between.")
        values = {
            letter: self.value(value, test, f"{where}.values.{letter}")
            for letter, value in test["values"].items()
        }
        diverged = test.get("diverged", {})
        if not set(diverged) <= set(values):
            odd = ", ".join(sorted(set(diverged) - set(values)))
            raise self.fail(where, f"diverged names letters that are no values: {odd}.")
        unit = test.get("unit", "points")
        return Test(test["what"], values, measure, unit, tolerance, diverged)

    def value(self, value: Any, test: Mapping[str, Any], where: str) -> Value:
        if isinstance(value, str):
            value = {"row": value}
        if "paper" in value:
            return Value(paper=self.number(value["paper"], where))
        if "bounds" in value:
            return Value(bounds=value["bounds"])
        if "classifier" in value:
            return Value(classifier=value["classifier"], printed=value.get("printed"))
        table = value.get("table", test.get("table"))
        if table not in self.tables:
            raise self.fail(where, unknown("table", str(table), self.tables))
        rows = [row.name for row in self.tables[table].rows]
        cost = value.get("cost", {})
        for row in filter(None, (value["row"], cost.get("of"))):
            if row not in rows:
                raise self.fail(where, f"in {table}, {unknown('row', row, rows)}")
        labels = [read.label for read in self.tables[table].reads]
        for label in test.get("against", ()):
            if label not in labels:
                raise self.fail(where, f"in {table}, {unknown('text', label, labels)}")
        curve = "cost" in value or "loss" in value
        column = value.get("column", test.get("column", "mean_iu"))
        if "from" in value or curve:
            column = None
        columns = [c.key for c in self.tables[table].columns]
        if column and column not in columns:
            raise self.fail(where, f"in {table}, {unknown('column', column, columns)}")
        return Value(
            table=table,
            row=value["row"],
            column=column,
            origin=tuple(value["from"].split(".")) if "from" in value else (),
            loss=tuple(value["loss"]) if "loss" in value else None,
            axis=cost.get("axis"),
            of=cost.get("of"),
            at=cost.get("at", 0.0),
            against=tuple(test.get("against", ())),
        )


def assumed_spread(folder: Path) -> Spread:
    """What ``claims.yaml`` assumes of seeds; what one does to every run cancels and is left out."""
    assumed = read_yaml(folder / "claims.yaml")["spread"]
    training, family, stage = (
        Deviation(assumed[key]["points"], assumed[key]["freedom"])
        for key in ("training", "family", "stage")
    )
    return Spread(Deviation(0.0), training, family, stage)


def read_claims(folder: Path, tables: list[Table], paper: Paper) -> list[Claim]:
    """Read ``claims.yaml`` of a config folder, in its order.

    Raises:
        UserError: a key, row, column, number or expression is wrong.
    """
    path = folder / "claims.yaml"
    raw = read_yaml(path)
    check(raw, read_yaml(CONFIG / "schemas" / "claims.yaml"), path)
    return _Reader(path, raw, tables, paper).claims()
