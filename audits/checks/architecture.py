"""Whether the network fits the size of its input."""

from kdbench.audits.checks.catalogue import Verdict, audit, failed, passed, undecided
from kdbench.audits.trace import Spatial, Trace

SMALL = 64
"Pixels a side up to which an ImageNet stem throws away too much."
_WIDE = 7
"The kernel of an ImageNet stem; smaller ones with stride 2 begin networks made for small images."


def _stem_slip(calls: list[Spatial]) -> tuple[Spatial, str] | None:
    for call in calls[:2]:
        # Patch embeddings have larger strides: stride 2 under a wide kernel is the mark of the ImageNet stem.
        if call.kind == "conv" and call.kernel >= _WIDE and call.stride == 2:
            return call, f"a {call.kernel}x{call.kernel} convolution with stride 2"
    first, second = calls[:2]
    if len(calls) < 3 or calls[2].kind != "conv":
        return None  # a small network's last pool, with no stage behind it
    behind = second.input_size == first.output_size  # a pool beside a convolution reads what it reads
    if (first.kind, second.kind) == ("conv", "pool") and min(first.stride, second.stride) >= 2 and behind:
        return first, f"a stride-{first.stride} convolution followed by a pool"
    return None


@audit(
    "KD105",
    severity="error",
    phase="first",
    mend="for images of at most 64 pixels a side: conv1 = nn.Conv2d(3, C, kernel_size=3, stride=1, padding=1), "
    "maxpool = nn.Identity()",
)
def stem_resolution(trace: Trace) -> Verdict:
    """A network for small images keeps their resolution up to its first stage.

    Fails for inputs of at most 64 pixels a side when, within the first two spatial modules, there is a convolution
    of kernel 7 or more with stride 2, or a convolution of stride 2 or more followed by a pool of stride 2 or more:
    the ImageNet stem, which leaves 8x8 of a 32x32 image. It costs 5 to 7 percentage points on CIFAR-10.
    """
    seen = {role: calls for role, calls in trace.data.spatial.items() if len(calls) >= 2}
    if not seen:
        return undecided(
            "out-of-scope",
            "the stem cannot be judged: no student or teacher with at least two layers of convolution or pooling was "
            "seen",
        )
    small = {role: calls for role, calls in seen.items() if max(calls[0].input_size) <= SMALL}
    if not small:
        return undecided("out-of-scope", f"the first convolution's input is larger than {SMALL} pixels a side")
    slips = {role: slip for role, calls in small.items() if (slip := _stem_slip(calls))}
    if slips:
        parts = []
        observed = {}
        place = next((small[role][0].where for role in slips), None) or trace.declared.at
        for role, (call, what) in slips.items():
            height, width = small[role][0].input_size
            parts.append(f"the {role} reads {height}x{width} images through {what} ({call.name})")
            observed[role] = {
                "input": [height, width],
                "after_two_modules": list(small[role][1].output_size),
                "module": call.name,
                "kernel": call.kernel,
                "stride": call.stride,
            }
        return failed(f"an ImageNet stem on small images: {'; '.join(parts)}", observed, place)
    sizes = {role: {"input": list(calls[0].input_size), "first": calls[0].name} for role, calls in small.items()}
    return passed("no ImageNet stem within the first two spatial modules", sizes)
