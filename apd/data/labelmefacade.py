"""LabelMeFacade: street photographs from many places, with a test in the places of training and one outside of them.

The splits are this study's own, as the published ones (100 and 845 images) share their places. They were made by rule
from the images' names (`splits_of` in data_scripts/labelmefacade.py) and stand in labelmefacade_splits.txt.
"""

from functools import cache
from pathlib import Path

from apd.data.image_folder import FolderDataset, find_data
from apd.data.images import MissingData
from apd.data.paired_files import pair_folders
from apd.data.specs import CAMVID, DatasetSpec

FOLDER = "LabelMeFacade"
_LISTS = Path(__file__).with_name("labelmefacade_splits.txt")
# door, vegetation and window take the colours of classes of CamVid that are not among these
_LIKE_CAMVID = {name: name for name in ("building", "car", "pavement", "road", "sky")}
_LIKE_CAMVID |= {"door": "sign", "vegetation": "tree", "window": "pole"}
_CLASSES = tuple(sorted(_LIKE_CAMVID))

LABELMEFACADE = DatasetSpec(
    name="labelmefacade",
    class_names=_CLASSES,
    palette=tuple(CAMVID.palette[CAMVID.index(_LIKE_CAMVID[name])] for name in _CLASSES),
    splits=(("train", 384), ("val", 81), ("test", 200), ("test_out_of_place", 268), ("night", 12)),
)
"""LabelMeFacade with its 8 classes; what is none of them is ignored. `splits` are this study's."""


@cache
def listed_splits() -> dict[str, tuple[str, ...]]:
    """The names of the images of each split, without suffix, sorted.

    `train`, `val` and `test` share their places, but no two images that may show the same house. `test_out_of_place` is
    Spain, of which the three hold nothing, by day; `night` is Spain by night.

    Example:
        >>> {split: len(stems) for split, stems in listed_splits().items()}
        {'train': 384, 'val': 81, 'test': 200, 'test_out_of_place': 268, 'night': 12}
    """
    splits: dict[str, list[str]] = {split: [] for split, _ in LABELMEFACADE.splits}
    for line in _LISTS.read_text(encoding="utf-8").splitlines():
        split, stem = line.split()
        splits[split].append(stem)
    return {split: tuple(stems) for split, stems in splits.items()}


class LabelMeFacade(FolderDataset):
    """One split of LabelMeFacade, as ``data_scripts/labelmefacade.py convert`` has written it.

    Images have a short side of 320 pixels and several shapes. They are JPEG files, whose last bits depend on the
    library that wrote them: `fingerprint` says which copy this is.

    Args:
        root: the folder that holds ``images/`` and ``labels/``, as of ``find_data("LabelMeFacade")`` (default: that).
        split: ``"train"``, ``"val"``, ``"test"`` (in the places of training), ``"test_out_of_place"`` or ``"night"``.
        height, width: as in `FolderDataset` (default: each image's own size).

    Raises:
        MissingData: the folder, or an image of the split, is not there.
        DataError: an unpaired name, or a damaged file (see `FolderDataset`).
        ValueError: an unknown split.

    Example:
        >>> LabelMeFacade("val")[0].image_3HW.shape    # doctest: +SKIP
        torch.Size([3, 320, 427])
    """

    def __init__(
        self, split: str, *, root: Path | str | None = None, height: int | None = None, width: int | None = None
    ) -> None:
        lists = listed_splits()
        if split not in lists:
            raise ValueError(f"split={split!r} is unknown; expected one of {', '.join(lists)}")
        self.root, self.split = find_data(FOLDER) if root is None else Path(root), split
        pairs = {image.stem: (image, mask) for image, mask in pair_folders(self.root / "images", self.root / "labels")}
        if missing := [stem for stem in lists[split] if stem not in pairs]:
            raise MissingData(
                f"{self.root} lacks {missing[0]} and {len(missing) - 1} more of the {len(lists[split])} images of "
                f"{split}; run `python data_scripts/labelmefacade.py convert` again"
            )
        super().__init__(LABELMEFACADE, [pairs[stem] for stem in lists[split]], height=height, width=width)
