"""What is said of a study, as typed rows; dictionaries are made of them where JSON is printed, and nowhere else."""

from dataclasses import dataclass
from typing import Literal

from kdbench.harness.analysis.stats import Verdict

Effect = Literal["invalid", "dormant", "latent", "visible", "undecided"]
Repeated = Literal["identical", "differs", "undecidable", "missing"]


@dataclass(frozen=True)
class Missing:
    """A trial without a score."""

    arm: Literal["a", "b"]
    seed: int | str
    status: str


@dataclass(frozen=True)
class ComparisonRow:
    """One comparison, as an entry of kdbench.compare/1; differences are b - a, accuracies in percent."""

    a: str
    b: str
    pair: str
    method: str
    n: list[int]
    values: list[list[float]]
    missing: list[Missing]
    mean: list[float | None]
    std: list[float | None]
    difference_pp: float | None
    ci95_pp: list[float] | None
    welch_p: float | None
    permutation_p: float | None
    least_permutation_p: float | None
    holm_p: float | None
    hedges_g: float | None
    hedges_g_ci95: list[float] | None
    p_b_greater: float | None
    tost_p: float | None
    mde_pp: float | None
    seeds_for_power_80: int | None
    verdict: Verdict
    paired: bool
    seed_correlation: float | None
    warnings: list[str]

    @property
    def told(self) -> str:
        """The verdict with its direction."""
        if self.verdict not in ("different", "both"):
            return self.verdict
        return f"{self.verdict}, {'higher' if (self.difference_pp or 0.0) > 0 else 'lower'}"


@dataclass(frozen=True)
class ArmRow:
    """One arm over its seeds, as an entry of kdbench.run/1; accuracies in percent."""

    variant: str
    fault: str | None
    pair: str
    method: str
    seeds: list[int]
    test_accuracy: list[float | None]
    mean: float | None
    std: float | None
    expected_findings: list[str]
    failed_findings: list[str]
    "Ids of the root causes."
    consequences: list[str]
    as_expected: bool
    reached: bool | None
    diverged_at: int | str | None
    dormant: int | None
    "Number of seeds."
    effect: Effect | None = None
    "How far its bug got; None of an arm without a bug, and where nobody asked."


@dataclass(frozen=True)
class TeacherRow:
    """One teacher's trial, as an entry of kdbench.run/1."""

    arch: str
    fault: str | None
    seed: int
    key: str
    test_accuracy: float | None
    expected_findings: list[str]
    failed_findings: list[str]
    consequences: list[str]
    as_expected: bool


@dataclass(frozen=True)
class GridRow:
    """One point of a grid and what came of it on validation, in percent."""

    fault: str | None
    pair: str
    method: str
    point: dict[str, float]
    seeds: list[int]
    val_accuracy: list[float | None]
    mean: float | None
    std: float | None
    chosen: bool


@dataclass(frozen=True)
class Again:
    """The control that runs one trial twice."""

    trial: str
    method: str
    fault: str | None
    seed: int
    epochs: int
    verdict: Repeated


@dataclass(frozen=True, kw_only=True)
class Positive(ArmRow):
    """The control that is a bug nobody could miss: its arm, and what was seen of it."""

    comparison: ComparisonRow
    seen_by_audit: bool
    seen_in_accuracy: bool


@dataclass(frozen=True)
class ControlsRow:
    """What the controls of a study showed."""

    again: Again | None
    positive: Positive | None
    as_declared: bool
    "Of the program; that few seeds do not show the positive control in accuracy is a result."
    sound: bool
