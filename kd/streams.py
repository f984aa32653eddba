"""Named, independent random streams.

Each random decision of a training (initial weights, order, crops, ...) draws from a stream of its own, so a
change in how much one of them draws cannot shift another. Streams live on the CPU whatever the device, so the
same seed makes the same draws everywhere.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, name: str) -> int:
    """Return the 63-bit seed of the stream called `name` under the trial's `seed`."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stream(seed: int, name: str) -> torch.Generator:
    """Return a fresh generator for the stream called `name`, e.g. ``stream(0, "order/3")``."""
    return torch.Generator().manual_seed(derive(seed, name))


@contextmanager
def global_stream(generator: torch.Generator) -> Iterator[None]:
    """Let code that only knows the global generator (module initialisers) draw from `generator` instead.

    Only the CPU's generator is lent: modules are built there and moved afterwards.
    """
    before = torch.get_rng_state()
    torch.set_rng_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(torch.get_rng_state())
        torch.set_rng_state(before)
