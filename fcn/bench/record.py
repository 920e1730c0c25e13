"""What a new measurement of a device keeps of the last one: the parts that it had no input for."""

from typing import Any

# What the page says of a part without its input, in the order of the page.
NEEDS = {
    "peer": "The public port was not measured; give a checkout of wkentaro/pytorch-fcn with "
    "--peer.",
    "agreement": "Agreement of the precisions on images needs --weights and --data.",
    "canvas": "Labels and gradients on a larger canvas need --weights and --data.",
    "loading": "Loading needs --data.",
    "dag": "The DAG's share of the demo needs --demo, a tree in which it has run.",
}
# What tells entries of a list apart: two that differ in none of these are of the same thing.
IDENTITY = ("net", "seed", "dataset", "split", "tree")


def entries(part: Any) -> list[dict[str, Any]]:
    """A part with an entry for each net; older records have one entry alone, or None."""
    if not part:
        return []
    return [part] if isinstance(part, dict) else list(part)


def of_the_port(case: dict[str, Any]) -> bool:
    """Does a table of times hold the port's?"""
    return any(variant["name"].startswith("peer") for variant in case["variants"])


def joined(found: dict[str, Any], last: dict[str, Any] | None) -> dict[str, Any]:
    """``found``, and of the last record of this kind of device what it did not measure.

    A part that is kept so carries as ``origin`` the provenance of its own measurement, with the
    port's name and commit as ``peer`` where it was there; all others are of ``found``'s.
    """
    if last is None:
        return found

    def earlier(part: dict[str, Any]) -> dict[str, Any]:
        return {"origin": {**last["provenance"], "peer": last["peer"]}, **part}

    result = dict(found)
    kept = set()
    for name in ("loading", "dag"):
        if found[name] is None and last.get(name):
            result[name] = earlier(last[name])
            kept.add(name)
    if "dag" in kept:  # its share is that of the starts of its own day
        result["dag"] = {"start_seconds": last["start_seconds"], **result["dag"]}
    for name in ("agreement", "canvas", "logs"):
        own = entries(found.get(name))
        others = [entry for entry in entries(last.get(name)) if not _among(entry, own)]
        if others:
            result[name] = own + [earlier(entry) for entry in others]
            kept.add(name)
    passes = {name: earlier(part) for name, part in (last.get("passes") or {}).items()}
    result["passes"] = {**passes, **(found.get("passes") or {})}
    ported = [earlier(case) for case in last["cases"] if of_the_port(case)]
    if found["peer"] is None and ported:
        result["cases"] = [*found["cases"], *ported]
        kept.add("peer")
    done = {NEEDS[name] for name in kept if name in NEEDS}
    result["missing"] = [text for text in found["missing"] if text not in done]
    return result


def _among(earlier: dict[str, Any], own: list[dict[str, Any]]) -> bool:
    """Is one of ``own`` of the same thing? What an older entry does not say, it does not differ
    in."""
    return any(all(earlier.get(key) in (None, entry.get(key)) for key in IDENTITY) for entry in own)
