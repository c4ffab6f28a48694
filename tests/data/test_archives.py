"""Archives are fetched and unpacked whole; what is damaged or would do harm is refused and takes little."""

import bz2
import gzip
import hashlib
import io
import lzma
import os
import re
import shutil
import tarfile
import tempfile
import tracemalloc
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from bad_input import refused
from file_server import packed
from hypothesis import given
from hypothesis import strategies as st
from miniatures import FEW, WRITERS, data_script, files_of, for_counts

fetching, unpacking = data_script("fetching"), data_script("unpacking")
FetchError, Archive, unpack = fetching.FetchError, unpacking.Archive, unpacking.unpack
FOLDERS = {"top/a/1.txt": b"one", "top/a/2.txt": b"two" * 50000, "top/b/3.txt": b"", "README": b"read me"}
CONTENT = {"top/a": b"a" * 700, "top/b": bytes(range(256)) * 8, "top/c/d": b""}


def tar(*odd, **fields):
    """A tar archive of the content; the second member has other fields, and `odd` members follow."""
    out = b""
    for name, data in [*CONTENT.items(), *((name, b"") for name in odd)]:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        for field, value in fields.items() if name == "top/b" else ():
            setattr(info, field, value)
        out += info.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % 512)
    return out + bytes(1024)


def zipped(*odd, method=zipfile.ZIP_DEFLATED, mode=0, content=CONTENT):
    """A zip archive; the member top/b has a Unix mode, and `odd` members follow."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in [*content.items(), *((name, b"") for name in odd)]:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16 if name == "top/b" else 0
            archive.writestr(info, data, method)
    return out.getvalue()


TAR, ZIP, SPARSE = tar(), zipped(), {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "x"}
PAX, EMPTY = tarfile.TarInfo("top/pax"), tarfile.TarInfo("top/empty").tobuf()
PAX.type, PAX.size = tarfile.XHDTYPE, 1 << 33
BZIP2 = zipfile.ZIP_BZIP2
WHOLE = {"zip": ZIP, "tar": TAR, "gz": gzip.compress(TAR), "bz2": bz2.compress(TAR), "xz": lzma.compress(TAR)}
CHANGES = st.lists(st.tuples(st.floats(0, 0.999), st.binary(max_size=3), st.integers(0, 3)), min_size=1, max_size=3)
# fmt: off
NAMES = ["../evil", "/evil", "top/../evil", "C:\\evil", "top\\..\\evil", "top//evil", "x" * 300, "x/" * 600 + "x"]
BAD = {  # by the words that say what is wrong
    " is not a complete archive (": [
        b"", b"<html>404</html>", TAR[:1536], TAR[:1540] + b"x" + TAR[1541:], tar(pax_headers={"size": "x"}), ZIP[:-9],
        gzip.compress(TAR)[:-9], gzip.compress(TAR)[:-6] + b"123456", lzma.compress(TAR)[:-30], tar(pax_headers=SPARSE),
        bz2.compress(TAR)[:200] + b"x" + bz2.compress(TAR)[201:], zipped(method=0).replace(b"aaa", b"aab", 1),
        ZIP[: len(ZIP) // 2] + ZIP[len(ZIP) // 2 + 1 :],
        gzip.compress(PAX.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 27), 1)],
    " says that it holds much more than its own size": [
        tar(size=10**13), tar(pax_headers={"size": "-1024"}), tar(size=-512), gzip.compress(EMPTY * 99),
        ZIP.replace(b"\0\x08\0\0", b"\0\x08\0\x7f"), zipped(method=BZIP2, content={"top/b": bytes(1 << 27)})],
    " holds top/b as a device": [
        tar(type=tarfile.GNUTYPE_SPARSE), tar(type=tarfile.FIFOTYPE), tar(type=tarfile.BLKTYPE), tar(type=b"Z"),
        zipped(mode=0o010644), zipped(mode=0o020644), zipped(mode=0o060644)],
    " holds top/b as a link": [
        tar(type=tarfile.LNKTYPE, linkname="top/a"), tar(type=tarfile.SYMTYPE, linkname="/etc"), zipped(mode=0o120777)],
    " holds top/a as a file that is encrypted or packed in an unusual way": [
        zipped(method=zipfile.ZIP_LZMA), zipped(method=BZIP2),
        ZIP.replace(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1")],
    " goes on behind its end": [TAR + b"x" * 512, TAR[:1536] + bytes(512) + TAR[2048:]],
    " holds the unsafe name ": [
        make(name) for make in (tar, zipped) for name in [*NAMES, "top/\x1b[31m", "top/\x85", "top/é:"]],
    " holds top/a twice": [tar("top/a"), zipped("top/e").replace(b"top/e", b"top/a")],
    " holds top/b/e, and a folder in that path as a file": [tar("top/b/e"), zipped("top/b/e")],
}
# fmt: on


@pytest.mark.parametrize(("words", "content"), [(words, content) for words in BAD for content in BAD[words]])
def test_a_bad_archive_is_refused_with_little_memory_and_leaves_nothing(tmp_path, monkeypatch, words, content):
    monkeypatch.setattr(unpacking, "MEMBER_BYTES", 1 << 20)
    (tmp_path / "x.bin").write_bytes(content)
    tracemalloc.start()
    refused(partial(unpack, tmp_path / "x.bin", tmp_path / "top"), FetchError, names=("x.bin", words))
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
    assert os.listdir(tmp_path) == ["x.bin"]


@given(st.sampled_from(sorted(WHOLE)), CHANGES)
def test_an_archive_that_was_changed_anywhere_is_refused_or_gives_what_was_packed(form, changes):
    data = WHOLE[form]
    for place, new, lost in changes:
        data = data[: int(place * len(data))] + new + data[int(place * len(data)) + lost :]
    with tempfile.TemporaryDirectory() as folder:
        (archive := Path(folder, "x")).write_bytes(data)
        try:
            unpack(archive, Path(folder, "out"))
        except FetchError:
            assert os.listdir(folder) == ["x"]
        else:
            assert files_of(Path(folder, "out")).keys() == CONTENT.keys()  # of plain tar, content has no checksum
            assert form == "tar" or files_of(Path(folder, "out")) == CONTENT


def test_a_tar_that_ends_in_a_zip_is_a_tar(tmp_path):
    inner = tarfile.TarInfo("top/inner.zip")
    inner.size = len(ZIP)
    (tmp_path / "x").write_bytes(TAR[:-1024] + inner.tobuf() + ZIP + bytes(-len(ZIP) % 512) + bytes(1024))
    assert unpack(tmp_path / "x", tmp_path / "out") == 4


DOUBTED = {  # what a script says of the archives that nobody can verify
    "ade20k": "",
    "coco": r"/stuffthingmaps_trainval2017.zip: it comes by http, .* and no sha256 of it is published",
    "pascal_context": "VOCtrainval.*: no sha256 of it is published, only an md5; .*59_context_labels.*; .*59_labels",
}


@pytest.mark.parametrize("name", DOUBTED)
def test_what_nobody_can_verify_is_downloaded_with_a_persons_consent_only(tmp_path, capsys, monkeypatch, name):
    asked, script = [], data_script(name)
    monkeypatch.setattr(unpacking, "download", lambda url, file, most: asked.append(url) or file.write_bytes(b""))
    if DOUBTED[name]:
        assert script.main(["fetch", str(tmp_path)]) == 1
        assert re.search(DOUBTED[name] + ".* Say --unverified", capsys.readouterr().err)
        assert asked + os.listdir(tmp_path) == []
    assert script.main(["fetch", str(tmp_path), *["--unverified"] * bool(DOUBTED[name])]) == 1
    assert asked == [script.ARCHIVES[0].url]
    assert asked[0].startswith("https://")
    assert re.search("has 0 bytes|has md5", capsys.readouterr().err)


def test_a_download_neither_leaves_https_nor_takes_more_than_was_said(server, tmp_path, monkeypatch):
    server.content, opened = bytes(5000), fetching.urllib.request.urlopen
    refused(lambda: fetching.download(server.url, tmp_path / "x", 4999), FetchError, names=("4999",))
    with monkeypatch.context() as slow:  # a minute is over at once
        slow.setattr(fetching, "TIMEOUT_SECONDS", 0.0)
        slow.setattr(fetching, "SLOWEST", 10**12)
        slow.setattr(fetching.urllib.request, "urlopen", lambda *_, **__: opened(server.url))
        late = ("fewer than 1000000000000 bytes arrive in a second", "run the same command again")
        refused(lambda: fetching.download(server.url, tmp_path / "late"), FetchError, names=late)
    monkeypatch.setattr(fetching.urllib.request, "urlopen", lambda *_, **__: opened(server.url))
    refused(lambda: fetching.download("https://a.org/x", tmp_path / "x"), FetchError, names=(server.url,))
    assert not (tmp_path / "x").exists()


COCO = "annotations/instances_val2017.json"
LONG, DEEP, ESCAPE = b"x" * 10**7, b"[" * 10**6, b"2008_\x1b[31m\n"
TREES = {  # of scripts files of their trees, and what takes their place: bytes, how many, None: a pipe, other words
    ("ade20k", "objectInfo150.txt"): [b"\xff", None, LONG, b"1"],
    ("ade20k", "annotations/training/*1.png"): [b"\x89PNG", None, bytes(100)],
    ("coco", "labels.txt"): [b"\xff", None, b"".join(b"%d\n" % number for number in range(183))],
    ("coco", "val2017/000000000139.jpg"): [b"\xff", None],
    ("coco", COCO): [
        *(b"\xff", None, 10**13, DEEP, b"5", b'{"images": 5}', b"9" * 10**4, ('"bbox"', '"box"'), ('"width"', '"w"')),
        *(('": "0', '": "../0'), ('"iscrowd": 0', '"iscrowd": ""'), ('"image_id": ', '"image_id": 9')),
    ],
    ("pascal_context", "59_labels.txt"): [b"\xff", None, LONG, b"9" * 5000 + b": bird"],
    ("pascal_context", "VOC2010/ImageSets/Main/val.txt"): [b"\xff", None, LONG, ESCAPE, LONG[:5000]],
    ("cityscapes", "gtFine/train/*/*_labelIds.png"): [b"", None],
    ("cityscapes", "leftImg8bit/train/*/*.png"): [b"", None],
}
CASES = [(*place, content) for place, contents in TREES.items() for content in contents]


@pytest.mark.parametrize(("name", "file", "content"), CASES, ids=lambda value: f"{value!s:.20}")
def test_a_tree_with_a_bad_file_is_refused_in_one_line(tmp_path, capsys, name, file, content):
    root = WRITERS[name][0](tmp_path / WRITERS[name][1])
    bad = min(root.glob(file))
    content = bad.read_text().replace(*content).encode() if isinstance(content, tuple) else content
    bad.unlink()
    os.mkfifo(bad) if content is None else bad.write_bytes(b"" if isinstance(content, int) else content)
    os.truncate(bad, content) if isinstance(content, int) else None
    for command in ("check", "convert") if file != COCO and (content is None or "jpg" not in file) else ("check",):
        with for_counts(name, FEW):
            assert data_script(name).main([command, str(root)]) == 1
        said = capsys.readouterr().err
        assert re.search(f"{name}.py: .{{,300}}{bad.stem[:10]}.{{,600}}\n$", said)
        assert not re.search(r"\x1b\[[^A]", said)


@pytest.fixture(params=["zip", "tar", "tar.gz"])
def form(request):
    return request.param


@pytest.fixture
def place(tmp_path):
    """The folder that may be written to; beside it lies nothing but the archive."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def test_a_folder_of_an_archive_becomes_the_target_and_nothing_else_is_left(form, tmp_path, place):
    archive = packed(tmp_path / f"x.{form}", FOLDERS)
    assert unpack(archive, place / "all") == 4
    assert files_of(place / "all") == FOLDERS
    assert unpack(archive, place / "top", inside="top") == 3
    assert unpack(archive, place / "any", inside="*/a") == 2
    assert files_of(place / "any") == {"1.txt": b"one", "2.txt": FOLDERS["top/a/2.txt"]}
    assert unpack(archive, place / "only", inside="top", only=("b/", "a/1")) == 2
    assert set(files_of(place / "only")) == {"a/1.txt", "b/3.txt"}
    assert {path.name for path in place.iterdir()} == {"all", "top", "any", "only"}


@pytest.mark.parametrize("above", ["", "one/", "./one/two/"])
def test_the_folder_above_all_files_is_found_whatever_it_is(form, tmp_path, place, above):
    content = {f"{above}1.png": b"1", f"{above}2.png": b"2", f"{above}._1.png": b"junk"}
    if form == "zip":
        content = {name.removeprefix("./"): data for name, data in content.items()} | {"__MACOSX/1.png": b"junk"}
    unpack(packed(tmp_path / f"x.{form}", content), place / "maps", inside=None)
    assert files_of(place / "maps") == {"1.png": b"1", "2.png": b"2"}


def test_nothing_of_an_interrupted_or_a_killed_call_gets_into_the_folder(form, tmp_path, place, monkeypatch):
    content = {f"top/{number:02d}": bytes([number]) * 1000 for number in range(20)}
    archive, write, written = packed(tmp_path / f"x.{form}", content), unpacking._write, []

    def until_interrupted(member, target, archive):
        if len(written) == 7:
            raise KeyboardInterrupt
        written.append(member.name)
        write(member, target, archive)

    monkeypatch.setattr(unpacking, "_write", until_interrupted)
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, place / "top", inside="top")
    assert list(place.iterdir()) == []
    (place / ".top-unfinished").mkdir()
    for name in ("00", "foreign"):  # one of the right size, and one that the archive does not have
        (place / ".top-unfinished" / name).write_bytes(b"s" * 1000)
    monkeypatch.setattr(unpacking, "_write", write)
    assert unpack(archive, place / "top", inside="top") == 20
    assert files_of(place) == content


def test_what_is_there_is_kept_and_what_an_archive_lacks_or_has_no_room_is_named(form, tmp_path, place, monkeypatch):
    archive, usage = packed(tmp_path / f"x.{form}", FOLDERS), shutil.disk_usage(place)
    (place / "top").mkdir()
    refused(lambda: unpack(archive, place / "top", inside="top"), FileExistsError, names=("top exists",))
    other = "no files in its folder other (it holds top/a/1.txt"
    refused(lambda: unpack(archive, place / "new", inside="other"), FetchError, names=(other,))
    assert list(place.iterdir()) == [place / "top"]
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    room = ("takes 0.0 GB and ", " has 0.0 GB left; make room")
    refused(lambda: unpack(archive, place / "new", inside="top"), FetchError, names=room)
    assert not files_of(place)


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_fetching_makes_a_folder_once_and_refuses_content_of_other_size_or_hash(server, tmp_path, place, capsys, kind):
    server.content = content = packed(tmp_path / "made.zip", FOLDERS).read_bytes()
    digest = hashlib.new(kind, content).hexdigest()
    known = dict(size=len(content), digest=f"{kind}:{digest}", witness="as listed here")
    offered = Archive("x.zip", "set/top", url=server.url, inside="top", **known)
    for _ in range(2):
        unpacking.fetch_all(place, [offered], unverified=True)
        assert len(server.requests) == 1
        assert set(files_of(place)) == {"set/top/a/1.txt", "set/top/a/2.txt", "set/top/b/3.txt"}
    assert "already there" in capsys.readouterr().out
    unpacking.fetch_all(place, [Archive("labels.txt", "set/labels.txt", url=server.url, plain=True)], unverified=True)
    assert files_of(place)["set/labels.txt"] == content
    assert "labels.txt: no checksum of this file is published" in capsys.readouterr().out
    shutil.rmtree(place / "set")
    other_hash = rf"has {kind} .*expected {digest[:16]}… \(as listed here\): delete it"
    for other, found in ((content + b" ", rf"has {len(content) + 1} bytes"), (content[:-1] + b" ", other_hash)):
        place.joinpath("x.zip").write_bytes(other)
        with pytest.raises(FetchError, match=found):
            unpacking.fetch_all(place, [offered])
        assert [path.name for path in place.iterdir()] == ["x.zip"]
    place.joinpath("x.zip").write_bytes(content)  # an archive that lies there is used and kept
    unpacking.fetch_all(place, [offered])
    assert len(server.requests) == 2
    assert {path.name for path in place.iterdir()} == {"set", "x.zip"}


@pytest.mark.parametrize("name", WRITERS)
def test_what_a_script_fetches_becomes_what_it_checks(name, tmp_path, place, run, monkeypatch):
    """Archives in the published form, made from a miniature, lie where a person has put them."""
    script, (write, folder) = data_script(name), WRITERS[name]
    made = write(tmp_path / "made")
    for archive in script.ARCHIVES:
        source = made / archive.becomes.removeprefix(folder).lstrip("/")
        if archive.plain:
            shutil.copy(source, place / archive.file)
            continue
        above = "59_context_labels" if archive.inside is None else archive.inside
        content = {f"{above}/{path}".lstrip("/"): data for path, data in files_of(source).items()}
        packed(place / archive.file, {**content, "README": b"", "license.txt": b""} if archive.inside else content)
    known = [replace(archive, size=0, digest="", url="") for archive in script.ARCHIVES]
    monkeypatch.setattr(script, "ARCHIVES", known)
    run(name, "fetch", place)
    assert files_of(place / folder) == files_of(made)
    with for_counts(name, FEW):
        run(name, "check", place)
    assert run(name, "fetch", place).count("already there") == len(known)


def test_cityscapes_prints_the_steps_to_the_files_that_are_missing(place, run):
    for lacking in ("gtFine_trainvaltest.zip leftImg8bit_trainvaltest.zip", "leftImg8bit_trainvaltest.zip"):
        output = run("cityscapes", "fetch", place, code=1)
        assert "\n  1. register at https://www.cityscapes-dataset.com/register/ " in output
        assert f"{place} lacks {lacking}" in output
        packed(place / "gtFine_trainvaltest.zip", {"gtFine/train/aachen/x.png": b""})
