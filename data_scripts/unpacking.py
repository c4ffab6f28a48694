"""Published archives: obtained, compared with what is known of them, and unpacked whole without leaving their folder.

An archive is unpacked into a hidden folder beside its target, file by file. Interrupted, the next call goes on with the
file where it stopped; the target takes its name in one step when every file is there.
"""

import hashlib
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from fetching import CHUNK_BYTES, FetchError, download, is_link, safe_name
from tqdm import tqdm

_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class Archive:
    """One file that a publisher offers, and what it becomes.

    Attributes:
        file: its name.
        becomes: the folder that its content becomes, below the folder of all data sets (for a plain file: the file).
        url: where it is; empty when only a person with an account can fetch it.
        inside: the folder in the archive whose content is taken; None takes that above all files. Default: its root.
        only: what is taken of that folder, by the beginnings of names (default: everything).
        size: bytes, where known.
        digest: ``"sha256:…"`` or ``"md5:…"``, where somebody has published it.
        witness: who.
        plain: the file is no archive and is used as it is.
    """

    file: str
    becomes: str
    url: str = ""
    inside: str | None = ""
    only: tuple[str, ...] = ()
    size: int = 0
    digest: str = ""
    witness: str = ""
    plain: bool = False


def fetch_all(dest: Path, archives: Iterable[Archive]) -> None:
    """Download what is missing of `archives`, compare it with what is known, and unpack it below `dest`.

    What an archive becomes is left alone when it is there. A file of the archive's name in `dest` is used in place of
    a download and kept; own downloads go to ``dest/downloads`` and are deleted when they are unpacked.

    Raises:
        FetchError: a download failed, a file has another size or hash than is known, or an archive is damaged, holds a
            name that leads out of its folder, or needs more room than the disk has.
    """
    dest.mkdir(parents=True, exist_ok=True)
    downloads = dest / "downloads"
    for archive in archives:
        target = dest / archive.becomes
        if target.exists():
            print(f"{target} is already there; it was left as it is")
            continue
        by_hand, file = dest / archive.file, downloads / archive.file
        if by_hand.is_file():
            file = by_hand
        elif not file.is_file():
            downloads.mkdir(exist_ok=True)
            demand_room(downloads, archive.size, archive.file)
            download(archive.url, file)
        compare(file, archive)
        target.parent.mkdir(parents=True, exist_ok=True)
        if archive.plain:
            shutil.copyfile(file, target.with_name(f".{target.name}.part"))
            target.with_name(f".{target.name}.part").rename(target)
        else:
            unpack(file, target, inside=archive.inside, only=archive.only)
        if file != by_hand:
            file.unlink()
    if downloads.is_dir() and not any(downloads.iterdir()):
        downloads.rmdir()


def compare(file: Path, archive: Archive) -> None:
    """Compare a file's size and hash with the known ones, or say that none is known.

    Raises:
        FetchError: they differ.
    """
    advice = (
        f"delete it and run the same command again. Should the publisher have changed the file, unpack it to "
        f"{archive.becomes} by hand and run `check`"
    )
    if archive.size and file.stat().st_size != archive.size:
        raise FetchError(f"{file} has {file.stat().st_size} bytes; expected {archive.size}: {advice}")
    if not archive.digest:
        print(f"{file.name}: no checksum of this file is published; `check` looks at its content instead")
        return
    kind, expected = archive.digest.split(":")
    digest = hashlib.new(kind, usedforsecurity=False)
    progress = tqdm(total=file.stat().st_size, unit="B", unit_scale=True, desc=f"{kind} {file.name}", disable=None)
    with progress, file.open("rb") as source:
        while chunk := source.read(16 * CHUNK_BYTES):
            digest.update(chunk)
            progress.update(len(chunk))
    if digest.hexdigest() != expected:
        raise FetchError(
            f"{file} has {kind} {digest.hexdigest()[:16]}…; expected {expected[:16]}… ({archive.witness}): {advice}"
        )


def demand_room(folder: Path, size: int, name: str) -> None:
    """Raise FetchError when a disk has no room for `size` bytes."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise FetchError(f"{name} takes {size / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB left; make room")


def unpack(archive: Path, folder: Path, *, inside: str | None = "", only: Sequence[str] = ()) -> int:
    """Unpack a zip or tar archive (any compression) so that a folder in it becomes `folder`; returns how many files.

    Every name is looked at before anything is written. Hidden files and what macOS adds are left out. A call that was
    interrupted is continued: files of the right size in the hidden folder were complete.

    Args:
        archive: the file.
        folder: what it becomes; must not exist, its parent must.
        inside: folder in the archive, ``"*"`` for any single name; None for that above all files.
        only: beginnings of the names below that folder which are wanted (default: all).

    Raises:
        FetchError: no archive or a damaged one, a name that could leave the folder or is there twice, a link or
            device, nothing at the expected place, or no room on the disk.
        FileExistsError: `folder` is there.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists; move it away first")
    hidden = folder.with_name(f".{folder.name}-unpacking")
    try:
        with _opened(archive) as members:
            wanted = _wanted(members, archive, inside, tuple(only))
            hidden.mkdir(exist_ok=True)
            missing = {
                name: member
                for name, member in wanted.items()
                if not (hidden / name).is_file() or (hidden / name).stat().st_size != member.size
            }
            demand_room(hidden, sum(member.size for member in missing.values()), f"the content of {archive.name}")
            for name, member in tqdm(missing.items(), desc=f"unpack {archive.name}", unit="file", disable=None):
                _write(member, hidden / name, archive)
    except _DAMAGE as error:
        raise FetchError(f"{archive} is not a complete archive ({error}); delete it and fetch it again") from error
    hidden.rename(folder)
    return len(wanted)


class _Member(NamedTuple):
    """A file in an archive; `problem` says what else it is, where it is none."""

    name: str
    size: int
    open: Callable[[], IO[bytes] | None]
    problem: str


@contextmanager
def _opened(archive: Path) -> Iterator[list[_Member]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            yield [
                _Member(info.filename, info.file_size, lambda i=info: opened.open(i), "link" if is_link(info) else "")
                for info in opened.infolist()
                if not info.is_dir()
            ]
        return
    with tarfile.open(archive) as opened:
        yield [
            _Member(
                info.name.removeprefix("./"),
                info.size,
                lambda i=info: opened.extractfile(i),
                "" if info.isfile() else "link" if info.issym() or info.islnk() else "device",
            )
            for info in opened.getmembers()
            if not info.isdir()
        ]


def _wanted(members: list[_Member], archive: Path, inside: str | None, only: tuple[str, ...]) -> dict[str, _Member]:
    """The members that are unpacked, by their names below `inside`."""
    for member in members:
        safe_name(member.name, str(archive))
        if member.problem:
            raise FetchError(f"{archive} holds {member.name} as a {member.problem}; expected a file")
    seen = [m for m in members if not any(p.startswith(".") or p == "__MACOSX" for p in m.name.split("/"))]
    if inside is None:
        folders = [PurePosixPath(member.name).parent.parts for member in seen]
        common = 0
        while folders and all(len(f) > common and f[common] == folders[0][common] for f in folders):
            common += 1
        pattern = ("*",) * common
    else:
        pattern = PurePosixPath(inside).parts
    wanted: dict[str, _Member] = {}
    for member in seen:
        parts = PurePosixPath(member.name).parts
        name = "/".join(parts[len(pattern) :])
        above = parts[: len(pattern)]
        if not name or any(p not in ("*", part) for p, part in zip(pattern, above, strict=True)):
            continue
        if only and not name.startswith(only):
            continue
        if name in wanted:
            raise FetchError(f"{archive} holds {member.name} twice")
        wanted[name] = member
    if not wanted:
        held = ", ".join(member.name for member in seen[:3]) or "nothing"
        raise FetchError(
            f"{archive} has no files in its folder {inside or '/'} (it holds {held} …); is it the right one?"
        )
    return wanted


def _write(member: _Member, target: Path, archive: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part, written = target.with_name(f".{target.name}.part"), 0
    source = member.open()
    assert source is not None, "only files are opened"
    with source, part.open("wb") as out:
        while chunk := source.read(CHUNK_BYTES):
            written += len(chunk)
            if written > member.size:
                break
            out.write(chunk)
    if written != member.size:
        raise FetchError(
            f"{member.name} in {archive} is not {member.size} bytes long, as the archive says; fetch it again"
        )
    part.replace(target)
