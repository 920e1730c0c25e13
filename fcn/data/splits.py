"""Splits: lists of ids, from files and from each other."""

import hashlib
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any

from fcn.errors import UserError

OURS = "config/splits/"  # lists under this prefix are the repository's, not the data set's


def read_ids(path: Path) -> list[str]:
    """Ids of a list file, one a line; empty, repeated or missing ones are a UserError."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such split list; write one, with one id (an image's name without "
            "extension) a line, or correct `splits`."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable split list ({error}).") from None
    ids = [line.strip() for line in lines if line.strip()]
    if not ids:
        raise UserError(f"{path}: the split list is empty.")
    if len(set(ids)) != len(ids):
        twice = next(key for key in ids if ids.count(key) > 1)
        raise UserError(f"{path}: the id {twice} stands twice.")
    return ids


def sample(ids: list[str], count: int) -> list[str]:
    """``count`` of ``ids`` in their order: those whose SHA-256 of the UTF-8 id is least.

    The choice depends on nothing but the ids, on no generator and no order, and a smaller sample
    is a part of a larger one.
    """
    chosen = set(sorted(ids, key=lambda key: hashlib.sha256(key.encode()).digest())[:count])
    return [key for key in ids if key in chosen]


def resolve(
    expressions: dict[str, Any],
    root: Path,
    base: Path,
    known: Collection[str],
    subset: bool,
    places: str,
) -> tuple[dict[str, list[str]], list[str]]:
    """The ids of every split, in order, and notes on what was left out.

    An expression is the path of a list (under ``root``, or under ``base`` if it starts with
    ``config/splits/``), ``{union: [names]}``, ``{minus: [name, names..]}`` or
    ``{sample: [name, count]}`` (see `sample`) of other splits. An id that is not ``known``, and a
    sample of more than there are, is a UserError; only in a declared ``subset`` are ids that it
    lacks left out, with a note.
    """
    done: dict[str, list[str]] = {}
    notes: list[str] = []

    def from_file(name: str, path: str) -> list[str]:
        ours = path.startswith(OURS)
        ids = read_ids((base if ours else root) / path)
        there = [key for key in ids if key in known]
        if len(there) == len(ids):
            return ids
        if subset and (ours or there):  # a list of its own that fits nothing is a mistake
            notes.append(f"{name}: {len(there)} of {len(ids)} ids are in this subset")
            return there
        missing = [key for key in ids if key not in known]
        hint = ""
        first = PurePosixPath(missing[0])
        if first.name and first.with_suffix("").as_posix() in known:
            whole = first.as_posix() in known
            hint = "; list ids without ./" if whole else "; list ids without extension"
        elif len(missing[0].split()) > 1:
            hint = "; list one id a line and nothing else"
        raise UserError(
            f"{path}: {len(missing)} of {len(ids)} ids of split {name} have no file in {places} "
            f"({', '.join(missing[:3])}{', ..' if len(missing) > 3 else ''}){hint}."
        )

    def sampled(name: str, wanted: Any, trail: tuple[str, ...]) -> list[str]:
        match wanted:
            case [str(source), int(count)] if not isinstance(count, bool) and count > 0:
                ids = get(source, trail)
            case _:
                raise UserError(f"splits: {name}: sample takes [NAME, COUNT], not {wanted!r}.")
        if count > len(ids):
            if not subset:
                raise UserError(
                    f"splits: {name}: {source} has {len(ids)} ids, fewer than the {count} of the "
                    "sample; take fewer."
                )
            notes.append(f"{name}: {len(ids)} of {count} ids are in this subset")
        return sample(ids, count)

    def get(name: str, trail: tuple[str, ...]) -> list[str]:
        if name in done:
            return done[name]
        if name not in expressions:
            raise UserError(f"splits: {' of '.join(trail[::-1])} names {name}, which is not there.")
        if name in trail:
            raise UserError(f"splits: {name} is made from itself ({' of '.join(trail[::-1])}).")
        expression = expressions[name]
        if isinstance(expression, str):
            ids = from_file(name, expression)
        elif isinstance(expression, dict) and list(expression) in (["union"], ["minus"]):
            (operation, names), *_ = expression.items()
            parts = [get(part, (*trail, name)) for part in names]
            if operation == "union":
                ids = list(dict.fromkeys(key for part in parts for key in part))
            else:
                without = {key for part in parts[1:] for key in part}
                ids = [key for key in parts[0] if key not in without]
        elif isinstance(expression, dict) and list(expression) == ["sample"]:
            ids = sampled(name, expression["sample"], (*trail, name))
        else:
            raise UserError(
                f"splits: {name} must be the path of a list, {{union: [..]}}, {{minus: [..]}} or "
                "{sample: [NAME, COUNT]}."
            )
        done[name] = ids
        return ids

    return {name: get(name, ()) for name in expressions}, notes
