"""Tables at any width: columns are left out whole or rows are stacked, and no letter of a cell is lost."""

import dataclasses
import io

import pytest
from rich.console import Console

from kdbench.harness.analysis.rows import ArmRow, ComparisonRow, TeacherRow
from kdbench.harness.cli.comparisons import show_comparisons, show_groups
from kdbench.harness.cli.show import show_arms, show_effects
from kdbench.harness.cli.tables import Column, note, show_table

WIDTHS = (80, 100, 140)
LONG = "random-teacher+projector-unclipped"


def printed(width, show, *args, **more):
    """Return the lines that a function prints on a terminal of this width."""
    out = io.StringIO()
    show(Console(file=out, width=width, highlight=False), *args, **more)
    return out.getvalue().splitlines()


def arm(method="logit", fault=None, **changes):
    row = ArmRow(
        variant="bugged" if fault else "corrected",
        fault=fault,
        pair="r34-r18",
        method=method,
        seeds=[0, 1, 2, 3, 4],
        test_accuracy=[95.01, 94.87, 95.12, None, 94.5],
        mean=94.88,
        std=0.27,
        expected_findings=[],
        failed_findings=["KD104", "KD201"] if fault else [],
        consequences=["KD303", "KD204"] if fault else [],
        as_expected=fault != LONG,
        reached=True if fault else None,
        diverged_at=1 if fault else None,
        dormant=0 if fault else None,
        effect="undecided" if fault else None,
    )
    return dataclasses.replace(row, **changes)


def comparison(b="imagenet-stem", method="feature", **changes):
    row = ComparisonRow(
        a="corrected",
        b=b,
        pair="r34-r18",
        method=method,
        n=[5, 5],
        values=[[], []],
        missing=[],
        mean=[95.0, 88.2],
        std=[0.2, 0.4],
        difference_pp=-6.8,
        ci95_pp=[-97.19, -35.57],
        welch_p=0.001,
        permutation_p=0.01,
        least_permutation_p=0.008,
        holm_p=0.004,
        hedges_g=None,
        hedges_g_ci95=None,
        p_b_greater=None,
        tost_p=0.9,
        mde_pp=1.2,
        seeds_for_power_80=12,
        verdict="different",
        paired=False,
        seed_correlation=None,
        warnings=[],
    )
    return dataclasses.replace(row, **changes)


TEACHER = TeacherRow("r34", None, 0, "key", 98.28, [], [], [], as_expected=True)
ARMS = [arm("baseline"), arm(), arm("feature", "projector-unclipped"), arm("feature", LONG)]
COMPARISONS = [comparison(), comparison(LONG, verdict="undecided"), comparison("teacher-rows-shuffled", "logit")]


@pytest.mark.parametrize("width", WIDTHS)
def test_no_table_of_a_study_cuts_a_name_or_a_verdict(width):
    arms = printed(width, show_arms, ARMS, [TEACHER])
    compared = printed(width, show_comparisons, COMPARISONS, 0.5, "Does the bug matter here?")
    groups = printed(width, show_groups, COMPARISONS)
    effects = printed(width, show_effects, ARMS)
    for lines, words in (
        (arms, [LONG, "projector-unclipped", "Feature-KD", "teacher r34", "94.88 ± 0.27", "KD201", "KD303", "NO"]),
        (compared, [LONG, "different, lower", "undecided", "-97.19 to -35.57", "-6.80"]),
        (groups, [LONG, "imagenet-stem", "95.00", "88.20", "0.40"]),
        (effects, [LONG, "undecided", "KD104"]),
    ):
        text = "\n".join(lines)
        assert "…" not in text and max(map(len, lines)) <= width
        assert [word for word in words if word not in text] == []


def test_a_wide_terminal_shows_everything_and_a_narrow_one_says_what_it_leaves_out():
    one = [comparison()]
    wide = "\n".join(printed(140, show_comparisons, one, 0.5, "A"))
    assert all(name in wide for name in ("adjusted p", "missed below", "seeds for 0.5 pp")) and "left out" not in wide
    narrow = " ".join(" ".join(printed(80, show_comparisons, one, 0.5, "A")).split())
    assert "left out at 80 columns: adjusted p; missed below; seeds for 0.5 pp. A wider terminal or --json" in narrow


COLUMNS = [
    Column("name", names=True),
    Column("group", names=True, common=True),
    Column("first", drop=1),
    Column(("verdict in words", "verdict")),
    Column("second", drop=2),
]
ROWS = [("a" * 10, "same", "1" * 10, "undecided", "2" * 10), ("b", "same", "1", "equivalent", "2")]


@pytest.mark.parametrize(
    ("width", "there", "gone"),
    [
        (60, ["verdict in words", "1" * 10, "2" * 10, "group"], ["left out", "("]),
        (53, ["verdict", "1" * 10, "2" * 10, "group"], ["left out", "in words"]),
        (46, ["T (group same)", "1" * 10, "2" * 10], ["left out"]),
        (36, ["T (group same)", "2" * 10, "left out at 36 columns: first"], ["1" * 10]),
        (30, ["T (group same)", "equivalent", "left out at 30", "first; second"], ["1" * 10, "2" * 10]),
    ],
)
def test_what_gives_way_first(width, there, gone):
    """Short words, then a column whose rows agree, then columns in their order."""
    lines = printed(width, show_table, COLUMNS, ROWS, title="T")
    text = "\n".join(lines)
    assert [word for word in there if word not in text] == [] and [word for word in gone if word in text] == []
    assert "a" * 10 in text and max(map(len, lines)) <= width


def test_where_nothing_fits_the_rows_are_stacked_with_every_column():
    text = "\n".join(printed(21, show_table, COLUMNS, ROWS[:1]))
    assert all(cell in "".join(text.split()) for cell in ROWS[0]) and "left out" not in text


def test_a_remark_is_broken_between_words_and_each_line_is_indented():
    lines = printed(30, note, "a remark of [bold]several[/] words that is longer than a line", indent=4)
    assert len(lines) > 1 and all(line.startswith("    ") and len(line) <= 30 for line in lines)
    assert " ".join(" ".join(lines).split()) == "a remark of several words that is longer than a line"


def test_an_interval_that_excludes_zero_beside_undecided_is_explained():
    odd = comparison(verdict="undecided", welch_p=0.03, holm_p=0.06)
    text = " ".join(" ".join(printed(80, show_comparisons, [odd, comparison(LONG)], 0.5, "A")).split())
    assert "imagenet-stem: the interval excludes 0, yet p is adjusted for a family of 2 comparisons: 0.03 alone" in text
    plain = comparison(verdict="undecided", ci95_pp=[-1.0, 1.0])
    assert "excludes 0" not in "\n".join(printed(80, show_comparisons, [plain], 0.5, "A"))
