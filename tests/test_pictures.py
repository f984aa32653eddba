"""The pictures of README are made from the program, in SVG that needs nothing from elsewhere."""

import re
import sys

from click.testing import CliRunner

from studies import pictures


def test_a_terminals_picture_holds_what_was_printed_and_fetches_nothing(tmp_path):
    done = CliRunner().invoke(pictures.main, ["terminal", str(tmp_path / "deep" / "out.svg"), "--", "--version"])
    assert done.exit_code == 0, done.output
    svg = (tmp_path / "deep" / "out.svg").read_text()
    words = " ".join(re.sub("<[^>]*>", " ", svg).replace("&#160;", " ").split())
    assert "$ kdbench --version" in words and re.search(r"version \d+\.\d+", words)
    assert "url(http" not in svg and "@import" not in svg and "src:" not in svg


def test_what_a_terminal_wipes_out_again_is_not_in_its_picture():
    program = r"import shutil; print('working', end='\r\x1b[2K'); print('\x1b[31mred\x1b[0m')"
    program += "; print(shutil.get_terminal_size()[0])"
    printed = pictures._on_a_terminal([sys.executable, "-c", program], 50)
    assert printed == "\x1b[31mred\x1b[0m\n50"
