"""The lists by which tests are ordered and chosen name files that are there."""

from pathlib import Path

import pytest
from conftest import FIRST, STILL


@pytest.mark.parametrize("name", [*FIRST, *STILL])
def test_a_file_that_is_listed_is_there(name):
    assert list(Path(__file__).parent.rglob(name)), f"no test file is called {name} any more; see tests/conftest.py"
