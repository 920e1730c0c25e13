"""Unpacking archives that may be damaged or hostile."""

import gzip
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from fcn.errors import UserError
from fcn.progress import bar

# Python 3.11 has the filter from 3.11.4 on; what it refuses, _check_member refuses before it.
FILTER: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
UNSAFE: tuple[type[Exception], ...] = (tarfile.FilterError,) if FILTER else ()


class _Watched:
    """A stream that remembers the last block read from it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.last = stream, b""

    def read(self, size: int = -1) -> bytes:
        self.last = self.stream.read(size)
        return self.last

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()


def unpack(path: Path, folder: Path, known: bool = False) -> int:
    """Unpack a tar (plain or gzip) or zip into ``folder``; returns the number of files.

    ``known``: a digest or its size told that the file is whole, so that a tar may lack its end.
    Its first bytes and not its name say what it is: SBD's server may have decoded the gzip. A
    damaged archive, and one with a member that would leave the folder, is a UserError.
    """
    try:
        with path.open("rb") as handle:
            magic = handle.read(4)
        count = _unzip(path, folder) if magic == b"PK\3\4" else _untar(path, folder, magic, known)
        if not count:
            raise EOFError("no file is in it")
        return count
    except FileNotFoundError:
        raise UserError(f"{path}: no such archive; fetch it first.") from None
    except (
        tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError,
        EOFError, LookupError, RuntimeError, ValueError,
    ) as error:  # fmt: skip
        raise UserError(
            f"{path}: truncated or damaged ({error}); delete it with its .json and fetch it again."
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be unpacked to {folder.parent} ({error}).") from None


def _untar(path: Path, folder: Path, magic: bytes, known: bool) -> int:
    opener: Any = gzip.open if magic[:2] == b"\x1f\x8b" else Path.open
    count = 0
    with opener(path, "rb") as stream:
        watched = _Watched(stream)
        with tarfile.open(fileobj=cast(IO[bytes], watched), mode="r:") as tar:
            for member in _shown(tar, path.name):
                _check_member(path, member.name)
                if member.issym() or member.islnk():
                    _check_member(path, member.linkname)
                elif not (member.isfile() or member.isdir()):
                    raise UserError(f"{path}: unsafe: its member {member.name} is a device.")
                try:
                    tar.extract(member, folder, set_attrs=False, **FILTER)
                except UNSAFE as error:
                    raise UserError(f"{path}: unsafe: {error}.") from None
                count += not member.isdir()
        # tarfile takes a tar that ends between two members for whole; a whole one ends in zeros
        if not known and (len(watched.last) < tarfile.BLOCKSIZE or any(watched.last)):
            raise EOFError("it has no end mark")
        while stream.read(1 << 20):
            pass  # to the end, for gzip's checksum
    return count


def _unzip(path: Path, folder: Path) -> int:
    count = 0
    with zipfile.ZipFile(path) as archive:
        for member in _shown(archive.infolist(), path.name):
            _check_member(path, member.filename)
            if stat.S_ISLNK(member.external_attr >> 16):
                raise UserError(f"{path}: unsafe: its member {member.filename} is a link.")
            archive.extract(member, folder)
            count += not member.is_dir()
    return count


def _check_member(path: Path, name: str) -> None:
    """Names and link targets stay below the folder if none is absolute or goes up."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or re.match(r"[A-Za-z]:", name):
        raise UserError(f"{path}: unsafe: its member {name} leads out of the folder.")


def _shown(members: Any, name: str) -> Any:
    return bar(members, f"unpack {name}", unit=" files")
