"""Data sets become the same tensors every time, and what cannot be used is named."""

import pickle
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import write_images
from PIL import Image

from kdbench.harness.options import told
from kdbench.kd import data
from kdbench.kd.data import SIZE, Crops, Pool
from kdbench.kd.errors import InputError


def test_digits_are_real_and_whole(digits):
    assert digits.pixels.shape == (1797, 32, 32, 3) and digits.pixels.dtype == torch.uint8
    assert digits.n_train == 520 and len(digits.test_ids) == 1277
    assert torch.bincount(digits.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert (digits.pixels[..., 0] == digits.pixels[..., 2]).all()


def test_folder_reads_pixels_labels_and_parts(tmp_path, cache):
    root = write_images(tmp_path / "pets")
    found = data.load_file(data.prepare("folder", root, cache))
    assert found.name == "folder-pets" and found.classes == ("cat", "dog") and found.n_train == 6
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 1, 1]
    want = np.asarray(Image.open(root / "test" / "dog" / "0.png"))
    assert np.array_equal(found.pixels[8].numpy(), want)


def test_a_folder_is_decoded_once_and_again_when_it_changes(tmp_path, cache, monkeypatch):
    root = write_images(tmp_path / "pets2")
    first = data.prepare("folder", root, cache)
    with monkeypatch.context() as patch:
        patch.setattr(data, "_decode", lambda path, size: pytest.fail("decoded again"))
        assert data.prepare("folder", root, cache) == first
    Image.new("RGB", (32, 32), "red").save(root / "train" / "cat" / "9.png")
    second = data.prepare("folder", root, cache)
    assert second != first and data.load_file(second).digest != data.load_file(first).digest


def test_images_of_another_size_are_resized(tmp_path, cache):
    root = write_images(tmp_path / "pets3")
    Image.new("L", (50, 40), 200).save(root / "test" / "cat" / "0.png")
    found = data.load_file(data.prepare("folder", root, cache))
    assert found.pixels.shape[1:] == (SIZE, SIZE, 3) and (found.pixels[6] == 200).all()


def test_a_folder_keeps_the_size_that_is_asked_for_and_says_what_was_resized(tmp_path, cache):
    root = write_images(tmp_path / "pets4")
    for path in root.rglob("*.png"):
        Image.open(path).resize((48, 48)).save(path)
    small, large = (data.load_file(data.prepare("folder", root, cache, size)) for size in (32, 48))
    assert (small.size, large.size) == (32, 48) and small.digest != large.digest
    assert (small.name, large.name) == ("folder-pets4", "folder-pets4@48px")
    assert small.resized == "10 of 10 images came in 48x48 and are resized to 32x32" and large.resized == ""
    want = np.asarray(Image.open(root / "test" / "dog" / "0.png"))
    assert np.array_equal(large.pixels[8].numpy(), want)
    Image.new("RGB", (20, 60)).save(root / "test" / "dog" / "0.png")
    mixed = data.load_file(data.prepare("folder", root, cache))
    assert mixed.resized == "10 of 10 images came in 2 sizes, most often 48x48 and are resized to 32x32"


def test_crops_of_larger_images_are_cut_from_them(tmp_path, cache):
    root = write_images(tmp_path / "pets5")
    for path in root.rglob("*.png"):
        Image.open(path).resize((40, 40)).save(path)
    found = data.load_file(data.prepare("folder", root, cache, 40))
    pool = Pool(found, 2, torch.device("cpu"), (torch.zeros(3), torch.ones(3)))
    ids = torch.tensor([3, 7])
    still = Crops(torch.tensor([2, 2]), torch.tensor([2, 2]), torch.tensor([False, True]))
    want = found.pixels[ids].permute(0, 3, 1, 2) / 255
    seen = pool.crop(ids, still)
    assert (
        seen.shape == (2, 3, 40, 40) and torch.allclose(seen[0], want[0]) and torch.allclose(seen[1].flip(2), want[1])
    )
    assert torch.allclose(pool.centre(ids), want)


def test_the_size_stands_in_the_name_of_a_folder_where_it_is_another(tmp_path):
    assert data.size_in(data.folder_name(tmp_path / "a", 64)) == 64
    assert data.size_in(data.folder_name(tmp_path / "a", 32)) == 32
    assert data.size_in(data.folder_name(tmp_path / "a@64px", 32)) == 32  # a folder may be called so
    assert data.size_in("cifar10") == 32


def test_only_a_folders_images_are_resized(cache):
    with pytest.raises(InputError, match="the images of digits are 32x32; only a folder's are resized"):
        data.prepare("digits", None, cache, 64)


def test_images_that_do_not_fit_into_memory_are_refused_with_their_bytes(tmp_path, cache, monkeypatch):
    root = write_images(tmp_path / "pets6")
    monkeypatch.setattr(data.os, "sysconf", {"SC_PHYS_PAGES": 10, "SC_PAGE_SIZE": 4096}.get)
    with pytest.raises(InputError, match="10 images of 32x32 need 61,440 bytes of memory, and this machine has 40,960"):
        data.prepare("folder", root, cache)


def spoil_missing_part(root):
    shutil.rmtree(root / "test")


def spoil_no_images(root):
    for path in (root / "train").rglob("*.png"):
        path.rename(path.with_suffix(".txt"))


def spoil_one_class(root):
    for part in ("train", "test"):
        shutil.rmtree(root / part / "dog")


def spoil_empty_class(root):
    for path in (root / "test" / "dog").iterdir():
        path.unlink()


def spoil_other_classes(root):
    (root / "test" / "dog").rename(root / "test" / "wolf")


def spoil_unreadable(root):
    (root / "train" / "dog" / "1.png").write_bytes(b"\x89PNG no more")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (shutil.rmtree, "does not exist"),
        (spoil_missing_part, "has no test/"),
        (spoil_no_images, "holds no images"),
        (spoil_one_class, "has one class, cat"),
        (spoil_empty_class, "test/dog holds no images"),
        (spoil_other_classes, "only in one of them: dog, wolf"),
        (spoil_unreadable, "train/dog/1.png cannot be read as an image"),
    ],
)
def test_a_folder_that_is_no_data_set_is_refused_by_name(spoil, says, tmp_path, cache):
    root = write_images(tmp_path / "spoiled")
    spoil(root)
    before = set(cache.rglob("*"))
    with pytest.raises(InputError, match=says):
        data.prepare("folder", root, cache)
    assert set(cache.rglob("*")) == before


def test_cifar_without_network_says_what_is_missing_and_where_it_belongs(tmp_path, monkeypatch):
    from torchvision import datasets

    def no_network(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(datasets.CIFAR10, "download", no_network)
    with pytest.raises(InputError) as caught:
        data.prepare("cifar10", tmp_path / "here", tmp_path)
    for part in ("cifar-10-python.tar.gz", "https://", str(tmp_path / "here")):
        assert part in str(caught.value)
    assert told(caught.value).endswith("(--data DIR)")


def test_cifar_archives_become_the_same_kind_of_tensors(tmp_path, monkeypatch):
    """Archives of CIFAR-10's own layout, with three images in each batch."""
    from torchvision import datasets
    from torchvision.datasets.utils import calculate_md5

    root = tmp_path / "cifar-10-batches-py"
    root.mkdir()
    rng = np.random.default_rng(0)
    batches = {}
    for name, _ in datasets.CIFAR10.train_list + datasets.CIFAR10.test_list:
        batches[name] = rng.integers(0, 256, (3, 3072), dtype=np.uint8)
        (root / name).write_bytes(pickle.dumps({"data": batches[name], "labels": [2, 0, 9]}))
    classes = [f"class {i}" for i in range(10)]
    (root / "batches.meta").write_bytes(pickle.dumps({"label_names": classes}))
    meta = {**datasets.CIFAR10.meta, "md5": calculate_md5(root / "batches.meta")}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    found = data.load_file(data.prepare("cifar10", tmp_path, tmp_path / "cache"))
    assert (found.name, found.n_train, len(found.test_ids)) == ("cifar10", 15, 3)
    assert found.classes == tuple(classes) and found.labels.tolist() == [2, 0, 9] * 6
    want = batches["test_batch"][1].reshape(3, 32, 32).transpose(1, 2, 0)
    assert np.array_equal(found.pixels[16].numpy(), want)


def test_unknown_data_set_names_the_nearest(tmp_path):
    with pytest.raises(InputError, match="did you mean 'digits'"):
        data.prepare("digit", None, tmp_path)


def test_a_spoiled_cache_file_says_how_to_mend_it(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="delete it"):
        data.load_file(tmp_path / "x.safetensors")


@pytest.mark.parametrize("flip", [False, True])
def test_crop_is_pad_and_slice_and_flip(digits, flip):
    statistics = data.statistics(digits.pixels[:520])
    pool = Pool(digits, 4, torch.device("cpu"), statistics)
    ids = torch.tensor([3, 700, 1500])
    crops = Crops(torch.tensor([0, 8, 3]), torch.tensor([5, 0, 4]), torch.tensor([flip] * 3))
    found = pool.crop(ids, crops)
    assert found.is_contiguous(memory_format=torch.channels_last)
    for row, (i, top, left) in enumerate(zip(ids, crops.top, crops.left, strict=True)):
        padded = F.pad(digits.pixels[i].permute(2, 0, 1), (4, 4, 4, 4)).float() / 255
        want = (padded[:, top : top + 32, left : left + 32] - statistics[0][:, None, None]) / statistics[1][
            :, None, None
        ]
        torch.testing.assert_close(found[row], want.flip(2) if flip else want, atol=1e-5, rtol=1e-5)


def test_centre_is_the_image_itself_and_statistics_normalise(digits):
    pool = Pool(digits, 2, torch.device("cpu"), data.statistics(digits.pixels))
    images = pool.centre(torch.arange(len(digits.labels)))
    assert images.mean().abs() < 1e-4 and (images.std() - 1).abs() < 1e-3
    middle = Crops(*(torch.full((4,), v) for v in (2, 2, False)))
    assert torch.equal(pool.crop(torch.arange(4), middle), images[:4])


def test_statistics_are_those_of_all_pixels(digits):
    flat = digits.pixels[:520].reshape(-1, 3).double() / 255
    mean, std = data.statistics(digits.pixels[:520])
    torch.testing.assert_close(mean, flat.mean(0).float())
    torch.testing.assert_close(std, flat.std(0, correction=0).float())


def test_only_the_train_split_normalises(digits, prepare):
    training = prepare()
    want = data.statistics(digits.pixels[training.split.train])
    assert torch.equal(training.pool.mean, want[0]) and torch.equal(training.pool.std, want[1])


def test_draws_cover_their_range_evenly():
    crops = data.draw_crops(20_000, 2, True, torch.Generator().manual_seed(0))
    for offsets in (crops.top, crops.left):
        counts = torch.bincount(offsets)
        assert len(counts) == 5 and counts.min() > 3_700
    assert 9_700 < crops.flip.sum() < 10_300
    assert not data.draw_crops(100, 2, False, torch.Generator().manual_seed(0)).flip.any()
