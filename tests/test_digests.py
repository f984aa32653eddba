"""Digests of code: a formula that changed is noticed, a docstring, a comment or a line break is not."""

import importlib.util
from pathlib import Path

import pytest
from conftest import put_back

from kdbench.harness import faults, loading
from kdbench.harness.records import digests, environment

CODE = '''
"""What it is for."""
import math

LIMIT = 3
"What no more is than this."


class Net:
    """A net."""

    def forward(self, x, scale=2.0):
        """Return it."""
        y = x * scale  # twice
        return f"{y:.2f} of {math.pi}", (y, x)
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""What it is for."""', '"""Another purpose, told\nat length."""'),
        ('"What no more is than this."', ""),
        ('        """Return it."""\n', ""),
        ("  # twice", ""),
        ("  # twice", "  # once\n        # or more"),
        ("(self, x, scale=2.0)", "(\n        self,\n        x,\n        scale=2.0,\n    )"),
        ("x * scale", "(x\n             * scale)"),
        ('f"{y:.2f} of {math.pi}"', "f'{y:.2f} of {math.pi}'"),
        ("\n\n\nclass", "\n\n\n\n\nclass"),
        ("2.0", "2.00"),
    ],
)
def test_what_is_not_code_does_not_count(old, new):
    assert digests.digest({"a.py": CODE.replace(old, new)}) == digests.digest({"a.py": CODE}) and old in CODE


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x * scale", "x / scale"),
        ("x * scale", "scale * x"),
        ("2.0", "2"),
        ("2.0", "2.5"),
        ("LIMIT = 3", "LIMIT = 4"),
        ("(y, x)", "(x, y)"),
        ("(y, x)", "(y,)"),
        (":.2f", ":.3f"),
        (" of {", " to {"),
        ("import math", "import cmath as math"),
        ("        y = x", "        x = x + 0\n        y = x"),
    ],
)
def test_a_changed_formula_is_noticed(old, new):
    assert digests.digest({"a.py": CODE.replace(old, new)}) != digests.digest({"a.py": CODE}) and old in CODE


def test_a_file_under_another_name_is_another():
    assert digests.digest({"a.py": CODE}) != digests.digest({"b.py": CODE})
    assert digests.digest({"a.py": CODE, "b.py": ""}) == digests.digest({"b.py": "# nothing\n", "a.py": CODE})


def test_a_source_without_a_comment_is_left_as_it_is_to_the_byte():
    text = 'def f(a):\n    b = "#"  \n\n    return a\n\n'
    assert digests.without_comments(text) == text
    commented = "def f(a):\n    # why\n    b = a  # and how\n\n    return b\n"
    assert digests.without_comments(commented) == "def f(a):\n    b = a\n\n    return b\n"


@pytest.mark.parametrize("quoted", ['"""A story."""', "'A story.'", 'r"""A \\d story."""', '"""Über\n    zwei."""'])
def test_a_docstring_of_any_quotes_is_taken_out(quoted):
    assert digests.without_docstring(f"def f(a):\n    {quoted}\n    return a\n") == "def f(a):\n    return a\n"
    assert digests.without_docstring("def f(a):\n    return '''a'''\n") == "def f(a):\n    return '''a'''\n"


HERE = Path(environment.__file__).relative_to(environment.ROOT).as_posix()
TRIAL = next(place for place in environment._TRAINING if not place.startswith("kd/"))
LAWS = next(place for place in environment._AUDITS if not place.startswith("audits/"))


def loaded(root: Path):
    """Return kdbench.harness.records.environment as it would be imported from another checkout."""
    spec = importlib.util.spec_from_file_location("loaded_afresh", root / HERE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path):
    """A copy of the sources that digests are made of."""
    for place in (*environment._TRAINING, *environment._AUDITS, HERE):
        target = tmp_path / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((environment.ROOT / place).read_bytes())
    return tmp_path


def edit(root, place, old, new):
    text = (root / place).read_text()
    assert old in text
    (root / place).write_text(text.replace(old, new))


def told(root):
    module = loaded(root)
    return module.code_digest(), module.method_digest("logit"), module.method_digest("feature"), module.audits_digest()


NOW = environment.code_digest(), *map(environment.method_digest, ("logit", "feature")), environment.audits_digest()


def test_a_checkout_with_other_words_has_the_same_digests(checkout):
    assert told(checkout) == NOW
    edit(checkout, "kd/train.py", '"""The ', '"""In other words, the ')
    edit(checkout, "kd/methods/logit.py", "\n\n@method", "\n\n# a comment\n\n@method")
    edit(checkout, "audits/finding.py", '"""A ', '"""In other words, a ')
    assert told(checkout) == NOW


@pytest.mark.parametrize(
    ("place", "changed"),
    [
        ("kd/train.py", 0),
        ("kd/procedure.py", 0),
        ("kd/methods/__init__.py", 0),
        (TRIAL, 0),
        ("kd/methods/logit.py", 1),
        ("kd/methods/feature.py", 2),
        ("audits/finding.py", 3),
        (LAWS, 3),
    ],
)
def test_each_digest_is_of_its_own_sources(checkout, place, changed):
    (checkout / place).write_text((checkout / place).read_text() + "\nMORE = 1\n")
    assert [old != new for old, new in zip(NOW, told(checkout), strict=True)] == [i == changed for i in range(4)]


def test_another_method_or_fault_changes_no_digest_of_a_trial(checkout):
    (checkout / "kd" / "methods" / "another.py").write_text("WEIGHT = 1\n")
    (checkout / "harness" / "faults").mkdir(exist_ok=True)
    (checkout / "harness" / "faults" / "another.py").write_text("WEIGHT = 1\n")
    assert told(checkout) == NOW
    assert loaded(checkout).method_digest("another") != loaded(checkout).method_digest("no such file") is None


def test_a_source_that_is_not_there_is_an_error_and_not_an_empty_one(checkout):
    (checkout / LAWS).unlink()
    with pytest.raises(FileNotFoundError):
        loaded(checkout)


def test_a_digest_is_of_what_was_imported_and_not_of_what_the_files_became(checkout):
    module = loaded(checkout)
    (checkout / "kd" / "train.py").write_text("EMPTY = 1\n")
    assert module.code_digest() == NOW[0]


FAULT = '''
from kdbench.harness.faults import fault
@fault("stem", caught_by=["stem-resolution"])
def other_stem(input_size):
    """A story."""
    return "imagenet"
'''


@pytest.fixture
def no_faults(monkeypatch):
    """An empty registry of faults, for as long as a test lasts."""
    monkeypatch.setattr(loading, "LOADED", [])
    with put_back(faults.FAULTS):
        faults.FAULTS.clear()
        yield


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("A story.", "Another story,\n    of two lines.", True),
        ('    return "imagenet"', '    # why\n    return "imagenet"  # how', True),
        ('"imagenet"', '"imagenet"[:]', False),
    ],
)
def test_a_fault_is_another_experiment_if_its_code_is_another(tmp_path, no_faults, old, new, same):
    found = []
    for name, text in (("one.py", FAULT), ("other.py", FAULT.replace(old, new))):
        (tmp_path / name).write_text(text)
        faults.FAULTS.clear()
        faults.load(tmp_path / name)
        found.append(faults.FAULTS["other-stem"])
    assert (found[0].digest == found[1].digest) is same


def test_a_fault_is_read_when_it_is_registered(tmp_path, no_faults):
    file = tmp_path / "own.py"
    file.write_text(FAULT)
    faults.load(file)
    file.write_text(FAULT.replace('"imagenet"', '"cifar"'))
    assert 'return "imagenet"' in faults.FAULTS["other-stem"].difference()
