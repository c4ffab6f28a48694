import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from miniatures import write_camvid
from PIL import Image
from torchvision.transforms.v2 import functional as F

from apd.data.converted import CamVid
from apd.data.image_folder import DataError, FolderDataset, MissingData, find_data, pair_folders
from apd.data.specs import CAMVID, SegmentationDataset


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    """A whole miniature; tests must not change it."""
    return write_camvid(tmp_path_factory.mktemp("data") / "CamVid")


@pytest.fixture
def own_camvid(camvid, tmp_path):
    """A copy whose files may be removed and replaced (they are hard links: never write into one)."""
    return Path(shutil.copytree(camvid, tmp_path / "CamVid", copy_function=os.link))


@pytest.fixture
def pairs(tmp_path):
    """Three pairs that a test may damage."""
    root = write_camvid(tmp_path / "few", counts={"train": 3}, height=40, width=64)
    return pair_folders(root / "train", root / "trainannot")


def test_a_pair_comes_back_as_stored_with_void_ignored(pairs):
    for index, (image_path, mask_path) in enumerate(pairs):
        image_3HW, labels_HW, name = FolderDataset(CAMVID, pairs)[index]
        mask_HW = np.asarray(Image.open(mask_path)).astype(int)
        assert (mask_HW == 11).any()
        assert image_3HW.dtype == labels_HW.dtype == torch.uint8
        assert np.array_equal(image_3HW.permute(1, 2, 0), np.asarray(Image.open(image_path)))
        assert np.array_equal(labels_HW, np.where(mask_HW == 11, 255, mask_HW))
        assert name == image_path.stem


def pixels_under_centres(length, new_length):
    """Source pixels that hold the new pixels' centres, in whole numbers; two answers where a centre is on a border."""
    twice = (2 * np.arange(new_length) + 1) * length
    return twice // (2 * new_length), (twice - 1) // (2 * new_length)


@pytest.mark.parametrize(("height", "width"), [(20, 32), (30, 50), (80, 100)])
def test_resizing_is_antialiased_for_images_and_invents_no_label(pairs, height, width):
    whole, resized = FolderDataset(CAMVID, pairs)[0], FolderDataset(CAMVID, pairs, height=height, width=width)[0]
    assert resized.image_3HW.shape == (3, height, width)
    reference = F.resize(whole.image_3HW, [height, width], antialias=True)
    assert (resized.image_3HW.int() - reference.int()).abs().max() <= 1
    under_centre = np.zeros((height, width), dtype=bool)
    for rows in pixels_under_centres(40, height):
        for columns in pixels_under_centres(64, width):
            under_centre |= resized.labels_HW.numpy() == whole.labels_HW.numpy()[np.ix_(rows, columns)]
    assert under_centre.all()


def test_the_cache_changes_no_pixel_and_cannot_be_damaged_by_a_caller(pairs):
    cached, read = FolderDataset(CAMVID, pairs), FolderDataset(CAMVID, pairs, cache=False)
    cached[1].image_3HW.zero_()
    cached[1].labels_HW.zero_()
    for index in range(3):
        assert torch.equal(cached[index].image_3HW, read[index].image_3HW)
        assert torch.equal(cached[index].labels_HW, read[index].labels_HW)


def test_the_reader_is_a_sequence_that_a_plain_loop_ends(pairs):
    dataset = FolderDataset(CAMVID, pairs)
    assert isinstance(dataset, SegmentationDataset)
    assert [sample.name for sample in dataset] == [image.stem for image, _ in pairs]
    assert dataset[-1].name == dataset[2].name
    with pytest.raises(IndexError):
        dataset[3]


def test_grey_and_palette_pictures_are_read_as_colours(pairs):
    image = Image.open(pairs[0][0])
    for index, mode in enumerate(("L", "P", "RGBA")):
        image.convert(mode).save(pairs[index][0])
    dataset = FolderDataset(CAMVID, pairs)
    assert all(dataset[index].image_3HW.shape == (3, 40, 64) for index in range(3))
    assert np.array_equal(dataset[2].image_3HW.permute(1, 2, 0), np.asarray(image))
    assert torch.equal(dataset[0].image_3HW[0], dataset[0].image_3HW[2])


def test_the_fingerprint_changes_with_any_content_name_or_size_and_only_then(pairs):
    original = FolderDataset(CAMVID, pairs).fingerprint()
    assert len(original) == 64
    assert FolderDataset(CAMVID, pairs, cache=False).fingerprint() == original
    seen = {
        original,
        FolderDataset(CAMVID, pairs[::-1]).fingerprint(),
        FolderDataset(CAMVID, pairs[:2]).fingerprint(),
        FolderDataset(CAMVID, pairs, height=20, width=32).fingerprint(),
    }
    renamed = [tuple(path.rename(path.with_stem("other")) for path in pairs[0]), *pairs[1:]]
    seen.add(FolderDataset(CAMVID, renamed).fingerprint())
    mask = np.asarray(Image.open(pairs[2][1])).copy()
    mask[0, 0] = 5 if mask[0, 0] != 5 else 6
    Image.fromarray(mask).save(pairs[2][1])
    seen.add(FolderDataset(CAMVID, renamed).fingerprint())
    assert len(seen) == 6


@pytest.mark.parametrize("kept", [0, 8, 60, 0.5, 0.9, -1])
@pytest.mark.parametrize("which", [0, 1], ids=["image", "mask"])
def test_a_truncated_picture_is_named(pairs, which, kept):
    path = pairs[1][which]
    content = path.read_bytes()
    keep = int(len(content) * kept) if isinstance(kept, float) else kept if kept >= 0 else len(content) - 20
    path.write_bytes(content[:keep])
    with pytest.raises(DataError, match=rf"{path.name}.*damaged or truncated"):
        FolderDataset(CAMVID, pairs)


def test_a_file_that_vanished_is_named(pairs):
    pairs[2][1].unlink()
    with pytest.raises(MissingData, match=pairs[2][1].name):
        FolderDataset(CAMVID, pairs)


def test_image_and_mask_of_different_size_are_refused_with_both_sizes(pairs):
    Image.open(pairs[1][1]).resize((32, 40)).save(pairs[1][1])
    with pytest.raises(DataError, match=rf"{pairs[1][0].name} is 64×40 .* {pairs[1][1]} 32×40; .*same size"):
        FolderDataset(CAMVID, pairs, height=20, width=32)


def test_unknown_labels_are_refused_with_file_values_and_counts(pairs):
    mask = np.asarray(Image.open(pairs[1][1])).copy()
    mask[:2, :3], mask[5, 5] = 12, 254
    Image.fromarray(mask).save(pairs[1][1])
    with pytest.raises(
        DataError, match=r"_000030.png holds the label values 12 \(6 pixels\), 254 \(1 pixels\); .*0..10"
    ):
        FolderDataset(CAMVID, pairs)
    read_later = FolderDataset(CAMVID, pairs, cache=False)
    assert read_later[0].name == pairs[0][0].stem
    with pytest.raises(DataError, match="254"):
        read_later[1]


def test_unknown_labels_are_found_even_where_resizing_would_drop_them(pairs):
    mask = np.asarray(Image.open(pairs[0][1])).copy()
    mask[0, 0] = 99
    Image.fromarray(mask).save(pairs[0][1])
    with pytest.raises(DataError, match=r"99 \(1 pixels\)"):
        FolderDataset(CAMVID, pairs, height=4, width=6)


def test_many_unknown_labels_are_told_in_short(pairs):
    Image.fromarray(np.arange(40 * 64, dtype=np.uint16).reshape(40, 64).astype(np.uint8)).save(pairs[0][1])
    with pytest.raises(DataError, match="and 235 more values"):
        FolderDataset(CAMVID, pairs)


def test_a_colour_mask_is_refused_with_its_mode_and_what_to_write(pairs):
    Image.open(pairs[1][1]).convert("RGB").save(pairs[1][1])
    with pytest.raises(DataError, match=f"{pairs[1][1].name} has mode RGB; .*one 8-bit channel.* as in colours: "):
        FolderDataset(CAMVID, pairs)


@pytest.mark.parametrize(("height", "width"), [(20, None), (None, 20), (0, 20), (20, -1)])
def test_half_a_size_or_an_empty_one_is_refused(pairs, height, width):
    with pytest.raises(ValueError, match=f"height={height} and width={width}"):
        FolderDataset(CAMVID, pairs, height=height, width=width)


def test_no_pairs_are_refused(tmp_path):
    with pytest.raises(DataError, match="no image/mask pairs for camvid"):
        FolderDataset(CAMVID, [])
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="is given for images and for masks"):
        pair_folders(tmp_path / "a", tmp_path / "a")
    (tmp_path / "c").mkdir()
    with pytest.raises(DataError, match=r"a holds no image; expected \.png"):
        pair_folders(tmp_path / "a", tmp_path / "c")
    with pytest.raises(MissingData, match="missing"):
        pair_folders(tmp_path / "a", tmp_path / "b")


def test_a_name_without_partner_is_told_with_the_folder_that_lacks_it(pairs):
    image_dir, mask_dir = pairs[0][0].parent, pairs[0][1].parent
    pairs[1][1].unlink()
    with pytest.raises(DataError, match=rf"train/{pairs[1][0].name} has no partner in .*trainannot \(1 such"):
        pair_folders(image_dir, mask_dir)
    pairs[1][0].unlink()
    pairs[2][0].unlink()
    with pytest.raises(DataError, match=rf"trainannot/{pairs[2][1].name} has no partner in .*train \(1 such"):
        pair_folders(image_dir, mask_dir)


def test_two_pictures_of_one_name_are_refused_and_hidden_files_are_not_pictures(pairs):
    image_dir, mask_dir = pairs[0][0].parent, pairs[0][1].parent
    (image_dir / "._junk.png").write_bytes(b"")
    (image_dir / "Thumbs.db").write_bytes(b"")
    assert pair_folders(image_dir, mask_dir) == pairs
    Image.open(pairs[0][0]).save(pairs[0][0].with_suffix(".jpg"))
    with pytest.raises(DataError, match=r"both .*jpg and .*png"):
        pair_folders(image_dir, mask_dir)


def test_camvid_has_the_standard_split_in_the_order_of_its_list(own_camvid):
    assert [len(CamVid(own_camvid, split)) for split in ("train", "val", "test")] == [367, 101, 233]
    by_name = [sample.name for sample in CamVid(own_camvid, "val")]
    assert by_name == sorted(by_name)
    lines = (own_camvid / "val.txt").read_text().splitlines()[::-1]
    (own_camvid / "val.txt").unlink()
    assert [sample.name for sample in CamVid(own_camvid, "val")] == by_name
    (own_camvid / "val.txt").write_text("\n".join(lines) + "\n\n")
    assert [sample.name for sample in CamVid(own_camvid, "val")] == by_name[::-1]


def test_half_extracted_camvid_is_told_with_every_folders_count_whatever_the_split(own_camvid):
    for path in sorted((own_camvid / "trainannot").iterdir())[:150]:
        path.unlink()
    shutil.rmtree(own_camvid / "testannot")
    message = (
        "train/ 367 of 367, trainannot/ 217 of 367, val/ 101 of 101, .* testannot/ 0 of 233 pictures; .*fetch DEST"
    )
    with pytest.raises(DataError, match=message):
        CamVid(own_camvid, "val")


def test_an_unpaired_name_with_right_counts_is_found(own_camvid):
    path = own_camvid / "test" / "test_000300.png"
    path.rename(path.with_stem("test_x"))
    with pytest.raises(DataError, match="has no partner"):
        CamVid(own_camvid, "test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda lines: [*lines[:4], "a/b.png a/c.png", *lines[5:]],
            "val.txt line 5: .*expected one image and its mask",
        ),
        (lambda lines: [*lines[:4], lines[4].split()[0], *lines[5:]], "val.txt line 5"),
        (lambda lines: [*lines[:4], lines[5].replace("val_", "gone_"), *lines[5:]], "val.txt line 5"),
        (lambda lines: lines[:-1], "names 100 different pairs on 100 lines, and the folders hold 101"),
        (lambda lines: [*lines, lines[0]], "names 101 different pairs on 102 lines"),
    ],
    ids=["two names", "one path", "no such file", "short", "twice"],
)
def test_a_list_file_that_does_not_fit_is_refused(own_camvid, change, message):
    lines = (own_camvid / "val.txt").read_text().splitlines()
    (own_camvid / "val.txt").unlink()
    (own_camvid / "val.txt").write_text("\n".join(change(lines)))
    with pytest.raises(DataError, match=message):
        CamVid(own_camvid, "val", cache=False)


def test_an_unknown_split_and_a_missing_or_empty_folder_are_told(camvid, tmp_path):
    with pytest.raises(ValueError, match="split='valid' is unknown; expected one of train, val, test"):
        CamVid(camvid, "valid")
    with pytest.raises(MissingData, match=r"nowhere is missing; .*data_scripts/camvid.py fetch DEST"):
        CamVid(tmp_path / "nowhere", "train")
    with pytest.raises(MissingData, match="not complete: train/ 0 of 367"):
        CamVid(tmp_path, "train")


def test_data_are_found_through_the_environment_or_it_is_said_what_to_do(camvid, tmp_path, monkeypatch):
    monkeypatch.setenv("APD_DATA", str(camvid.parent))
    assert find_data("CamVid") == camvid
    advice = r"Set APD_DATA to the folder that contains CamVid/, or run `python data_scripts/camvid.py fetch DEST`"
    for value, problem in (
        (str(tmp_path / "no"), "is not a folder"),
        (str(tmp_path), "holds no folder CamVid/"),
        ("", "is not set"),
    ):
        monkeypatch.setenv("APD_DATA", value)
        with pytest.raises(FileNotFoundError, match=f"CamVid is needed.*APD_DATA.*{problem}.*{advice}"):
            find_data("CamVid")
    monkeypatch.delenv("APD_DATA")
    with pytest.raises(MissingData, match=f"is not set. {advice}"):
        find_data("CamVid")


def test_reading_and_batching_need_no_torchvision_until_something_is_augmented():
    code = (
        "import sys, apd.data.image_folder, apd.data.augment, apd.data.batches\n"
        "sys.exit(', '.join({'torchvision', 'matplotlib', 'timm'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not os.environ.get("APD_DATA"), reason="APD_DATA is not set")
def test_the_real_camvid_is_read_whole():
    root = find_data("CamVid")
    assert [len(CamVid(root, split, cache=False)) for split, _ in CAMVID.splits] == [367, 101, 233]
    validation = CamVid(root, "val", height=90, width=120)
    labels = torch.stack([sample.labels_HW for sample in validation])
    assert labels.shape == (101, 90, 120)
    assert set(labels.unique().tolist()) == {*range(11), 255}
    assert 0.01 < (labels == 255).float().mean() < 0.05
