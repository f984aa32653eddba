"""Each audit is one small function, named for the property that must hold, one file a subject.

A check reads a :class:`audits.trace.Trace` and returns a :class:`Verdict`; :func:`audits.checks.all.run` turns the
verdicts of all checks into findings. A new audit is one decorated function in one of these files; what it is written
with is here.
"""

from kdbench.audits.checks.catalogue import Verdict, audit, failed, passed, undecided

__all__ = ["Verdict", "audit", "failed", "passed", "undecided"]
