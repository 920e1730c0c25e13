"""What the PASCAL VOC evaluation server gave back, read from ``config/server_scores.yaml``."""

from datetime import date
from pathlib import Path
from typing import Any

from fcn.errors import UserError
from fcn.schema import CONFIG, check, read_yaml, unknown


def server_scores(path: Path = CONFIG / "server_scores.yaml") -> list[dict[str, Any]]:
    """Scores that the server gave back (config/server_scores.yaml), checked.

    Each is ``{table, row, run, seed, date}`` with ``voc2011_test`` or ``voc2012_test`` or both, a
    mean IU in percent; table and row are those of config/tables.yaml.

    Raises:
        UserError: naming the file, the entry and what is allowed.
    """
    entries = read_yaml(path)
    if entries is None:  # comments alone
        return []
    if isinstance(entries, list):  # YAML reads 2016-05-23 as a date
        entries = [
            {k: v.isoformat() if isinstance(v, date) else v for k, v in entry.items()}
            if isinstance(entry, dict)
            else entry
            for entry in entries
        ]
    check(entries, read_yaml(CONFIG / "schemas" / "server.yaml"), path)
    tables = read_yaml(CONFIG / "tables.yaml")
    for i, entry in enumerate(entries):
        if entry["table"] not in tables:
            raise UserError(f"{path}: {i}.table: {unknown('table', entry['table'], tables)}")
        columns = tables[entry["table"]].get("columns", {}).values()
        if not any(column.get("from", "").startswith("server.") for column in columns):
            raise UserError(
                f"{path}: {i}.table: {entry['table']} shows no score of the server; take table3 or "
                "pami_table4."
            )
        rows = [row["name"] for row in tables[entry["table"]]["rows"]]
        if entry["row"] not in rows:
            raise UserError(f"{path}: {i}.row: {unknown('row', entry['row'], rows)}")
    return list(entries)
