"""Names from somebody's file do nothing to a terminal or a page; images are opened as images only."""

import json
import os

import pytest
from PIL import Image
from test_cli import kdbench
from test_report import write

from kdbench.harness.cli.common import SafeConsole
from kdbench.harness.options import one_line
from kdbench.harness.publish import report
from kdbench.kd import data
from kdbench.kd.errors import InputError

EVIL = "kd\x1b]0;title\x07[bold]\nCode clean"
SHOWN = r"kd\x1b]0;title\x07[bold]\nCode clean"


def test_a_groups_name_sets_no_title_and_forges_no_line(tmp_path):
    rows = [f'"{name}",{seed},{70 + seed}' for name in ("plain", EVIL) for seed in range(3)]
    (tmp_path / "runs.csv").write_text("\n".join(["m,s,acc", *rows]))
    words = ["compare", "--csv", tmp_path / "runs.csv", "--group", "m", "--baseline", "plain", "--seed", "s"]
    code, out, err = kdbench(*words, "--metric", "acc", "--margin", "1")
    assert code == 0 and not {"\x1b", "\x07"} & set(out + err)
    assert "Code clean" not in [line.strip() for line in out.splitlines()]
    assert SHOWN in out.replace("\n", ""), out
    code, out, _ = kdbench(*words, "--metric", "acc", "--margin", "1", "--json")
    assert json.loads(out)["comparisons"][0]["b"] == EVIL, "a program gets the name as it is"


def test_ordinary_names_are_shown_as_they_are(capsys):
    for name in ("Logit-KD", "тест, 試験", "a [b] <c>", "naïve\u0301"):
        assert one_line(name) == name
        SafeConsole(width=80).print(name, markup=False)
        assert capsys.readouterr().out == f"{name}\n"


def test_a_consoles_own_styles_still_work(capsys):
    SafeConsole(force_terminal=True, width=80, highlight=False).print("[bold]a[/]")
    assert capsys.readouterr().out == "\x1b[1ma\x1b[0m\n"
    SafeConsole(force_terminal=True, width=80, highlight=False).print("a\x1b[2Jb\x9b")
    assert capsys.readouterr().out == "a\\x1b[2Jb\\x9b\n"


def test_a_name_makes_no_cell_no_link_and_no_html_of_a_page(tmp_path):
    study = write(tmp_path)
    found = report.read(study)
    found["about"] = {"device": "a | b <script>x</script> [c](http://d)\n# e \x1b]0;"}
    text = report.markdown(found)
    assert r"a \| b &lt;script>x&lt;/script> [c\](http://d) # e \x1b]0;" in text
    page = report.html(found, {})
    assert "<script>x" not in page and "\x1b" not in page and r"\x1b]0;" in page
    plain = report.markdown(report.read(study))
    assert "| r34-r18 | Logit-KD | corrected against baseline" not in plain and "| r34-r18 |" in plain


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n(x) show\n%%EOF\n"


def a_picture_of_another_kind(path):
    path.write_bytes(EPS)


def a_pipe(path):
    path.unlink()
    os.mkfifo(path)


def a_link_to_itself(path):
    path.unlink()
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (a_picture_of_another_kind, "cannot be read as an image"),
        (a_pipe, "is no file that can be read"),
        (a_link_to_itself, "is no file that can be read"),
    ],
)
def test_what_is_no_image_is_refused_and_opened_by_no_other_program(spoil, says, tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: pytest.fail("Ghostscript was called"))
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            Image.new("RGB", (32, 32), "red").save(tmp_path / "pets" / part / name / "0.png")
    spoil(tmp_path / "pets" / "train" / "dog" / "0.png")
    with pytest.raises(InputError, match=says):
        data.prepare("folder", tmp_path / "pets", tmp_path / "cache")


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "tif", "webp", "ppm"])
def test_the_formats_that_are_meant_are_read(kind, tmp_path):
    Image.new("RGB", (32, 32), (200, 200, 200)).save(tmp_path / f"a.{kind}")
    pixels, came = data._decode(tmp_path / f"a.{kind}", 32)
    assert pixels.shape == (32, 32, 3) and came == (32, 32)
