"""The notebooks of docs/ run, and say what their saved outputs say."""

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def said(notebook):
    """Return the words of each cell's outputs, numbers to two digits: their last ones are a processor's.

    How often a stream was flushed between them is the kernel's affair.
    """
    texts = []
    for cell in notebook.cells:
        words = []
        for output in cell.get("outputs", ()):
            assert output.output_type != "error", output
            text = output.get("text") or output.get("data", {}).get("text/plain", "")
            text = re.sub(r"\x1b\[[0-9;]*m", "", text)
            words += re.sub(r"\d+\.\d+", lambda found: f"{float(found[0]):.2f}", text).split()
        if words:
            texts.append(words)
    return texts


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_says_what_it_said(path, monkeypatch):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("COLUMNS", "100")
    notebook = nbformat.read(path, as_version=4)
    saved = said(notebook)
    made = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FOLDER)}}).execute()
    assert len(saved) >= 3 and said(made) == saved


def test_a_finding_names_the_cell():
    (audit,) = (path for path in NOTEBOOKS if path.stem == "audit-a-loop")
    words = [word for text in said(nbformat.read(audit, as_version=4)) for word in text]
    assert "In[3]:9" in words and "KD312" in words and not any("ipykernel" in word for word in words)
