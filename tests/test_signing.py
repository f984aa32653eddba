"""Archives that are signed by a key of OpenSSH, and the bill of materials in them; nothing is trained here."""

import json
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
from test_cli import kdbench

from kdbench.harness.archive import unpacking
from kdbench.harness.archive.bom import bill_of_materials
from kdbench.harness.records.environment import installed

EARLIER = Path(__file__).with_name("earlier")

needs_ssh = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A runs folder with a finished study, and an archive of it."""
    place = tmp_path_factory.mktemp("signing")
    with tarfile.open(EARLIER / "records.tar.xz") as archive:
        unpacking.extract(archive, EARLIER / "records.tar.xz", place / "runs")
    code, _, err = kdbench("bundle", "--runs", place / "runs", "--output", place / "it.zip")
    assert code == 0, err
    return place


@pytest.fixture(scope="module")
def keys(place):
    """Two keys, of which one signed the archive."""
    for name in ("alice", "bob"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", place / name], check=True)
    signed = ("bundle", "--runs", place / "runs", "--output", place / "it.zip", "--sign", place / "alice")
    for _ in range(2):  # a second time no question is asked
        code, out, err = kdbench(*signed)
        assert code == 0 and "it.zip.sig: its signature" in out, err
    return place


@needs_ssh
def test_who_signed_an_archive_is_said(keys, capsys):
    print_of = subprocess.run(["ssh-keygen", "-l", "-f", keys / "alice.pub"], capture_output=True, text=True).stdout
    code, out, err = kdbench("verify", keys / "it.zip", "--signed-by", keys / "alice.pub")
    assert code == 0 and f"signed by {print_of.split()[1]}" in out and "as it was written" in out, (out, err)
    both = keys / "both.pub"
    both.write_text("# the group\n" + (keys / "bob.pub").read_text() + (keys / "alice.pub").read_text())
    code, out, _ = kdbench("verify", keys / "it.zip", "--signed-by", both, "--json")
    assert code == 0 and json.loads(out)["signed_by"] == print_of.split()[1]
    assert kdbench("verify", keys / "it.zip")[0] == 0


@needs_ssh
@pytest.mark.parametrize("command", ["verify", "reproduce"])
def test_what_another_signed_or_changed_is_refused(keys, tmp_path, command):
    more = ["--runs", tmp_path / "runs"] if command == "reproduce" else []

    def refused(archive, by, says):
        code, _, err = kdbench(command, archive, "--signed-by", by, *more)
        assert code == 2 and says in " ".join(err.split()), err

    refused(keys / "it.zip", keys / "bob.pub", "was not signed by a key in")
    changed = tmp_path / "it.zip"
    changed.write_bytes((keys / "it.zip").read_bytes() + b"\0")
    refused(changed, keys / "alice.pub", "is not signed: there is no it.zip.sig beside it")
    shutil.copy(keys / "it.zip.sig", tmp_path)
    refused(changed, keys / "alice.pub", "was not signed by a key in")
    (tmp_path / "it.zip.sig").write_text("-----BEGIN SSH SIGNATURE-----\nAAAA\n")
    refused(changed, keys / "alice.pub", "was not signed by a key in")
    refused(keys / "it.zip", keys / "alice", "is a private key; name the public one, alice.pub")
    (tmp_path / "odd.pub").write_text('* namespaces="file" ssh-ed25519 AAAA\n')
    refused(keys / "it.zip", tmp_path / "odd.pub", "is no public key of OpenSSH")
    assert not (tmp_path / "runs").exists()


@needs_ssh
def test_a_signature_for_something_else_does_not_count(keys, tmp_path):
    shutil.copy(keys / "it.zip", tmp_path)
    subprocess.run(
        ["ssh-keygen", "-q", "-Y", "sign", "-f", keys / "alice", "-n", "git", tmp_path / "it.zip"], check=True
    )
    code, _, err = kdbench("verify", tmp_path / "it.zip", "--signed-by", keys / "alice.pub")
    assert code == 2 and "was not signed by a key in" in err


@needs_ssh
def test_a_key_that_cannot_sign_is_said(place, tmp_path):
    packed = ("bundle", "--runs", place / "runs", "--output", tmp_path / "it.zip", "--sign")
    code, _, err = kdbench(*packed, tmp_path / "none")
    assert code == 2 and "none does not exist" in err and "ssh-keygen -t ed25519 makes one" in err
    (tmp_path / "odd").write_text("no key")
    code, _, err = kdbench(*packed, tmp_path / "odd")
    assert code == 2 and "ssh-keygen signed nothing" in err


def test_without_ssh_keygen_the_option_says_what_is_missing(place, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    code, _, err = kdbench("verify", place / "it.zip", "--signed-by", tmp_path / "alice.pub")
    assert code == 2 and "--signed-by needs ssh-keygen" in err and "install OpenSSH" in err
    code, _, err = kdbench("bundle", "--runs", place / "runs", "--output", tmp_path / "a.zip", "--sign", "key")
    assert code == 2 and "--sign needs ssh-keygen" in err


def test_options_of_archives_and_of_studies_do_not_mix(place):
    code, _, err = kdbench("verify", "--signed-by", "alice.pub")
    assert code == 2 and "--signed-by goes with an archive" in err
    code, _, err = kdbench("verify", place / "it.zip", "--runs", place / "runs")
    assert code == 2 and "--runs goes with studies of a runs folder" in err
    code, _, err = kdbench("verify", place / "none.zip")
    assert code == 2 and "none.zip does not exist" in err


def test_an_archive_holds_a_bill_of_materials(place):
    with zipfile.ZipFile(place / "it.zip") as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/bom.json"))
        bill = json.loads(archive.read(name))
    assert (bill["bomFormat"], bill["specVersion"], bill["version"]) == ("CycloneDX", "1.5", 1)
    by_name = {one["name"]: one for one in bill["components"]}
    assert {name: one["version"] for name, one in by_name.items()} == installed()
    torch = by_name["torch"]
    assert torch["purl"] == f"pkg:pypi/torch@{torch['version']}" and torch["type"] == "library" and torch["licenses"]
    refs = {one["bom-ref"] for one in bill["components"]}
    depends = {one["ref"]: one["dependsOn"] for one in bill["dependencies"]}
    assert depends.keys() - {bill["metadata"]["component"]["bom-ref"]} == refs
    assert all(ref in refs for needs in depends.values() for ref in needs)
    assert torch["bom-ref"] in depends[by_name["kdbench"]["bom-ref"]]
    assert bill == bill_of_materials(installed(), bill["metadata"]["component"]["name"]), "equal studies, equal bytes"
