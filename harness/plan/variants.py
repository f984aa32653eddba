"""Which faults make up a variant of a study."""

_BUGS = ("projector-unclipped", "imagenet-stem", "random-teacher")

VARIANTS: dict[str, tuple[str | None, ...]] = {
    "corrected": (None,),
    "bugged": _BUGS,
    "both": (None, *_BUGS),
}
"By variant: its arms, each one fault (None: the canonical procedure)."


def variant_of(fault: str | None) -> str:
    """Return the variant that an arm belongs to."""
    return "corrected" if fault is None else "bugged"
