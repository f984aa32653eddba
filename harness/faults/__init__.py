"""The faults: each one small function that replaces one field of `Procedure`, its docstring the story.

A new fault is one decorated function in one of these files. The decorator refuses at import a seam that does not
exist, a signature other than the canonical one, and an audit that is not in the catalogue.
"""

from kdbench.harness.faults import architecture, clipping, data, loss, student, study, teacher, update
from kdbench.harness.faults.registry import (
    FAULTS,
    SEAMS,
    Fault,
    Function,
    Needs,
    Scope,
    Together,
    audit_ids,
    fault,
    get,
    load,
    together,
)

__all__ = [
    "FAULTS",
    "SEAMS",
    "Fault",
    "Function",
    "Needs",
    "Scope",
    "Together",
    "architecture",
    "audit_ids",
    "clipping",
    "data",
    "fault",
    "get",
    "load",
    "loss",
    "student",
    "study",
    "teacher",
    "together",
    "update",
]
