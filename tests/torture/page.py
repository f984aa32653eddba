"""reports/trust.md: what was tried, what held, what failed, and the command for each line."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kdbench.harness.records.environment import device_name, git_commit, versions

_TITLES = {
    "kills": "A small study, killed",
    "machine": "What a machine does to a run",
    "fuzz": "Damaged files",
}
_PLANNED = {"kills": 230, "machine": 36, "fuzz": 28_000}
_SAID = {
    "kills": "Three trainings of networks of width 2 on digits, killed by SIGKILL and started again by the same "
    "command until they are done. A row held where each finished study equals the undisturbed one: weights, scores and "
    "findings of each trial, and the table, byte for byte; none lost, none doubled, none stuck, nothing left behind, "
    "no traceback. A step is what Python asks the system for: a file that is opened to be written, renamed or removed.",
    "machine": "A row held where the run ended in a sentence and a code of its own, with no traceback and no hang, and "
    "the same command then finished the study as if nothing had been. A full or read-only disk is an error that every "
    "step with a file meets from a random one on.",
    "fuzz": "Bytes that are flipped, cut, doubled or put in; values of another kind, absurd or nested. A file may be "
    "taken or refused in one sentence; a traceback, an error that nobody foresaw, or 20 seconds are a failure.",
}


def page(parts: Mapping[str, Mapping[str, Mapping[str, Any]]], order: Sequence[str]) -> str:
    """Return the report of what the state holds; a part that was not run is said to be."""
    import torch

    commit = git_commit()
    known = versions("kdbench", "torch", "numpy")
    lines = [
        "# What kdbench withstands",
        "",
        "Made by `make torture` (`python tests/torture`), which may be run in parts; a short form stands in the tests.",
        f"On {device_name(torch.device('cpu'))}, torch {known['torch']}, "
        + (f"commit {commit[0][:12]}{' and changes' if commit[1] else ''}." if commit else "no commit."),
        "",
    ]
    for part in order:
        rows = parts.get(part, {})
        lines += [f"## {_TITLES[part]}", "", f"    python tests/torture --part {part}", ""]
        if not rows:
            lines += ["Not run.", ""]
            continue
        tried, failed = sum(row["tried"] for row in rows.values()), sum(map(_failed, rows.values()))
        short = f" Cut off: {_PLANNED[part]:,} are planned." if tried < _PLANNED[part] else ""
        lines += [f"{_SAID[part]}", "", f"**{tried:,} tried, {tried - failed:,} held, {failed} failed.**{short}", ""]
        lines += ["| what | tried | held | failed | seconds |", "|---|---|---|---|---|"]
        for kind, row in rows.items():
            bad = _failed(row)
            lines.append(f"| {kind} | {row['tried']:,} | {row['tried'] - bad:,} | {bad} | {row['seconds']} |")
        lines += [
            "",
            *(f"- {kind}: {_plain(said)}" for kind, row in rows.items() for said in row["failures"][:3]),
        ]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _plain(said: str) -> str:
    """Return what a failure said on one line, without places of this machine."""
    return re.sub(r"/\S*/", ".../", " ".join(said.split()))[:300]


def _failed(row: Mapping[str, Any]) -> int:
    """Return how many of a row's tries failed; one may fail in several ways."""
    return row["tried"] - row["held"] if "held" in row else min(row["tried"], len(row["failures"]))
