"""A teacher is loaded whole or not at all."""

import pytest
import torch

from kdbench.kd.errors import InputError
from kdbench.kd.models import build
from kdbench.kd.models.resnet import ResNet
from kdbench.kd.teacher import file_sha256, load_strict, read_checkpoint, save_checkpoint


@pytest.fixture
def net():
    return build("r18", "cifar", 10, 4, torch.Generator().manual_seed(0))


@pytest.fixture
def checkpoint(net, tmp_path):
    path = tmp_path / "teacher.safetensors"
    save_checkpoint(net, path)
    return path


def fresh():
    return build("r18", "cifar", 10, 4, torch.Generator().manual_seed(1))


def test_every_tensor_comes_from_the_file(net, checkpoint):
    other = fresh()
    provenance = load_strict(other, checkpoint, file_sha256(checkpoint))
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))
    assert (provenance.file, provenance.loaded_fraction) == ("teacher.safetensors", 1.0)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_pt_file_of_plain_weights_is_read(net, tmp_path, key):
    """As Lightning and as RepDistiller and mdistiller write it."""
    torch.save({key: net.state_dict(), "epoch": 3}, tmp_path / "t.pt")
    load_strict(fresh(), tmp_path / "t.pt")


def assert_refused(path, says, sha256=None, model=None):
    model = model or fresh()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=says) as caught:
        load_strict(model, path, sha256)
    assert isinstance(caught.value, InputError) and str(path) in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "partly loaded before it was refused"


def test_a_missing_file_is_refused_with_the_mend(tmp_path):
    assert_refused(tmp_path / "none.safetensors", "does not exist; train it")


def test_a_truncated_file_is_refused(checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    assert_refused(checkpoint, "truncated")


def test_a_truncated_pt_file_is_refused(net, tmp_path):
    torch.save(net.state_dict(), tmp_path / "t.pt")
    (tmp_path / "t.pt").write_bytes((tmp_path / "t.pt").read_bytes()[:4000])
    assert_refused(tmp_path / "t.pt", "truncated")


@pytest.mark.parametrize("content", [b"", b"Repository not found", bytes(range(256)), b"PK\x03\x04"])
@pytest.mark.parametrize("name", ["t.pt", "t.safetensors", "t"])
def test_bytes_that_are_no_checkpoint_are_refused(content, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert_refused(tmp_path / name, "truncated or not a checkpoint|is cut off")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_legacy_file_cut_off_anywhere_is_refused(net, tmp_path, share):
    torch.save(net.state_dict(), tmp_path / "t.pt", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "t.pt").read_bytes()
    (tmp_path / "t.pt").write_bytes(whole[: int(share * len(whole))])
    assert_refused(tmp_path / "t.pt", "truncated or not a checkpoint|is cut off")


def test_a_file_that_could_run_code_is_not_read(net, tmp_path):
    torch.save(net, tmp_path / "whole.pt")
    assert_refused(tmp_path / "whole.pt", "could run code")


def test_another_architecture_is_refused(checkpoint):
    assert_refused(checkpoint, "not of this architecture: .*missing", model=ResNet("r34", "cifar", 10, 4))
    assert_refused(checkpoint, "of another shape", model=ResNet("r18", "imagenet", 10, 4))


def test_a_lost_tensor_is_refused(net, tmp_path):
    state = net.state_dict()
    del state["layer3.0.conv1.weight"]
    torch.save(state, tmp_path / "t.pt")
    assert_refused(tmp_path / "t.pt", r"1 tensors missing \(layer3.0.conv1.weight\)")


def test_another_hash_is_refused(checkpoint):
    assert_refused(checkpoint, "not the 00ff", sha256="00ff")


def test_something_else_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "t.pt")
    with pytest.raises(InputError, match="holds no state dict"):
        read_checkpoint(tmp_path / "t.pt")
