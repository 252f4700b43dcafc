"""Original files: finding, hashing and reading them, and image trees in a folder or a zip archive.

Whoever made a file may have meant harm: everything is read through `opened` and `read_stream`, which take
ordinary files only, and no more bytes than a limit, whatever a header promises or a compressed stream unfolds to.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NoReturn, Protocol

from data_prep.source import BrokenImageError, SourceError
from dtrain.files import sha256

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
LIMIT = 1 << 26  # bytes of one image, text or batch, unpacked
WHOLE_LIMIT = 1 << 31  # bytes of one file with all images of a data set, unpacked
_PIECE = 1 << 20
_LONGEST_NAME = 255  # what file systems hold


class Readable(Protocol):
    """What opened files and members of archives have in common."""

    def read(self, size: int, /) -> bytes: ...


class TooLargeError(Exception):
    """More bytes than the limit."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"holds more than the limit of {limit:,} bytes")


def read_stream(stream: Readable, limit: int) -> bytes:
    """All that is left of a stream, never more than `limit` bytes (and a piece) of it in memory."""
    content = bytearray()
    while piece := stream.read(_PIECE):
        content += piece
        if len(content) > limit:
            raise TooLargeError(limit)
    return bytes(content)


def ordinary(file: Path) -> Path:
    """`file`, unless it is a pipe (whose reader waits for ever), a device, a folder, or not there."""
    if not file.is_file():
        what = "is missing" if not os.path.lexists(file) else "is no ordinary file, or links to none"
        raise SourceError(f"{file} {what}: put the original file there")
    return file


@contextmanager
def opened(file: Path) -> Iterator[Readable]:
    """An ordinary file's content, unpacked if it is called *.gz. SourceError for whatever goes wrong on reading."""
    kind = "gzip file" if file.suffix == ".gz" else "file"
    try:
        with gzip.open(ordinary(file)) if file.suffix == ".gz" else ordinary(file).open("rb") as stream:
            yield stream
    except SourceError:
        raise
    except TooLargeError as e:
        raise SourceError(f"{file} {e}: is it the original file?") from e
    except PermissionError as e:
        raise SourceError(f"{file} cannot be read ({e.strerror}): change its permissions") from e
    except (OSError, EOFError, zlib.error) as e:
        raise SourceError(f"{file} is not a complete {kind} ({e}): download it again") from e


def read(file: Path, limit: int | None = None) -> bytes:
    """A file's content, of `limit` bytes (LIMIT) at most."""
    with opened(file) as stream:
        return read_stream(stream, LIMIT if limit is None else limit)


def read_text(file: Path) -> str:
    """A text file in UTF-8."""
    try:
        return read(file).decode()
    except UnicodeDecodeError as e:
        raise SourceError(f"{file} is not UTF-8 text (byte {e.start}): convert it, or download it again") from e


def find(folder: Path, *names: str) -> Path:
    """The first of `names` that lies in `folder`. SourceError lists what was looked for."""
    for name in names:
        if os.path.lexists(folder / name):
            return ordinary(folder / name)
    raise SourceError(f"{folder} has no {' or '.join(names)}: point --source at the folder with the original files")


def described(*files: Path) -> dict[str, dict[str, int | str]]:
    """Size and sha256 of original files, for the manifest."""
    return {f.name: {"bytes": f.stat().st_size, "sha256": sha256(f)} for f in files}


def described_folder(folder: Path, members: Iterable[str]) -> dict[str, dict[str, int | str]]:
    """Total size, and one sha256 over the paths and contents, of files below a folder."""
    total, digest = 0, hashlib.sha256()
    for member in members:
        total += (folder / member).stat().st_size
        digest.update(member.encode() + b"\0" + bytes.fromhex(sha256(folder / member)))
    return {f"{folder.name}/": {"bytes": total, "sha256": digest.hexdigest()}}


def _raise(error: OSError) -> NoReturn:
    raise SourceError(f"{error.filename} cannot be read ({error.strerror}): change its permissions")


def _check_link(path: Path, root: str) -> None:
    """SourceError for a link that leads out of the tree, or to a folder, whose files would be missed."""
    if path.is_symlink() and (path.is_dir() or not Path(os.path.realpath(path)).is_relative_to(root)):
        raise SourceError(f"{str(path)!r} links to another folder: put a copy of what it links to there")


def files_below(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """The relative paths, sorted, of a folder's files whose names end so: ordinary files inside it."""
    found, root = [], os.path.realpath(folder)
    for where, folders, names in os.walk(folder, onerror=_raise):
        for name in folders:
            _check_link(Path(where, name), root)
        for name in names:
            if name.lower().endswith(suffixes):
                path = Path(where, name)
                _check_link(path, root)
                found.append(ordinary(path).relative_to(folder).as_posix())
    check_names(folder, found)
    return sorted(found)


def check_names(source: Path, names: list[str]) -> None:
    """SourceError for names that occur twice, lead out of the source, or cannot be written down."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise SourceError(f"{source} has {twice[0]!r} more than once: remove all but one, or download it again")
    for name in names:
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts:
            raise SourceError(f"{source} has a file {name!r}, whose path leads out of it: rename it")
        if any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
            raise SourceError(f"{source} has a file {name!r}, whose name is not UTF-8 text of one line: rename it")
        if max(map(len, parts)) > _LONGEST_NAME:
            raise SourceError(f"{source} has a file {name[:40]!r}…, whose name is too long: rename it")


class Tree:
    """The images below a folder or inside a zip archive, by relative path in sorted order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip: tuple[int, zipfile.ZipFile] | None = None  # of this process: a shared file offset would race
        self.members = self._folder_members() if path.is_dir() else self._archive_members()
        if not self.members:
            raise SourceError(
                f"{path} holds no images ({', '.join(IMAGE_SUFFIXES)}): point --source at the original ones"
            )

    def _folder_members(self) -> list[str]:
        return [f for f in files_below(self.path, IMAGE_SUFFIXES) if "__MACOSX" not in f]

    def _archive_members(self) -> list[str]:
        files = [i.filename for i in self._archive().infolist() if not i.is_dir()]
        images = [f for f in files if f.lower().endswith(IMAGE_SUFFIXES) and "__MACOSX" not in f]
        check_names(self.path, images)
        return sorted(images)

    def _archive(self) -> zipfile.ZipFile:
        if self._zip is None or self._zip[0] != os.getpid():
            try:
                self._zip = (os.getpid(), zipfile.ZipFile(ordinary(self.path)))
            except SourceError:
                raise
            except Exception as e:  # a damaged directory raises almost anything
                raise SourceError(f"{self.path} is not a complete zip archive ({e}): download it again") from e
        return self._zip[1]

    def read(self, member: str) -> bytes:
        """A member's bytes. BrokenImageError if the archive's own checksum does not match, or it cannot be read."""
        archive = None if self.path.is_dir() else self._archive()
        try:
            if archive is not None and archive.getinfo(member).file_size > LIMIT:
                raise TooLargeError(LIMIT)
            with (self.path / member).open("rb") if archive is None else archive.open(member) as stream:
                return read_stream(stream, LIMIT)
        except Exception as e:  # damaged, encrypted, packed by an unknown method, too large
            raise BrokenImageError(f"in {self.path} cannot be read ({e})") from e

    def describe(self) -> dict[str, dict[str, int | str]]:
        """Size and sha256 of the archive, or of all paths and contents of the folder."""
        return described_folder(self.path, self.members) if self.path.is_dir() else described(self.path)


def locate_tree(source: Path, *names: str, beside: str | None = None) -> Tree:
    """The tree at `source`: a zip file, one of `names` in it, the only zip in it, or the folder itself.

    beside: a zip that may lie there too and is none of images.
    """
    if not source.exists():
        raise SourceError(f"{source} does not exist: point --source at the folder with the original files")
    if not source.is_dir():
        return Tree(source)
    named = [source / name for name in names if (source / name).exists()]
    zips = sorted(z for z in source.glob("*.zip") if z.name != beside)
    return Tree(named[0] if named else zips[0] if len(zips) == 1 else source)
