"""Published archives: obtained, compared with what is known of them, and unpacked whole without leaving their folder.

An archive is unpacked into a hidden folder beside its target, which takes its name in one step when it is whole.
What is left of an earlier call is no part of it.
"""

import hashlib
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from fetching import CHUNK_BYTES, FetchError, appearing_folder, damage_named, download, oddity, safe_name
from tqdm import tqdm

# An archive may become 64 MiB and 100 times its size, where every member counts 4 KiB besides (own choice).
FREE_BYTES, EXPANSION, MEMBER_BYTES = 64 << 20, 100, 4096


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
        witness: who; without a digest, who has published one of the content, with which the script compares it.
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

    def doubt(self) -> str:
        """Why nobody can tell that a download is what was published; empty where somebody can."""
        doubts = ["it comes by http, so anyone on the way could change it"] * (not self.url.startswith("https://"))
        if not self.digest.startswith("sha256:") and (self.digest or not self.witness):
            doubts.append("no sha256 of it is published" + ", only an md5" * bool(self.digest))
        return " and ".join(doubts)


def fetch_all(dest: Path, archives: Sequence[Archive], *, unverified: bool = False) -> None:
    """Download what is missing of `archives`, compare it with what is known, and unpack it below `dest`.

    What an archive becomes is left alone when it is there. A file of the archive's name in `dest` is used in place of
    a download and kept; own downloads go to ``dest/downloads`` and are deleted when they are unpacked. `unverified` is
    a person's consent to the downloads of which there is a `doubt`; without it they are named, and nothing is fetched.

    Raises:
        FetchError: a download is in doubt or failed, a file has another size or hash than is known, or as `unpack`.
    """
    needed = [a for a in archives if not (dest / a.becomes).exists() and not (dest / a.file).is_file()]
    if not unverified and (doubts := [f"{archive.url}: {archive.doubt()}" for archive in needed if archive.doubt()]):
        fix = f"Say --unverified to download all the same, or put files that you trust into {dest} yourself"
        raise FetchError(f"{'; '.join(doubts)}. {fix}")
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
            download(archive.url, file, archive.size or 32 << 30)
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
    advice = "delete it and run the same command again. Should the publisher have changed the file, unpack it to"
    advice = f"{advice} {archive.becomes} by hand and run `check`"
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

    Every name is looked at before anything is written. Hidden files and what macOS adds are left out. The folder
    appears when it is whole; a call that was interrupted is begun anew.

    Args:
        archive: the file.
        folder: what it becomes; must not exist, its parent must.
        inside: folder in the archive, ``"*"`` for any single name; None for that above all files.
        only: beginnings of the names below that folder which are wanted (default: all).

    Raises:
        FetchError: no archive or a damaged one, a name that could leave the folder or is there twice, a link or
            device, far more content than an archive of that size has, nothing at the expected place, or no room.
        FileExistsError: `folder` is there.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists; move it away first")
    with damage_named(archive, "archive"), _opened(archive) as members:
        wanted = _wanted(members, archive, inside, tuple(only))
        demand_room(folder.parent, sum(member.size for member in wanted.values()), f"the content of {archive.name}")
        with appearing_folder(folder) as tree:
            for name, member in tqdm(wanted.items(), desc=f"unpack {archive.name}", unit="file", disable=None):
                _write(member, tree / name, archive)
    return len(wanted)


class _Member(NamedTuple):
    """A file in an archive; `problem` says what else it is, where it is none."""

    name: str
    size: int
    open: Callable[[], IO[bytes] | None]
    problem: str


class _Header(tarfile.TarInfo):
    """A header of a tar archive, of which tarfile takes a damaged one for the end, and reads any length of names."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> "_Header":
        try:
            info = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf and not buf.strip(b"\0"):
                raise  # the end
            raise tarfile.ReadError(f"a header is damaged or the end is missing: {error}") from error
        if info.size < 0 or (info.size > 1 << 20 and not info.isreg()):
            raise tarfile.ReadError(f"a header has a part of {info.size} bytes")
        return info


@contextmanager
def _opened(archive: Path) -> Iterator[list[_Member]]:
    with archive.open("rb") as file:
        is_zip = file.read(4) in (b"PK\3\4", b"PK\5\6")  # at the end, a tar archive may have one
    with zipfile.ZipFile(archive) if is_zip else tarfile.open(archive, tarinfo=_Header) as opened:
        of_each = _of_zip if is_zip else _of_tar
        files = _bounded((of_each(info, opened) for info in (opened.infolist() if is_zip else opened)), archive)
        if not is_zip and opened.fileobj.read(1 << 20).strip(b"\0"):
            raise FetchError(f"{archive} goes on behind its end: damaged; delete it and fetch it again")
        yield files


def _of_zip(info: zipfile.ZipInfo, opened: zipfile.ZipFile) -> _Member:
    return _Member(info.filename, info.file_size, lambda: opened.open(info), oddity(info))


def _of_tar(info: tarfile.TarInfo, opened: tarfile.TarFile) -> _Member:
    problem = "link" if info.issym() or info.islnk() else "" if info.isreg() and not info.issparse() else "device"
    name = info.name.removeprefix("./") + "/" * info.isdir()
    return _Member(name, info.size, lambda: opened.extractfile(info), problem)


def _bounded(members: Iterable[_Member], archive: Path) -> list[_Member]:
    """The files of an archive, if nothing else is in it and all could come out of its bytes."""
    files, most = [], EXPANSION * archive.stat().st_size + FREE_BYTES
    for member in members:
        most -= max(member.size, 0) + MEMBER_BYTES
        if most < 0 or member.size < 0:
            raise FetchError(f"{archive} says that it holds much more than its own size; it is damaged or a bomb")
        if member.name.endswith("/"):
            continue
        safe_name(member.name, str(archive))
        if member.problem:
            raise FetchError(f"{archive} holds {member.name} as a {member.problem}; expected a file")
        files.append(member)
    return files


def _wanted(members: list[_Member], archive: Path, inside: str | None, only: tuple[str, ...]) -> dict[str, _Member]:
    """The members that are unpacked, by their names below `inside`."""
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
    if both := [n for n in wanted if any(str(above) in wanted for above in PurePosixPath(n).parents)]:
        raise FetchError(f"{archive} holds {both[0]}, and a folder in that path as a file")
    if not wanted:
        held = ", ".join(member.name for member in seen[:3]) or "nothing"
        raise FetchError(f"{archive} has no files in its folder {inside or '/'} (it holds {held:.300} …)")
    return wanted


def _write(member: _Member, target: Path, archive: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    written, source = 0, member.open()
    assert source is not None, "only files are opened"
    with source, target.open("xb") as out:
        while chunk := source.read(CHUNK_BYTES):
            written += len(chunk)
            if written > member.size:
                break
            out.write(chunk)
    if written != member.size:
        raise FetchError(f"{member.name} in {archive} is not {member.size} bytes long, as the archive says")
