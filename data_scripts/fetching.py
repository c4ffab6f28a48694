"""Download and unpacking shared by the data scripts: resumable, checked by hash before use, never outside the folder.

Standard library and tqdm only, so that a script runs before the project is installed.
"""

import errno
import hashlib
import http.client
import shutil
import ssl
import stat
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from tqdm import tqdm

CHUNK_BYTES = 1 << 18
MAX_MEMBER_BYTES = 64 << 20  # no image or list of a data set here comes near; a decompression bomb does
NO_ANSWER = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
ATTEMPTS, PAUSE_SECONDS, TIMEOUT_SECONDS = 4, 2.0, 60.0  # the pause doubles before each further try
ANEW = "move the data set's folder away and fetch it again"  # a folder that is there is left as it is
SLOWEST = 1000  # bytes a second, after that time (own choice): less would be waited for without end


class FetchError(Exception):
    """A download, an archive or a data folder is not as it should be; the message, of one line, says what to do."""

    def __init__(self, message: str) -> None:
        line = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in message)  # a server's or a file's
        super().__init__(line if len(line) <= 900 else f"{line[:450]} … {line[-450:]}")


def download(url: str, file: Path, most: int = 32 << 30) -> None:
    """Download `url` to `file`, going on from ``file.part`` where an earlier try stopped and the server can resume.

    The part is only continued when the server confirms, by ETag or date, that it still has the same content;
    otherwise the download starts anew. The file appears under its name when it is complete.

    Args:
        url: http or https address; https is never left for http.
        file: where the download goes; its folder must exist.
        most: bytes that may arrive.

    Raises:
        FetchError: another kind of address, a refusal by the server, too many bytes, or not all of it in 4 tries.

    Example:
        >>> download("https://example.org/images.zip", Path("images.zip"))    # doctest: +SKIP
    """
    if not url.startswith(("http://", "https://")):
        raise FetchError(f"{url} is not an http or https address")
    part = file.with_name(file.name + ".part")
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
        try:
            if _continue_part(url, part, most):
                part.replace(file)
                _validator_file(part).unlink(missing_ok=True)
                return
            problem = "the connection closed before the end"
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != 429:
                raise FetchError(f"{url} answered {error.code} {error.reason}; is the address still right?") from error
            problem = f"the server answered {error.code} {error.reason}"
        except (*NO_ANSWER, ValueError) as error:
            problem = str(error)
    raise FetchError(
        f"{url} could not be downloaded in {ATTEMPTS} tries ({problem}); what arrived is kept in {part}: "
        f"run the same command again to go on from there"
    )


def _continue_part(url: str, part: Path, most: int) -> bool:
    """One try; True when the part is complete."""
    validator_file = _validator_file(part)
    validator = validator_file.read_text(encoding="utf-8", errors="replace") if validator_file.is_file() else ""
    have = part.stat().st_size if part.is_file() and validator else 0
    request = urllib.request.Request(url, headers={"User-Agent": "apd-data-script"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", validator)
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        # nothing lies beyond the part: it was complete, or it is not what the server has
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return True
        part.unlink()
        return False
    with answer:
        if not answer.url.startswith(("https:", url[:5])):
            raise FetchError(f"{url} leads to {answer.url:.200}, which anyone on the way could change")
        if answer.status != 206:
            have = 0
            etag = answer.headers.get("ETag", "")
            strong = etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified", "")
            validator_file.write_text(strong, encoding="utf-8")
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise FetchError(f"{url} answered with the wrong range; delete {part} and run the command again")
        length = answer.headers.get("Content-Length", "")
        total = have + int(length) if length.isdecimal() else None
        progress = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem, disable=None)
        with progress, part.open("ab" if have else "wb") as out:
            began, before = time.monotonic(), have
            while chunk := answer.read1(CHUNK_BYTES):
                have += len(chunk)
                if time.monotonic() - began > TIMEOUT_SECONDS + (have - before) / SLOWEST:
                    raise TimeoutError(f"fewer than {SLOWEST} bytes arrive in a second")
                if have > most:
                    raise FetchError(f"{url} sends more than {most} bytes; delete {part}. Is the address still right?")
                out.write(chunk)
                progress.update(len(chunk))
    return total is None or part.stat().st_size == total


def _validator_file(part: Path) -> Path:
    return part.with_name(part.name + ".validator")


def file_sha256(path: Path) -> str:
    """sha256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_in(file: Path) -> list[str]:
    """The lines of a small text of a data set that are not empty; FetchError when it is missing or no such text."""
    if not file.is_file() or not 0 < file.stat().st_size <= 1 << 20:  # a system's log has none, and would be waited for
        raise FetchError(f"{file} is missing, or no short list; it lies where the data come from, so fetch them again")
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise FetchError(f"{file} is not UTF-8 ({error}); {ANEW}") from error
    if odd := [line for line in lines if len(line) > 1000 or not line.replace("\t", "").isprintable()]:
        raise FetchError(f"{file} holds the line {odd[0]!r:.80}; expected a short one of text: {ANEW}")
    return lines


def parse_manifest(text: str, origin: str) -> dict[str, str]:
    """Relative name -> sha256 of a list in the form of the tool sha256sum, every name checked by `safe_name`.

    Raises:
        FetchError: a line of another form, an unsafe name or a name twice; `origin` says whose list it is.
    """
    hashes: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name or name in hashes:
            raise FetchError(f"{origin} line {number}: {line[:90]!r}; expected 64 hex digits, two spaces, a new name")
        hashes[safe_name(name, origin)] = digest
    return hashes


def safe_name(name: str, origin: str) -> str:
    """The name itself if it stays below the folder it is joined to.

    Raises:
        FetchError: the name is absolute, climbs with ``..``, or has a backslash, a colon, no print or too many letters.
    """
    parts = name.rstrip("/").split("/")
    odd = not name.isprintable() or "\\" in name or ":" in name
    if odd or len(name) > 1000 or any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts):
        raise FetchError(f"{origin} holds the unsafe name {name!r:.80}, which could leave the folder or not be written")
    return name


def extract_verified(archive: Path, folder_in_archive: str, hashes: Mapping[str, str], into: Path) -> None:
    """Write the files that `hashes` names, from a folder of a zip archive, below `into`, checking each while writing.

    All names in the archive are looked at before anything is written. Only the named files are written, none is
    overwritten.

    Args:
        archive: zip file.
        folder_in_archive: the folder with the files; ``"*/CamVid"`` stands for any single folder above.
        hashes: relative name -> sha256.
        into: existing folder.

    Raises:
        FetchError: no zip file or a damaged one, an unsafe name, a file that is missing, there twice, a link, too
            large, or of another content than its hash says; the file is named.
    """
    with damage_named(archive), zipfile.ZipFile(archive) as opened:
        members = _members_below(opened, archive, folder_in_archive)
        for name, digest in tqdm(hashes.items(), desc="extract", unit="file", disable=None):
            if name not in members:
                raise FetchError(f"{archive} lacks {folder_in_archive}/{name}; it is not the expected archive")
            target = into / safe_name(name, str(archive))
            target.parent.mkdir(parents=True, exist_ok=True)
            _write_member(opened, members[name], target, digest, archive)


@contextmanager
def damage_named(archive: Path, kind: str = "zip archive") -> Iterator[None]:
    """Whatever is raised while an archive is read becomes a FetchError that names it, except by the disk."""
    if archive.exists() and not archive.is_file():
        raise FetchError(f"{archive} is a folder, a pipe or a device; expected a {kind}")
    try:
        yield
    except Exception as error:  # libraries raise many kinds; of damage OSError without a number, or of a wrong place
        if isinstance(error, FetchError) or getattr(error, "errno", None) not in (None, errno.EINVAL):
            raise
        found = " ".join(f"{error!s:.200}".split())
        raise FetchError(f"{archive} is not a complete {kind} ({found}); delete it and fetch it again") from error


@contextmanager
def appearing_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder` that takes its name in one step if the block succeeds, and vanishes if it fails.

    Raises:
        FileExistsError: something has that name by then; it is left as it is.
    """
    hidden = folder.with_name(f".{folder.name}-unfinished")
    shutil.rmtree(hidden, ignore_errors=True)  # what a killed call left: stale files, or half ones
    hidden.mkdir()
    try:
        yield hidden
        if folder.exists():
            raise FileExistsError(f"{folder} appeared meanwhile; it was left as it is")
        hidden.rename(folder)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def read_member(archive: Path, name: str) -> bytes:
    """One small file of a zip archive, at most `MAX_MEMBER_BYTES`.

    Raises:
        FetchError: no zip file, a damaged one, or no such file in it.
    """
    with damage_named(archive), zipfile.ZipFile(archive) as opened:
        info = next((info for info in opened.infolist() if info.filename == name), None)
        if info is None or oddity(info) or info.file_size > MAX_MEMBER_BYTES:
            raise FetchError(f"{archive} lacks {name}; it was not written by `pack`")
        return opened.read(info)


def oddity(info: zipfile.ZipInfo) -> str:
    """What a member of a zip archive is, where it is no plain file; bzip2 and LZMA are unpacked without a bound."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        return "link" if kind == stat.S_IFLNK else "device"
    usual = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    return "" if usual and not info.flag_bits & 1 else "file that is encrypted or packed in an unusual way"


def _members_below(opened: zipfile.ZipFile, archive: Path, folder: str) -> dict[str, zipfile.ZipInfo]:
    wanted, members = PurePosixPath(folder).parts, {}
    for info in opened.infolist():
        parts = PurePosixPath(safe_name(info.filename, str(archive))).parts
        above = parts[: len(wanted)]
        if info.is_dir() or len(parts) <= len(wanted):
            continue
        if all(pattern in ("*", part) for pattern, part in zip(wanted, above, strict=True)):
            name = "/".join(parts[len(wanted) :])
            if name in members:
                raise FetchError(f"{archive} holds {info.filename} twice")
            members[name] = info
    return members


def _write_member(opened: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, expected: str, archive: Path) -> None:
    if problem := oddity(info):
        raise FetchError(f"{archive} holds {info.filename} as a {problem}; expected a file")
    digest, written = hashlib.sha256(), 0
    with opened.open(info) as source, target.open("xb") as out:
        while chunk := source.read(CHUNK_BYTES):
            written += len(chunk)
            if written > MAX_MEMBER_BYTES:
                raise FetchError(f"{info.filename} in {archive} is larger than {MAX_MEMBER_BYTES} bytes")
            digest.update(chunk)
            out.write(chunk)
    if digest.hexdigest() != expected:
        found = f"has sha256 {digest.hexdigest()[:16]}…; expected {expected[:16]}…"
        raise FetchError(f"{info.filename} in {archive} {found}: its content is not the published one")
