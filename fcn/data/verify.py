"""Whether a file is the one that a definition of config/archives.yaml describes."""

import hashlib
from pathlib import Path
from typing import Any

DIGESTS = ("sha256", "sha384", "sha1", "md5")


def measure(path: Path, definition: dict[str, Any]) -> dict[str, Any]:
    """Size, sha256, md5 and whatever other digest the definition knows, in one reading."""
    kinds = [definition, *(definition.get("accept") or [])]
    wanted = [name for name in DIGESTS if any(kind.get(name) for kind in kinds)]
    digests = {name: hashlib.new(name) for name in dict.fromkeys(["sha256", "md5", *wanted])}
    with path.open("rb") as handle:
        while chunk := handle.read(1 << 20):
            for digest in digests.values():
                digest.update(chunk)
    found = {name: digest.hexdigest() for name, digest in digests.items()}
    return {"size": path.stat().st_size, **found}


def verified_by(facts: dict[str, Any], definition: dict[str, Any]) -> str:
    """What shows that the file is right, e.g. "sha256, size"; "nothing" if nothing is known of it.

    Empty if it is wrong. Digests of the definition that ``facts`` lack are passed over.
    """
    for kind in [definition, *(definition.get("accept") or [])]:
        known = [name for name in DIGESTS if kind.get(name) and name in facts]
        right = all(facts[name].startswith(kind[name].lower()) for name in known)
        if kind is not definition and not known:
            continue
        if not right or kind.get("size") not in (None, facts["size"]):
            continue
        shown = [
            name if len(kind[name]) == len(facts[name]) else f"{name} (first {len(kind[name])})"
            for name in known
        ]
        shown += ["size"] if kind.get("size") else []
        why = f" ({kind['why']})" if "why" in kind else ""
        return (", ".join(shown) or "nothing") + why
    return ""


def covers(facts: dict[str, Any], definition: dict[str, Any]) -> bool:
    """Do ``facts`` have every digest that the definition, or another right file of it, knows?"""
    kinds = [definition, *(definition.get("accept") or [])]
    return all(name in facts for kind in kinds for name in DIGESTS if kind.get(name))


def suspicion(path: Path) -> str:
    """What is wrong with a file of which nothing is known: all that is fetched is binary.

    Empty if nothing is. A web page, a message or a pointer to the file comes with status 200 too.
    """
    with path.open("rb") as handle:
        head = handle.read(4096)
    if not head:
        return "the server sent an empty file"
    if set(head) & (set(range(32)) - set(b"\t\n\r\f")):
        return ""
    return "the server sent text, not the file"


def difference(what: str, facts: dict[str, Any], definition: dict[str, Any]) -> str:
    known = [name for name in ("size", *DIGESTS) if definition.get(name)]
    here = ", ".join(f"{name} {facts[name]}" for name in known)
    right = ", ".join(f"{name} {definition[name]}" for name in known)
    return f"{what} has {here}, the official one {right}"
