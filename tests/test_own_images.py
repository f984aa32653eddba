"""A newcomer's way: images of 64x64 in a folder, networks of torchvision, stages paired by hand, and a report."""

import json

import pytest
import torch
from PIL import Image
from test_cli import kdbench

from kdbench.harness.records.record import StudyFolder

PAIR = "torchvision:resnet18-torchvision:mobilenet_v3_small"
STUDY = f"""
[study]
dataset = "folder"
data = "shapes"
image_size = 64
pairs = ["{PAIR}"]
methods = ["logit", "at"]
arms = ["corrected"]
seeds = "0-0"

[recipe]
epochs = 2
batch_size = 16
train_size = 48
val_size = 16
crop_padding = 4

[method.logit]
ce_weight = 0.3
kd_weight = 0.7

[pair."{PAIR}"]
stages = "1-2, 2-3, 3-4"
"""


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    """Bright squares at the left and at the right, of 64x64, in a folder of their own."""
    rng = torch.Generator().manual_seed(0)
    for part, count in (("train", 32), ("test", 12)):
        for side in ("left", "right"):
            (tmp_path / "shapes" / part / side).mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 90, (64, 64, 3), generator=rng, dtype=torch.uint8)
                at = int(torch.randint(0, 12, (), generator=rng)) + (0 if side == "left" else 32)
                pixels[20:44, at : at + 20] += 150
                Image.fromarray(pixels.numpy()).save(tmp_path / "shapes" / part / side / f"{number}.png")
    (tmp_path / "study.toml").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_dry_run_shows_the_stages_and_what_is_resized(shapes):
    code, _, err = kdbench("run", "study.toml", "--no-controls", "--dry-run")
    said = " ".join(err.split())
    assert code == 0 and "resized" not in said, err
    assert "1 (64x16x16) with 2 (72x16x16), 2 (128x8x8) with 3" in said
    code, _, err = kdbench("run", "study.toml", "--no-controls", "--dry-run", "--image-size", "48")
    assert code == 0 and "88 of 88 images came in 64x64 and are resized to 48x48" in " ".join(err.split())


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "1-2, 2-3, 3-4",
            "1-2, 2-3, 3-9",
            "asks for stage 9 of torchvision:mobilenet_v3_small, which has 5: 1 16x32x32",
        ),
        ("1-2, 2-3, 3-4", "2-1, 1-2", "write the teacher's stage and the student's"),
        ("image_size = 64", "image_size = 4", "must be a number of pixels from 8 to 1024"),
        ('dataset = "folder"\ndata = "shapes"', 'dataset = "digits"', "only a folder's are resized"),
    ],
)
def test_sizes_and_stages_that_cannot_be_are_refused(shapes, old, new, says):
    assert old in STUDY
    (shapes / "study.toml").write_text(STUDY.replace(old, new))
    code, _, err = kdbench("run", "study.toml", "--dry-run")
    assert code == 2 and says in " ".join(err.split()) and "Traceback" not in err


@pytest.mark.long
def test_from_a_folder_of_images_to_a_report(shapes):
    code, out, err = kdbench("run", "study.toml", "--no-controls", "--json")
    found = json.loads(out)
    assert code == 1 and found["failed"] == 0 and found["trained"] == 3, err
    # torchvision's ResNet has a stem for large images, and 64x64 are small: said, and nothing else.
    assert {tuple(arm["failed_findings"]) for arm in found["arms"]} == {("KD105",)}
    (study,) = (path.parent for path in (shapes / "runs").glob("*/study.json"))
    specs = {folder.spec().method: folder.spec() for folder in StudyFolder(study).trials()}
    assert (specs["logit"].stages, specs["at"].stages) == (None, "1-2, 2-3, 3-4")
    assert {spec.dataset for spec in specs.values()} == {"folder-shapes@64px"}
    assert json.loads(kdbench("run", "study.toml", "--no-controls", "--json")[1])["trained"] == 0
    code, _, err = kdbench("report", "--output", "page")
    assert code == 0, err
    page = (shapes / "page" / "report.html").read_text(encoding="utf-8")
    assert "folder-shapes@64px" in page and "mobilenet_v3_small" in page
