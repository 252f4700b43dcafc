"""Original files: finding them, hashing them, and image trees in a folder or a zip archive."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from data_prep.source import BrokenImageError, SourceError
from dtrain.files import sha256

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def find(folder: Path, *names: str) -> Path:
    """The first of `names` that lies in `folder`. SourceError lists what was looked for."""
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise SourceError(f"{folder} has no {' or '.join(names)}: point --source at the folder with the original files")


def described(*files: Path) -> dict[str, dict[str, int | str]]:
    """Size and sha256 of original files, for the manifest."""
    return {f.name: {"bytes": f.stat().st_size, "sha256": sha256(f)} for f in files}


def described_folder(folder: Path, members: Iterable[str]) -> dict[str, dict[str, int | str]]:
    """Total size, and one sha256 over the paths and contents, of files below a folder."""
    total, digest = 0, hashlib.sha256()
    for member in members:
        content = (folder / member).read_bytes()
        total += len(content)
        digest.update(member.encode() + b"\0" + hashlib.sha256(content).digest())
    return {f"{folder.name}/": {"bytes": total, "sha256": digest.hexdigest()}}


class Tree:
    """The images below a folder or inside a zip archive, by relative path in sorted order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip: tuple[int, zipfile.ZipFile] | None = None  # of this process: a shared file offset would race
        if path.is_dir():
            files = [p.relative_to(path).as_posix() for p in path.rglob("*")]
        else:
            files = [i.filename for i in self._archive().infolist() if not i.is_dir()]
        self.members = sorted(f for f in files if f.lower().endswith(IMAGE_SUFFIXES) and "__MACOSX" not in f)
        if not self.members:
            raise SourceError(f"{path} holds no images ({', '.join(IMAGE_SUFFIXES)})")

    def _archive(self) -> zipfile.ZipFile:
        if self._zip is None or self._zip[0] != os.getpid():
            try:
                self._zip = (os.getpid(), zipfile.ZipFile(self.path))
            except (zipfile.BadZipFile, OSError) as e:
                raise SourceError(f"{self.path} is not a complete zip archive ({e}): download it again") from e
        return self._zip[1]

    def read(self, member: str) -> bytes:
        """A member's bytes. BrokenImageError if the archive's own checksum does not match, or it cannot be read."""
        try:
            return (self.path / member).read_bytes() if self.path.is_dir() else self._archive().read(member)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as e:
            raise BrokenImageError(f"cannot be read: {e}") from e

    def describe(self) -> dict[str, dict[str, int | str]]:
        """Size and sha256 of the archive, or of all paths and contents of the folder."""
        return described_folder(self.path, self.members) if self.path.is_dir() else described(self.path)


def locate_tree(source: Path, *names: str) -> Tree:
    """The tree at `source`: a zip file, one of `names` in it, the only zip in it, or the folder itself."""
    if not source.exists():
        raise SourceError(f"{source} does not exist")
    if source.is_file():
        return Tree(source)
    named = [source / name for name in names if (source / name).exists()]
    zips = sorted(source.glob("*.zip"))
    return Tree(named[0] if named else zips[0] if len(zips) == 1 else source)
