"""How a place is named: a file beside the working folder, a cell of a notebook, and nothing else by guess."""

import sys
from types import SimpleNamespace

from kdbench.audits.places import is_cell, shown


def test_a_file_is_relative_where_it_can_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shown(str(tmp_path / "a" / "train.py")) == "a/train.py"
    assert shown("/elsewhere/train.py") == "/elsewhere/train.py"


def test_a_cell_is_named_as_ipython_does(monkeypatch):
    compile_ = SimpleNamespace(format_code_name=lambda name: ("Cell", "In[7]") if "123" in name else None)
    shell = SimpleNamespace(get_ipython=lambda: SimpleNamespace(compile=compile_))
    monkeypatch.setitem(sys.modules, "IPython", shell)
    assert shown("/tmp/ipykernel_9/123.py") == "Cell In[7]" == shown("<ipython-input-123>")
    assert shown("/tmp/ipykernel_9/4.py") == "/tmp/ipykernel_9/4.py", "not a cell of this shell"
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert shown("/tmp/ipykernel_9/123.py") == "/tmp/ipykernel_9/123.py"
    assert is_cell("<ipython-input-1>") and not is_cell("<string>") and not is_cell("/code/train.py")
