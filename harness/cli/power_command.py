"""kdbench power: how many seeds a comparison needs, or what so many can show."""

import rich_click as click

from kdbench.harness.cli.common import JSON_OPTION, alpha_option, finite, print_json, stdout
from kdbench.harness.cli.help import DECISION, explained
from kdbench.kd.errors import InputError

QUESTION = "The question"
_FEW = 6
"Seeds per arm below which a remark is printed: Welch's test has 69% of a promised 80% at three seeds, 78% at five."


@explained(
    "power",
    examples=[
        ("how many seeds find a difference of 0.5 points?", "kdbench power --sd 0.4 --effect 0.5"),
        ("which differences do five seeds find?", "kdbench power --sd 0.4 --seeds 5"),
        (
            "how surely do five seeds find it, among six comparisons?",
            "kdbench power --sd 0.4 --effect 0.5 --seeds 5 --family 6",
        ),
    ],
)
@click.option(
    "--sd",
    type=float,
    callback=finite,
    required=True,
    metavar="POINTS",
    panel=QUESTION,
    help="Standard deviation of the score over seeds, in percentage points.",
)
@click.option(
    "--effect",
    type=float,
    callback=finite,
    metavar="POINTS",
    panel=QUESTION,
    help="Difference to be found, in percentage points.",
)
@click.option("--seeds", type=click.IntRange(2), metavar="N", panel=QUESTION, help="Number of seeds per arm.")
@alpha_option("Significance level, shared by the family.", DECISION)
@click.option(
    "--power",
    "wanted",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    callback=finite,
    default=0.8,
    show_default=True,
    metavar="SHARE",
    panel=DECISION,
    help="How often a difference of that size is to be found.",
)
@click.option(
    "--family",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    panel=DECISION,
    help="Number of comparisons that share the significance level.",
)
@JSON_OPTION
def command(
    sd: float, effect: float | None, seeds: int | None, alpha: float, wanted: float, family: int, as_json: bool
) -> None:
    """Find out how many seeds a comparison needs, or what a number of seeds can show.

    With --effect it says how many seeds per arm find that difference, with --seeds which differences they find, and
    with both how often they find it. The figures are those of a pooled two-sided t test; Welch's test, by which a
    study is decided, finds a little less if seeds are few. In a family the level is divided by its size, as Holm's
    procedure does for the smallest p.
    """
    from kdbench.harness.analysis import stats

    if sd <= 0 or (effect is not None and effect == 0):
        raise InputError("--sd must be positive, and --effect not 0")
    if effect is None and seeds is None:
        raise InputError(
            "say --effect (how many seeds find it?), --seeds (what do so many find?), or both (with what probability?)"
        )
    share = alpha / family
    if wanted <= share:
        raise InputError(
            f"--power {wanted:g} is no more than alpha, {share:g}; a test reaches that where there is no difference"
        )
    need = stats.seeds_needed(abs(effect) / sd, share, wanted) if effect is not None else None
    found = {
        "schema": "kdbench.power/1",
        "sd": sd,
        "alpha": alpha,
        "family": family,
        "power": wanted,
        "effect": effect,
        "seeds": seeds,
        "seeds_needed": need,
        "smallest_effect": sd * stats.smallest_effect(seeds, share, wanted) if seeds is not None else None,
        "power_reached": stats.power(effect / sd, seeds, share) if effect is not None and seeds is not None else None,
    }
    if as_json:
        print_json(found)
        return
    from kdbench.harness.cli.tables import note

    console = stdout()
    among = f", shared by {family} comparisons" if family > 1 else ""
    note(console, f"standard deviation over seeds {sd:g}, alpha {alpha:g}{among}", style="", indent=0)
    if effect is not None:
        many = f"{need} seeds per arm" if need is not None else "more than 10,000 seeds per arm"
        note(console, f"{many} find a difference of {abs(effect):g} with power {wanted:g}", style="")
    if seeds is not None:
        least = found["smallest_effect"]
        note(console, f"{seeds} seeds per arm find a difference of {least:.2g} or more with power {wanted:g}", style="")
    if effect is not None and seeds is not None:
        reached = found["power_reached"]
        note(console, f"{seeds} seeds per arm find a difference of {abs(effect):g} with power {reached:.2f}", style="")
    if any(n is not None and n < _FEW for n in (need, seeds)):
        note(
            console,
            "With so few seeds these numbers are optimistic: they are the pooled t test's, and Welch's test, which "
            "decides, finds less.",
        )
