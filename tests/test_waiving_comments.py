"""Comments that waive a finding: which lines they speak of, and what is said of those that do not count."""

import pytest
from test_policy import SCALE, report

from kdbench.audits.report.inline import apply, read

TEXT = '''"""A docstring, # kdbench: ignore[KD312] in which nothing counts."""
import torch

loss = torch.add(
    1,
    2,
){after}
{above}
loss = loss.mean(
    0
)
for i in range(3):
    {above_in_block}
    loss = loss + i
'''
NONE = {"after": "", "above": "", "above_in_block": ""}
COMMENT = "# kdbench: ignore[KD312] meant so"


def waived(folder, text, line, file="train.py"):
    """Return the report of a failure in a line of a file with this text, where it is waived, and the remarks."""
    (folder / "train.py").write_text(text)
    finding = SCALE.__class__(**{**SCALE.__dict__, "where": {"file": file, "line": line} if line else None})
    ignores, told = read(["train.py"], folder)
    applied, places, idle = apply(report(finding), ignores, "train.py", folder)
    return applied.findings[0], places, [*told, *idle]


@pytest.mark.parametrize(
    ("at", "lines"), [("after", {4, 5, 6, 7}), ("above", {9, 10, 11}), ("above_in_block", {14})], ids=str
)
def test_a_comment_speaks_of_one_statement(tmp_path, at, lines):
    text = TEXT.format(**{**NONE, at: f"  {COMMENT}" if at == "after" else COMMENT})
    seen = set()
    for line in range(1, len(text.splitlines()) + 1):
        finding, places, remarks = waived(tmp_path, text, line)
        if finding.status == "waived":
            seen.add(line)
            assert finding.reason == "meant so" and list(places) == ["KD312"] and remarks == []
        else:
            assert places == {} and f"KD312 failed at train.py:{line}" in remarks[0]
    assert seen == lines


@pytest.mark.parametrize("line", [1, 9, None])
def test_before_the_first_statement_it_speaks_of_the_file(tmp_path, line):
    text = f"#!/usr/bin/env python\n{COMMENT}\n" + TEXT.format(**NONE)
    assert waived(tmp_path, text, line)[0].status == "waived"
    assert waived(tmp_path, text, 9, file="other.py")[0].status == "fail"


@pytest.mark.parametrize(
    ("comment", "says"),
    [
        ("# kdbench: ignore[KD312]", "train.py:8: ignore[KD312] gives no reason, so the finding stays"),
        ("# kdbench: ignore KD312 meant so", "is not understood; write # kdbench: ignore[ID] REASON"),
        ("# kdbench: ingore[KD312] meant so", "is not understood"),
        ("# kdbench: ignore[] meant so", "names no audit"),
        ("# kdbench: ignore[kd-scal] meant so", "train.py:8: unknown audit 'kd-scal'; did you mean 'kd-scale'?"),
        ("# kdbench: ignore[KD201] meant so", "ignore[KD201] waives nothing: KD201 was not reported"),
    ],
)
def test_a_comment_that_does_not_count_is_told(tmp_path, comment, says):
    finding, places, remarks = waived(tmp_path, TEXT.format(**{**NONE, "above": comment}), 9)
    assert finding.status == "fail" and places == {} and len(remarks) == 1 and says in remarks[0]


def test_what_is_no_comment_or_no_python_is_left_alone(tmp_path):
    assert waived(tmp_path, TEXT.format(**NONE), 1)[2] == []
    assert waived(tmp_path, f"{COMMENT}\nprint 'old'\n", 2)[0].status == "fail"
    assert read(["not there.py"], tmp_path) == ([], [])


def test_names_and_several_audits_are_accepted(tmp_path):
    text = TEXT.format(**{**NONE, "above": "# kdbench: ignore[kd-scale, KD312]: meant so"})
    finding, _, remarks = waived(tmp_path, text, 9)
    assert (finding.status, finding.reason, remarks) == ("waived", "meant so", [])
