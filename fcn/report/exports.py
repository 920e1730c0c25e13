"""The tables outside the page: CSV (every number, unrounded), Markdown and LaTeX (booktabs)."""

import csv
import io
import unicodedata
from dataclasses import asdict, fields

from fcn.report.results import RunResult
from fcn.report.tables import Cell, Line, Record, TableView
from fcn.report.verdicts import ClaimView, TestView, any_decided, counts, on_one_seed

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
    "—": "---",
    "×": r"$\times$",
    "≥": r"$\ge$",
    "≤": r"$\le$",
    "’": "'",
    "“": "``",
    "”": "''",
    "…": r"\ldots{}",
    "\u202f": r"\thinspace{}",
    "\u00a0": " ",
}


def latex(text: str) -> str:
    """Escape for plain pdflatex; other non-ASCII characters lose their accents or become ``?``."""
    out = []
    for character in text:
        if character in _LATEX:
            out.append(_LATEX[character])
        elif ord(character) < 128:
            out.append(" " if character in "\n\r\t" else character)
        else:
            plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
            out.append("".join(_LATEX.get(c, c) for c in plain) or "?")
    return "".join(out)


def markdown(text: str) -> str:
    """Escape for a cell of a Markdown table."""
    for character in "\\`*_[]<>|":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def claim_records(claims: list[ClaimView]) -> list[Record]:
    """``tables.csv`` lines of the claims: one for each test, its measure under ``ours_mean``."""
    records = []
    for view in claims:
        tests: list[TestView | None] = [*view.tests] or [None]
        for test in tests:
            runs = {r.run.id: r for _, _, r in test.values if r} if test else {}
            scored = [run.run.config["test"] for run in runs.values()]
            records.append(
                Record(
                    table="claims",
                    row=f"{view.claim.number} {view.claim.id}",
                    dataset=" ".join(dict.fromkeys(t["dataset"] for t in scored)),
                    split=" ".join(dict.fromkeys(t["split"] for t in scored)),
                    metric=f"{test.test.what}: {test.formula}" if test else view.claim.by_test,
                    paper_version="; ".join(label for _, label in test.paper) if test else "",
                    paper="; ".join(repr(point) for point, _ in test.printed) if test else "",
                    ours_mean=test.point if test else None,
                    ours_std=None,
                    seeds="",
                    n_seeds=min((len(run.counted) for run in runs.values()), default=0),
                    difference=None,
                    status=test.verdict if test else view.verdict,
                    config_hash="",
                    run=" ".join(runs),
                    unit=test.test.unit if test else "",
                    interval_low=test.low if test else None,
                    interval_high=test.high if test else None,
                )
            )
    return records


def to_csv(records: list[Record]) -> str:
    """``tables.csv``: one line for each number, row and version of the paper."""
    buffer = io.StringIO()
    names = [field.name for field in fields(Record)]
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    for record in records:
        values = asdict(record)
        writer.writerow(
            {
                k: "" if v is None else repr(v) if isinstance(v, float) else v
                for k, v in values.items()
            }
        )
    return buffer.getvalue()


def _label(line: Line) -> str:
    if line.result is None:
        return line.label
    return f"{line.label}, {line.result.run.id}"


def _text(cell: Cell) -> str:
    return f"{cell.text} ({cell.below})" if cell.text and cell.below else cell.text


def _status(line: Line) -> str:
    if line.status is None or (line.status.kind == "done" and line.kind == "ours"):
        counted = len(line.result.counted) if line.result else 0
        return f"n = {counted}" if counted else ""
    return line.status.text


CLAIM_HEADS = ("", "claim", "test", "paper", "ours", "verdict")


def _claim_rows(view: ClaimView) -> list[list[str]]:
    """One line for each test: number, claim, test, paper, ours, verdict."""
    whole = f": {view.verdict}" if len(view.tests) > 1 else ""
    first = [str(view.claim.number), f"{view.claim.claim} ({view.claim.section}){whole}"]
    if not view.tests:
        return [[*first, f"held by {view.claim.by_test}", "", "", view.verdict]]
    rows = []
    for i, test in enumerate(view.tests):
        paper = "; ".join(f"{text} ({label})" for text, label in test.paper)
        ours = ", ".join(part for part in (test.ours, *test.marks) if part)
        values = "; ".join(f"{_named(name, run)} {text}" for name, text, run in test.values)
        ours += f" ({values})" if test.ours and values else ""
        verdict = test.verdict + (f" ({test.reason})" if test.reason else "")
        what = f"{test.test.what}: {test.expected}"
        rows.append([*(first if i == 0 else ["", ""]), what, paper, ours, verdict])
    return rows


def _named(name: str, run: RunResult | None) -> str:
    """A row of a claim, and the run that fills it where that has another title."""
    return name if run is None or run.run.title == name else f"{name} ({run.run.title})"


def _claim_counts(claims: list[ClaimView]) -> str:
    alone = on_one_seed(claims)
    parts = [
        f"{n} {verdict}" + (f" ({alone[verdict]} on one seed of a run)" if verdict in alone else "")
        for verdict, n in counts(claims)
    ]
    return f"Claims: {', '.join(parts)}."


def to_markdown(
    title: str, notice: list[str], claims: list[ClaimView], tables: list[TableView]
) -> str:
    """GitHub tables: the claims, then every line of every row."""
    out = [f"# {markdown(title)}", ""]
    out += [f"> {markdown(text)}\n" for text in notice]
    if claims:
        out += ["## Claims", "", markdown(_claim_counts(claims)), ""]
    if any_decided(claims):
        out.append("| " + " | ".join(CLAIM_HEADS) + " |")
        out.append("|" + " --- |" * len(CLAIM_HEADS))
        for claim in claims:
            for cells in _claim_rows(claim):
                out.append("| " + " | ".join(markdown(cell) for cell in cells) + " |")
        out.append("")
    for view in tables:
        if not view.groups:
            continue
        out += [f"## {markdown(view.table.title)}", "", f"{markdown(view.table.source)}", ""]
        heads = ["", ""] + [_head(cell) for cell in view.heads] + ["status"]
        out.append("| " + " | ".join(markdown(head) for head in heads) + " |")
        out.append("|" + " --- |" * 2 + " ---: |" * len(view.heads) + " --- |")
        for group in view.groups:
            for i, line in enumerate(group.lines):
                cells = [group.name if i == 0 else "", _label(line)]
                cells += [_text(cell) for cell in line.cells] + [_status(line)]
                out.append("| " + " | ".join(markdown(cell) for cell in cells) + " |")
        out += [""] + [
            f"- {f'({mark}) ' if mark else ''}{markdown(text)}" for mark, text in view.notes
        ]
        out.append("")
    return "\n".join(out).rstrip() + "\n"


def _head(cell: Cell) -> str:
    return f"{cell.text} ({cell.below})" if cell.below else cell.text


def to_latex(
    title: str, notice: list[str], claims: list[ClaimView], tables: list[TableView]
) -> str:
    """A document of its own with one booktabs longtable for the claims and for each table."""
    out = [
        r"\documentclass[10pt,a4paper,landscape]{article}",
        r"\usepackage[margin=15mm]{geometry}",
        r"\usepackage[T1]{fontenc}",
        r"\usepackage{booktabs,longtable,array}",
        r"\setlength{\tabcolsep}{4pt}",
        r"\begin{document}",
        rf"\section*{{{latex(title)}}}",
    ]
    out += [rf"\noindent\textbf{{{latex(text)}}}\par" for text in notice]
    if any_decided(claims):
        wide = r">{\raggedright\arraybackslash}p"
        columns = "r" + "".join(f"{wide}{{{mm}mm}}" for mm in (80, 55, 34, 34, 32))
        out += [
            "",
            r"\subsection*{Claims}",
            rf"\noindent {latex(_claim_counts(claims))}\par",
            r"{\footnotesize",
            rf"\begin{{longtable}}{{{columns}}}",
            r"\toprule",
            " & ".join(CLAIM_HEADS) + r" \\",
            r"\midrule",
            r"\endhead",
        ]
        for claim in claims:
            for cells in _claim_rows(claim):
                out.append(" & ".join(latex(cell) for cell in cells) + r" \\")
            out.append(r"\addlinespace")
        out += [r"\bottomrule", r"\end{longtable}}"]
    for view in tables:
        if not view.groups:
            continue
        wide = r">{\raggedright\arraybackslash}p"
        status = min(60, max(28, 190 - 27 * len(view.heads)))  # mm that the numbers leave
        columns = f"{wide}{{32mm}}{wide}{{38mm}}" + "r" * len(view.heads) + f"{wide}{{{status}mm}}"
        heads = ["", "", *(_head(cell) for cell in view.heads), "status"]
        out += [
            "",
            rf"\subsection*{{{latex(view.table.title)}}}",
            rf"\noindent {latex(view.table.source)}.\par",
            r"{\footnotesize",
            rf"\begin{{longtable}}{{{columns}}}",
            r"\toprule",
            " & ".join(latex(head) for head in heads) + r" \\",
            r"\midrule",
            r"\endhead",
        ]
        for g, group in enumerate(view.groups):
            if g:
                out.append(r"\addlinespace")
            for i, line in enumerate(group.lines):
                cells = [group.name if i == 0 else "", _label(line)]
                cells += [_text(cell) for cell in line.cells] + [_status(line)]
                out.append(" & ".join(latex(cell) for cell in cells) + r" \\")
        out += [r"\bottomrule", r"\end{longtable}}"]
        for mark, text in view.notes:
            superscript = rf"\textsuperscript{{{mark}}} " if mark else ""
            out.append(rf"\noindent {superscript}{latex(text)}\par")
    out += [r"\end{document}", ""]
    return "\n".join(out)
