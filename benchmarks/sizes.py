"""How much each benchmark does: all sizes in one place, so that the suite itself can be tried in seconds."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Sizes:
    """The amounts of work; the defaults are those of a processor."""

    width: int = 16
    batch: int = 128
    steps: int = 2
    "Training steps in one timed call."
    rounds: int = 4
    "Times that A B B A is gone through."
    patience: int = 4
    "So many times its rounds a ratio is given, as long as the machine is too restless for it."
    matmul: int = 2048
    "Side of the square matrices of the roof."
    matmuls: int = 1
    "Multiplications in one timed call."
    hook_steps: int = 50
    "Steps over which the time inside a watch's hooks is added up: one of them is seen after the burn-in."
    trial_epochs: int = 6
    worker_rounds: int = 2
    grid_points: int = 8
    grid_epochs: int = 12
    trials: int = 10_000
    comparisons: int = 1_000
    mirrored: int = 100
    starts: int = 10
    toy: bool = False
    "Whether the numbers mean nothing."


CPU = Sizes()
# A GPU does a step in milliseconds: many of them between two looks at the clock, and matrices that fill it. It is lent
# for minutes, and what a run that is cut off has measured is lost: fewer rounds.
CUDA = replace(CPU, width=64, steps=20, rounds=2, patience=4, matmul=8192, matmuls=20)
TOY = Sizes(
    width=4,
    batch=8,
    steps=1,
    rounds=1,
    patience=1,
    matmul=64,
    hook_steps=2,
    trial_epochs=1,
    worker_rounds=1,
    grid_points=2,
    grid_epochs=1,
    trials=40,
    comparisons=3,
    mirrored=3,
    starts=1,
    toy=True,
)
