"""Image-classification data sets as tensors that lie on the device, and the batched crop and flip over them.

Every data set, whatever its source, becomes one :class:`Dataset` of uint8 pixels: decoded once, kept as one
tensor file in a cache folder, and identified by a digest of its content.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.kd.errors import InputError, unknown
from kdbench.kd.streams import stream

SIZE = 32
"Height and width of an image in pixels, unless a folder of images has an `image_size` of its own."

# Raised by hand when a data set's decoding changes, so that no stale cache file is used.
_CACHE_VERSION = 1

# CIFAR-10 train set: mean and standard deviation over all pixels of each channel. The paper's text prints
# (.2023, .1994, .2010), the mean of per-image deviations; its second version's code uses these.
_CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR10_STD = (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Dataset:
    """Labelled images: pixels uint8 (N, H, W, 3), labels int64 (N,), the first `n_train` of them the train set."""

    name: str
    pixels: Tensor
    labels: Tensor
    n_train: int
    classes: tuple[str, ...]
    digest: str
    "SHA-256 over pixels, labels, train count and class names."
    resized: str = ""
    "How many images came in another size, and which; empty if none."

    @property
    def size(self) -> int:
        """Height and width of each image, in pixels."""
        return self.pixels.shape[1]

    @property
    def train_ids(self) -> Tensor:
        """Ids of the train set's images."""
        return torch.arange(self.n_train)

    @property
    def test_ids(self) -> Tensor:
        """Ids of the test set's images."""
        return torch.arange(self.n_train, len(self.labels))


def _dataset(
    name: str, pixels: Tensor, labels: Tensor, n_train: int, classes: Sequence[str], resized: str = ""
) -> Dataset:
    pixels = pixels.contiguous()  # torchvision's CIFAR is a transposed view
    digest = hashlib.sha256()
    digest.update(pixels.numpy().data)
    digest.update(labels.numpy().data)
    digest.update(repr((n_train, tuple(classes))).encode())
    return Dataset(name, pixels, labels, n_train, tuple(classes), digest.hexdigest(), resized)


def cache_folder() -> Path:
    """Return the folder of decoded data sets: $KDBENCH_CACHE, or kdbench in the user's cache folder."""
    if own := os.environ.get("KDBENCH_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kdbench"


def save(dataset: Dataset, path: Path) -> None:
    """Write a data set as one tensor file, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    meta = {
        "name": dataset.name,
        "n_train": str(dataset.n_train),
        "classes": "\n".join(dataset.classes),
        "resized": dataset.resized,
    }
    safetensors.torch.save_file({"pixels": dataset.pixels, "labels": dataset.labels}, temporary, meta)
    temporary.replace(path)


def load_file(path: Path) -> Dataset:
    """Read a tensor file written by :func:`save`; its digest is computed afresh from what was read."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            meta = file.metadata()
            pixels, labels = file.get_tensor("pixels"), file.get_tensor("labels")
        name, n_train, classes = meta["name"], int(meta["n_train"]), meta["classes"].split("\n")
        _check_tensors(pixels, labels, n_train, len(classes))
    except (OSError, safetensors.SafetensorError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"data file {path} cannot be read ({error}); delete it and it is made anew") from error
    return _dataset(name, pixels, labels, n_train, classes, meta.get("resized", ""))


def _check_tensors(pixels: Tensor, labels: Tensor, n_train: int, classes: int) -> None:
    """Raise ValueError for tensors that are no data set: the cache holds what kdbench wrote, or damage."""
    square = pixels.ndim == 4 and pixels.shape[1] == pixels.shape[2] > 0 and pixels.shape[3] == 3
    if pixels.dtype != torch.uint8 or not square or labels.shape != pixels.shape[:1]:
        raise ValueError(f"pixels of {pixels.dtype} {tuple(pixels.shape)} and labels {tuple(labels.shape)}")
    if labels.dtype != torch.int64 or not 0 < n_train < len(labels):
        raise ValueError(f"labels of {labels.dtype}, {n_train} of {len(labels)} for training")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"labels {int(labels.min())} to {int(labels.max())} of {classes} classes")


def prepare(name: str, root: Path | None, cache: Path, size: int = SIZE) -> Path:
    """Return the tensor file of a data set, decoding it first if the cache does not hold it.

    `name` is "digits", "cifar10", "cifar100" or "folder"; `root` is where CIFAR's archives lie (default: the
    cache) or the folder's root (`train/CLASS/*`, `test/CLASS/*`); `size` is the height and width that a folder's
    images are resized to. Raises InputError with what is missing, from where, and where to put it.
    """
    if name not in (*SOURCES, "folder"):
        raise unknown("data set", name, (*SOURCES, "folder"))
    if name == "folder" and root is None:
        raise InputError("data set 'folder' needs a folder with train/CLASS/* and test/CLASS/* images", "root")
    if name == "digits" and root is not None:
        raise InputError(
            "data set 'digits' is built in and takes no folder; images of your own are data set 'folder'",
            "name and root",
        )
    if name != "folder" and size != SIZE:
        raise InputError(f"image_size {size}: the images of {name} are {SIZE}x{SIZE}; only a folder's are resized")
    listing = _listing(root) if name == "folder" and root is not None else []
    key = hashlib.sha256(repr((_CACHE_VERSION, size, name, listing)).encode()).hexdigest()[:16]
    label = folder_name(root, size) if name == "folder" and root is not None else name
    path = cache / "datasets" / f"{label}-{key}.safetensors"
    if not path.is_file():
        save(_folder(root, size) if name == "folder" and root is not None else SOURCES[name](root, cache), path)
    return path


def _digits(root: Path | None, cache: Path) -> Dataset:
    """scikit-learn's 1,797 real handwritten digits, enlarged from 8x8 to 32x32 and cut 520/1,277 once and for all."""
    from sklearn.datasets import load_digits  # 1.5 s, and only needed here

    data = load_digits()
    images = torch.from_numpy(data.images).float().div(16).mul(255)[:, None]
    images = F.interpolate(images, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    pixels = images.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).expand(-1, -1, -1, 3)
    order = torch.randperm(len(pixels), generator=stream(0, "digits/order"))
    labels = torch.from_numpy(data.target).long()
    return _dataset("digits", pixels[order].contiguous(), labels[order], 520, [str(d) for d in range(10)])


def _cifar(name: str) -> Callable[[Path | None, Path], Dataset]:
    def load(root: Path | None, cache: Path) -> Dataset:
        from torchvision import datasets

        kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
        place = root or cache / "torchvision"
        try:
            parts = [kind(str(place), train=train, download=True) for train in (True, False)]
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"{name} is not in {place} and could not be downloaded ({error}). Fetch {kind.filename} from "
                f"{kind.url} into that folder, or name the folder that holds it",
                "root",
            ) from error
        pixels = torch.from_numpy(np.concatenate([part.data for part in parts]))
        labels = torch.tensor([label for part in parts for label in part.targets])
        return _dataset(name, pixels, labels, len(parts[0].targets), parts[0].classes)

    return load


def folder_name(root: Path, size: int) -> str:
    """Return the name of a folder's data set; its size stands in it where that is not the usual one."""
    name = f"folder-{root.resolve().name}"
    return name if size == SIZE and _SIZED.search(name) is None else f"{name}@{size}px"


def size_in(name: str) -> int:
    """Return the size of the images in the data set of this name."""
    found = _SIZED.search(name)
    return int(found[1]) if found and name.startswith("folder-") else SIZE


_SIZED = re.compile(r"@(\d+)px$")


def _listing(root: Path) -> list[tuple[str, int, int]]:
    """Return path, size and time of each image below `root`: what tells whether the folder is still the same."""
    return [
        (path.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns)
        for images in _folder_images(root).values()
        for path in (p for files in images.values() for p in files)
        for stat in (path.stat(),)
    ]


def _folder_images(root: Path) -> dict[str, dict[str, list[Path]]]:
    """Return the image files by part (train, test) and class, or raise InputError for a folder that is no data set."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    if not root.is_dir():
        raise InputError(f"data folder {root} does not exist")
    found: dict[str, dict[str, list[Path]]] = {}
    for part in ("train", "test"):
        if not (root / part).is_dir():
            raise InputError(f"data folder {root} has no {part}/ in it; images belong in {root / part}/CLASS/")
        found[part] = {
            folder.name: sorted(p for p in folder.iterdir() if p.suffix.lower() in IMG_EXTENSIONS)
            for folder in sorted((root / part).iterdir())
            if folder.is_dir() and not folder.name.startswith(".")
        }
        if not any(found[part].values()):
            raise InputError(
                f"{root / part} holds no images ({', '.join(IMG_EXTENSIONS)}); they belong in {root / part}/CLASS/"
            )
        for label, files in found[part].items():
            if not files:
                raise InputError(f"{root / part / label} holds no images ({', '.join(IMG_EXTENSIONS)})")
            odd = next((path for path in files if not path.is_file()), None)
            if odd is not None:  # a pipe would be waited on for ever
                raise InputError(f"{odd} is named like an image and is no file that can be read; remove it")
    train, test = set(found["train"]), set(found["test"])
    if train != test:
        differing = ", ".join(sorted(train ^ test)[:5])
        raise InputError(f"{root}: train and test do not have the same classes; only in one of them: {differing}")
    if len(train) < 2:
        raise InputError(f"{root} has one class, {next(iter(train))}; a classifier needs at least two")
    return found


_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")
"What a file with a name of an image may hold. Pillow knows others, and hands some of them (EPS) to other programs."


def _decode(path: Path, size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Return an image's pixels in the size wanted, (size, size, 3), and the width and height that it came in."""
    from PIL import Image

    try:
        with Image.open(path, formats=_FORMATS) as image:
            rgb = image.convert("RGB")
    except Exception as error:  # Pillow raises many kinds; each means that this file is no image
        raise InputError(f"{path} cannot be read as an image ({error}); mend or remove it") from error
    came = rgb.size
    if came != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(rgb), came


def _folder(root: Path, size: int) -> Dataset:
    found = _folder_images(root)
    classes = sorted(found["train"])
    files = [
        (path, classes.index(label)) for part in ("train", "test") for label in classes for path in found[part][label]
    ]
    _check_memory(len(files), size)
    with ThreadPoolExecutor() as pool:
        decoded = list(pool.map(partial(_decode, size=size), (path for path, _ in files)))
    pixels = torch.from_numpy(np.stack([image for image, _ in decoded]))
    others = Counter(came for _, came in decoded if came != (size, size))
    resized = ""
    if others:
        (width, height), _ = others.most_common(1)[0]
        kinds = f"{width}x{height}" if len(others) == 1 else f"{len(others)} sizes, most often {width}x{height}"
        resized = f"{others.total()} of {len(files)} images came in {kinds} and are resized to {size}x{size}"
    n_train = sum(len(images) for images in found["train"].values())
    labels = torch.tensor([label for _, label in files])
    return _dataset(folder_name(root, size), pixels, labels, n_train, classes, resized)


def _check_memory(images: int, size: int) -> None:
    """Refuse images that do not fit into memory; a training holds them twice, once with a border to crop from."""
    needed, there = 2 * images * size * size * 3, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise InputError(
            f"{images:,} images of {size}x{size} need {needed:,} bytes of memory, and this machine has {there:,}; "
            "kdbench keeps all images in memory: take a smaller image_size, or fewer images"
        )


SOURCES: dict[str, Callable[[Path | None, Path], Dataset]] = {
    "digits": _digits,
    "cifar10": _cifar("cifar10"),
    "cifar100": _cifar("cifar100"),
}


class Crops(NamedTuple):
    """One draw of augmentation for n images: offsets into the padded image (n,), and whether to mirror it (n,)."""

    top: Tensor
    left: Tensor
    flip: Tensor

    def batch(self, rows: slice) -> "Crops":
        """Return the draws of one batch."""
        return Crops(self.top[rows], self.left[rows], self.flip[rows])


def draw_crops(n: int, padding: int, flip: bool, generator: torch.Generator) -> Crops:
    """Draw offsets in 0..2 x padding and fair flips for n images (paper, 4.1)."""
    top, left = torch.randint(0, 2 * padding + 1, (2, n), generator=generator)
    coin = torch.randint(0, 2, (n,), generator=generator).bool()
    return Crops(top, left, coin if flip else torch.zeros_like(coin))


def statistics(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation over all pixels of each channel, in 0..1, of uint8 images (N, H, W, 3).

    Raises InputError for a channel that is constant: it cannot be normalised, and nothing can be learned from it.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    shares = torch.stack([torch.bincount(pixels[..., c].flatten(), minlength=256).double() for c in range(3)])
    shares /= pixels[..., 0].numel()
    mean = shares @ values
    std = ((values - mean[:, None]).square() * shares).sum(1).sqrt()
    if (std <= 0).any():
        raise InputError("a colour channel of the images is constant over the whole train split; is the folder right?")
    return mean.float(), std.float()


class Pool:
    """A data set on the device: all images padded once, read by id.

    Images are kept height, width, channel, so that reading a crop is one gather and its result is laid out
    channels-last without a copy.
    """

    def __init__(
        self,
        dataset: Dataset,
        padding: int,
        device: torch.device,
        normalise: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.padding = padding
        self.size = size = dataset.size
        self.padded = F.pad(dataset.pixels, (0, 0, padding, padding, padding, padding)).to(device)
        self.labels = dataset.labels.to(device)
        self.device = device
        self.mean, self.std = normalise or (torch.tensor(_CIFAR10_MEAN), torch.tensor(_CIFAR10_STD))
        # As large as an image: a processor would add three numbers at a time otherwise.
        self._offset = (self.mean * 255).expand(size, size, 3).contiguous().to(device)
        self._scale = (1 / (self.std * 255)).expand(size, size, 3).contiguous().to(device)
        self._span = torch.arange(size, device=device)

    def crop(self, ids: Tensor, crops: Crops) -> Tensor:
        """Return the normalised crops (B, 3, H, W), channels-last, of the images with these ids."""
        rows = crops.top[:, None] + self._span
        across = torch.where(crops.flip[:, None], self.size - 1 - self._span, self._span)
        columns = crops.left[:, None] + across
        side = self.padded.shape[1]
        # One index a pixel, and not three: a processor gathers much faster so.
        pixels = ((ids[:, None] * side + rows) * side)[:, :, None] + columns[:, None, :]
        return self._normalise(self.padded.view(-1, 3).index_select(0, pixels.flatten()).view(*pixels.shape, 3))

    def centre(self, ids: Tensor) -> Tensor:
        """Return the normalised images themselves (B, 3, H, W), channels-last."""
        p = self.padding
        return self._normalise(self.padded[ids, p : p + self.size, p : p + self.size])

    def _normalise(self, pixels: Tensor) -> Tensor:
        return pixels.float().sub_(self._offset).mul_(self._scale).permute(0, 3, 1, 2)
