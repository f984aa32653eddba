"""A failure follows from another only where that one is at least as severe, and not where it stands by itself."""

from kdbench.audits.checks.all import _cause
from kdbench.audits.checks.catalogue import failed


def cause(verdict, **failures):
    return _cause(verdict, "target-form", failures)  # follows KD102, KD301, KD305 and KD311


def test_an_error_follows_from_an_error_and_not_from_a_warning():
    verdict = failed("the target carries a gradient", {})
    assert cause(verdict, KD301="error") == "KD301"
    assert cause(verdict, KD301="warn") is None
    assert cause(verdict, KD301="warn", KD305="error") == "KD305"
    assert cause(failed("milder", {}, severity="warn"), KD301="warn") == "KD301"


def test_what_stands_by_itself_follows_from_nothing():
    assert cause(failed("no probabilities", {}, by_itself=True), KD301="error") is None
