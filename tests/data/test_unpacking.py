"""Archives are fetched, compared and unpacked whole, and nothing that they hold gets out of their folder."""

import hashlib
import os
import shutil
import tarfile
import zipfile
from dataclasses import replace

import pytest
from bad_input import refused
from file_server import packed
from miniatures import FEW, WRITERS, data_script, files_of, for_counts

fetching = data_script("fetching")
unpacking = data_script("unpacking")
FetchError, Archive, unpack = fetching.FetchError, unpacking.Archive, unpacking.unpack

CONTENT = {"top/a/1.txt": b"one", "top/a/2.txt": b"two" * 50000, "top/b/3.txt": b"", "README": b"read me"}


@pytest.fixture(params=["zip", "tar", "tar.gz"])
def form(request):
    return request.param


@pytest.fixture
def place(tmp_path):
    """The folder that may be written to; beside it lies nothing but the archive."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def test_a_folder_of_an_archive_becomes_the_target_and_nothing_else_is_left(form, tmp_path, place):
    archive = packed(tmp_path / f"x.{form}", CONTENT)
    assert unpack(archive, place / "all") == 4
    assert files_of(place / "all") == CONTENT
    assert unpack(archive, place / "top", inside="top") == 3
    assert unpack(archive, place / "any", inside="*/a") == 2
    assert files_of(place / "any") == {"1.txt": b"one", "2.txt": CONTENT["top/a/2.txt"]}
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


def test_no_name_leads_out_of_the_folder_and_links_and_devices_are_refused(form, tmp_path, place):
    evil = ("../evil", "/evil", "top/../evil", "C:\\evil", "top\\..\\evil", "top//evil")
    archive = tmp_path / f"x.{form}"
    for name, message in (*((name, "unsafe name") for name in evil), ("top/passwd", "top/passwd as a link")):
        packed(archive, {**CONTENT, name: None if name == "top/passwd" else b"evil"})
        with pytest.raises(FetchError, match=message):
            unpack(archive, place / "top", inside="top")
    for kind, problem in ((tarfile.LNKTYPE, "link"), (tarfile.CHRTYPE, "device"), (tarfile.FIFOTYPE, "device")):
        with tarfile.open(archive, "w") as out:
            info = tarfile.TarInfo("top/odd")
            info.type = kind
            out.addfile(info)
        with pytest.raises(FetchError, match=f"top/odd as a {problem}"):
            unpack(archive, place / "top", inside="top")
    assert list(place.iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"place", archive.name}


def test_unpacking_goes_on_with_the_file_where_it_stopped(form, tmp_path, place, monkeypatch):
    content = {f"top/{number:02d}": bytes([number]) * 1000 for number in range(20)}
    archive, write, written = packed(tmp_path / f"x.{form}", content), unpacking._write, []

    def until_interrupted(member, target, archive):
        if len(written) == 7:
            target.with_name(f".{target.name}.part").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(member.name)
        write(member, target, archive)

    monkeypatch.setattr(unpacking, "_write", until_interrupted)
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, place / "top", inside="top")
    assert [path.name for path in place.iterdir()] == [".top-unpacking"]
    monkeypatch.setattr(unpacking, "_write", lambda m, t, a: (written.append(m.name), write(m, t, a)))
    assert unpack(archive, place / "top", inside="top") == 20
    assert written == sorted(content)
    assert files_of(place) == content


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_cut_archive_is_named_and_makes_no_folder(form, tmp_path, place, kept):
    archive = packed(tmp_path / f"x.{form}", {"top/noise": os.urandom(300_000), "top/last": os.urandom(300_000)})
    archive.write_bytes(archive.read_bytes()[: int(archive.stat().st_size * kept)])
    with pytest.raises(FetchError, match=r"not a complete archive|as the archive says|has no files"):
        unpack(archive, place / "top", inside="top")
    assert not (place / "top").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("times", "message"), [(1, "Bad CRC"), (2, "top/a twice")])
def test_a_changed_byte_and_a_name_that_is_there_twice_are_found_in_a_zip(tmp_path, place, times, message):
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for _ in range(times):
            out.writestr("top/a", b"a" * 1000)
    archive.write_bytes(archive.read_bytes().replace(b"a" * 1000, b"a" * 500 + b"b" + b"a" * 499))
    with pytest.raises(FetchError, match=message):
        unpack(archive, place / "top", inside="top")
    assert not (place / "top").exists()


def test_what_is_there_is_kept_and_what_an_archive_lacks_or_has_no_room_is_named(form, tmp_path, place, monkeypatch):
    archive, usage = packed(tmp_path / f"x.{form}", CONTENT), shutil.disk_usage(place)
    (place / "top").mkdir()
    refused(lambda: unpack(archive, place / "top", inside="top"), FileExistsError, names=("top exists",))
    other = "no files in its folder other (it holds top/a/1.txt"
    refused(lambda: unpack(archive, place / "new", inside="other"), FetchError, names=(other,))
    assert list(place.iterdir()) == [place / "top"]
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    room = ("takes 0.0 GB and ", " has 0.0 GB left; make room")
    refused(lambda: unpack(archive, place / "new", inside="top"), FetchError, names=room)
    assert not files_of(place)


@pytest.fixture
def offered(server, tmp_path):
    """An archive that the server offers, with everything that is known of it but its hash."""
    server.content = packed(tmp_path / "made.zip", CONTENT).read_bytes()
    return Archive("x.zip", "set/top", url=server.url, inside="top", size=len(server.content), witness="as listed here")


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_fetching_makes_a_folder_once_and_refuses_content_of_other_size_or_hash(server, offered, place, capsys, kind):
    content, digest = server.content, hashlib.new(kind, server.content).hexdigest()
    offered = replace(offered, digest=f"{kind}:{digest}")
    for _ in range(2):
        unpacking.fetch_all(place, [offered])
        assert len(server.requests) == 1
        assert set(files_of(place)) == {"set/top/a/1.txt", "set/top/a/2.txt", "set/top/b/3.txt"}
    assert "already there" in capsys.readouterr().out
    unpacking.fetch_all(place, [Archive("labels.txt", "set/labels.txt", url=server.url, plain=True)])
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
        assert "register at https://www.cityscapes-dataset.com/register/" in output
        assert f"{place} lacks {lacking}" in output
        packed(place / "gtFine_trainvaltest.zip", {"gtFine/train/aachen/x.png": b""})
