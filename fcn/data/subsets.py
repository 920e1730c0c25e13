"""Archives that came from a mirror before it was declared to hold subsets."""

from pathlib import Path
from urllib.parse import quote

from fcn.files import at_home, read_object


def address(mirror: str, name: str) -> str:
    """Where a mirror, a folder or an http(s) address, has an archive."""
    if mirror.startswith(("http://", "https://")):
        return f"{mirror.rstrip('/')}/{quote(name)}"
    return str(at_home(mirror) / name)


def undeclared(sidecar: Path, mirror: str | None) -> str:
    """A sentence where an archive of a mirror of subsets is recorded as whole, unverified.

    Empty where it is not: digests tell the official file, and then the mirror has it whole.
    """
    if not mirror or not sidecar.exists():
        return ""
    archive, file = read_object(sidecar, "subset", "url"), sidecar.with_suffix("")
    if (
        archive["subset"]
        or archive["url"] != address(mirror, file.name)
        or archive.get("verified_by") != "nothing"
    ):
        return ""
    return (
        f"{file}: came from the mirror when it was not declared to hold subsets, and is recorded "
        f"as whole; delete it and {sidecar.name} to fetch it as a subset or, if it is the official "
        f"file, {sidecar.name} alone and fetch it once without the mirror"
    )
