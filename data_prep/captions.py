"""Captions in Reed et al.'s layout: text_c10/class_00001/image_06734.txt, one caption per line.

They lie in a folder, a zip or a gzipped tar archive. Where there are none, templates are filled with the class's name
and the dominant hue of the petals.
"""

from __future__ import annotations

import os
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

from data_prep.files import (
    LIMIT,
    TooLargeError,
    check_names,
    described,
    described_folder,
    files_below,
    ordinary,
    read,
    read_stream,
    read_text,
)
from data_prep.source import BrokenImageError, Source, SourceError
from dtrain.hues import dominant

CAPTIONS = "text_c10"
MOST = 100  # captions of one image
ALL = 1 << 28  # bytes of all texts in an archive, unpacked
TEMPLATES = (
    "this flower is {colour}",
    "the petals of this flower are {colour} in color",
    "{name} with {colour} petals",
    "this {colour} flower is called {name}",
    "a photo of {name}, whose flowers are {colour}",
)
"""The first has no class's name in it, since some names hold a colour."""

Text = str | SourceError  # or what is wrong with it


def captioned(splits: dict[str, Source], source: Path) -> dict[str, Source]:
    """The splits with the captions that lie in the folder `source`; unchanged where there are none."""
    found = next((source / n for n in (CAPTIONS, *_ARCHIVES) if os.path.lexists(source / n)), None)
    if found is None:
        return splits
    texts, digest = _texts(found)
    return {split: with_captions(part, texts, digest) for split, part in splits.items()}


def with_captions(source: Source, texts: dict[str, Text], digest: dict[str, Any]) -> Source:
    """The source with the lines of each image's text; an image without any is broken."""
    captions, broken = [], dict(source.broken)
    for i, name in enumerate(source.names):
        try:
            captions.append(_lines(texts.get(PurePosixPath(name).stem, "")))
        except ValueError as e:
            captions.append([])
            broken.setdefault(i, str(e))
    about = {**source.about, "files": {**source.about["files"], **digest}}
    return replace(source, captions=captions, about=about, broken=broken)


def _lines(text: Text) -> list[str]:
    """The captions in a text. ValueError for a text that is not as it should be."""
    if isinstance(text, SourceError):
        raise ValueError(f"has damaged captions ({text})")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"has no captions in {CAPTIONS}")
    if len(lines) > MOST:
        raise ValueError(f"has {len(lines):,} captions, more than the limit of {MOST}")
    return lines


def _texts(path: Path) -> tuple[dict[str, Text], dict[str, Any]]:
    """The texts by their images' stems, and their entry in the manifest."""
    if path.is_dir():
        members = [m for m in files_below(path, (".txt",)) if _is_text(m)]
        return _by_stem(path, ((m, _content(path / m)) for m in members)), described_folder(path, members)
    return _by_stem(path, _ARCHIVES[path.name](ordinary(path))), described(path)


def _is_text(member: str) -> bool:
    name = PurePosixPath(member).name
    return name.startswith("image_") and name.endswith(".txt")


def _by_stem(path: Path, texts: Iterable[tuple[str, Text]]) -> dict[str, Text]:
    found: dict[str, Text] = {}
    members: dict[str, str] = {}
    for member, text in texts:
        stem = PurePosixPath(member).stem
        if stem in found:
            raise SourceError(f"{path / member} and {path / members[stem]} are of the same image: remove one of them")
        found[stem], members[stem] = text, member
    return found


def _content(file: Path) -> Text:
    try:
        return read_text(file)
    except SourceError as e:
        return e


def _decoded(member: str, content: bytes) -> Text:
    try:
        return content.decode()
    except UnicodeDecodeError as e:
        return SourceError(f"{member} is not UTF-8 text (byte {e.start}): convert it, or download it again")


def _zipped(archive: Path) -> Iterator[tuple[str, Text]]:
    room = ALL
    try:
        with zipfile.ZipFile(archive) as z:
            members = [i for i in z.infolist() if not i.is_dir() and _is_text(i.filename)]
            check_names(archive, [m.filename for m in members])
            for member in members:
                with z.open(member) as stream:
                    content = read_stream(stream, room)
                room -= len(content)
                yield member.filename, _decoded(member.filename, content)
    except SourceError:
        raise
    except Exception as e:  # a damaged archive raises almost anything
        raise SourceError(f"{archive} is not a complete zip archive ({e}): download it again") from e


def _tarred(archive: Path) -> Iterator[tuple[str, Text]]:
    """It is unpacked in memory: tarfile itself would read headers of any length."""
    content = BytesIO(read(archive, ALL))
    try:
        with tarfile.open(fileobj=content, mode="r:") as tar:
            for member in tar:
                if not _is_text(member.name):
                    continue
                check_names(archive, [member.name])
                stream = tar.extractfile(member) if member.isreg() else None
                if stream is None:
                    raise SourceError(f"{archive}: {member.name!r} is no ordinary file: download it again")
                yield member.name, _decoded(member.name, read_stream(stream, LIMIT))
    except (tarfile.TarError, ValueError, EOFError, OSError, TooLargeError) as e:
        raise SourceError(f"{archive} is not the complete archive ({e}): download it again") from e


_ARCHIVES = {f"{CAPTIONS}.zip": _zipped, f"{CAPTIONS}.tar.gz": _tarred}


def from_templates(source: Source, class_names: list[str]) -> Source:
    """The source with TEMPLATES filled for each image. Its labels are numbers of class_names."""
    captions = []
    for i, label in enumerate(source.arrays["labels"]):
        try:
            colour = dominant(source.read(i)[None])[0]
        except BrokenImageError:
            captions.append([TEMPLATES[0].format(colour="")])  # the writer reads it again, and says so
            continue
        captions.append([t.format(colour=colour, name=class_names[int(label)]) for t in TEMPLATES])
    return replace(source, captions=captions, about={**source.about, "captions": list(TEMPLATES)})
