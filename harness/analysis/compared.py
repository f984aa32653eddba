"""Comparisons as other programs read them, whether of a study or of a table from elsewhere."""

from dataclasses import asdict, dataclass, field
from typing import Any

from kdbench.harness.analysis.best import BestOfPair, best_of_pairs
from kdbench.harness.analysis.over_pairs import OverPairs, over_pairs
from kdbench.harness.analysis.rows import ComparisonRow


@dataclass(frozen=True)
class Compared:
    """Comparisons and how they were decided: the kdbench.compare/1 object."""

    metric: str
    alpha: float
    margin_pp: float
    "In the metric's own units, where the rows come from elsewhere."
    family: int
    "Number of comparisons that p is adjusted for."
    comparisons: list[ComparisonRow]
    over_pairs: list[OverPairs] = field(default_factory=list)
    "Made of the comparisons."
    best: list[BestOfPair] = field(default_factory=list)
    "Made of the comparisons."

    def __post_init__(self) -> None:
        object.__setattr__(self, "best", best_of_pairs(self.comparisons))
        object.__setattr__(self, "over_pairs", over_pairs(self.comparisons))

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"schema": "kdbench.compare/1", **asdict(self)}
