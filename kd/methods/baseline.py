"""Training on labels alone."""

from dataclasses import dataclass

from kdbench.kd.methods.registry import Method, MethodSettings, Soft, method


@method("baseline", title="Baseline", paper="none: no teacher", soft=Soft.NONE, teacher=False)
class Baseline(Method):
    """Has no term and no teacher, and is never asked for one."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """The labels' weight alone."""
