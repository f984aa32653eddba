"""The measure of mutate: which programs are kept for it, and that its page counts what counts."""

import hashlib

from benchmarks.mutation import KEPT, LOOKED_AT, Share, missed, page, programs, put_together


def row(name, kdbench, status="injected", failed=()):
    return {"name": name, "status": status, "kdbench": kdbench, "failed": list(failed), "why": "no clip"}


def result(*rows, unmutated="clean"):
    return {"faults": list(rows), "unmutated": unmutated, "commit": ["0123456789", False]}


def test_the_split_is_the_rules_and_nobodys_choice():
    by_digest = sorted((*LOOKED_AT, *KEPT), key=lambda package: hashlib.sha256(package.encode()).hexdigest())
    assert {*by_digest[:6]} == {*LOOKED_AT} and len(by_digest) == 12
    known = programs()
    assert len([p for p in known.values() if p.group != "scripts"]) >= 15
    assert {p.group for p in known.values()} == {"kept", "looked-at", "scripts"}


def test_a_share_is_of_what_acted_and_left_something_to_see():
    share = Share.of(
        [
            result(row("a", "first"), row("b", "named"), row("c", None), row("d", "silent", "dormant")),
            result(row("a", "first"), row("e", None, "not-applicable")),
            result(row("e", None, "not-applicable")),
        ]
    )
    assert share == Share(first=2, named=3, runs=3, whole=1, programs=2)


def test_the_page_names_what_was_missed_and_what_cannot_serve():
    known = programs()
    kept = next(name for name, p in known.items() if p.group == "kept")
    looked = next(name for name, p in known.items() if p.group == "looked-at")
    last = {
        kept: result(row("a", "first"), row("b", "other", failed=["KD101"])),
        looked: {"cannot_serve": "no distillation was seen", "code": 3, "commit": ["0123456789", False]},
    }
    first = {kept: result(row("a", "silent"), row("b", "silent"))}
    text = page(last, first, known)
    assert (
        "| packages kept for the measure | 1 of 1 | 2 | 1/2 (0.50) | 1 | 0/1 (0.00; 0.00 to 0.97) | 0/2 (0.00) |"
        in text
    )
    assert f"| b | 1 | 0/1 (0.00; 0.00 to 0.97) | {kept.removeprefix('packages/')} (other: KD101) |" in text
    assert f"- {looked}: no distillation was seen" in text
    assert "Not run yet: " in text and kept not in text.partition("Not run yet: ")[2]


def test_what_was_missed_can_be_run_again_alone_and_the_page_says_so():
    before = result(row("a", "first"), row("b", "silent"), row("c", "silent", "dormant"), row("d", "named"))
    assert missed(before) == ["b", "d"]
    now = put_together(before, {**result(row("b", "first"), row("d", None, "not-applicable")), "commit": ["ab" * 9, 0]})
    assert [r["kdbench"] for r in now["faults"]] == ["first", "first", "silent", None] and missed(now) == []
    name = next(iter(programs()))
    assert "| 0123456; 2 again at abababa |" in page({name: now}, {name: before}, programs())
