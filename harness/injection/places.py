"""Where in a script a fault would act, as far as a survey saw it: for a list, before anything is run with it."""

from kdbench.harness.injection.mechanism import Acts
from kdbench.harness.injection.scene import Scene


def places_of(acts: Acts, scene: Scene) -> list[str]:
    """Return file and line of each place, in order and once."""
    found: list[str] = []
    for kind, act in acts.items():
        places, role = getattr(act, "places", None), getattr(act, "role", None)
        if places is not None:
            found += [site.where for site in scene.sites if site.place in places]
        elif role is not None:
            found += scene.called.get(role, [])
        elif kind == "load":
            found += [load.where for load in scene.loads if load.side == "teacher"]
        elif kind == "optimizer":
            found += [scene.optimizers[n].where for n in scene.distilling if n < len(scene.optimizers)]
        else:
            found += [site.where for site in scene.of(kind) if _distils(site.data.get("optimizers"), scene)]
    return list(dict.fromkeys(filter(None, found)))


def _distils(optimizers: list[int] | None, scene: Scene) -> bool:
    """Say whether a call is made for an optimizer of the distillation, or for none that is known."""
    return not optimizers or any(n in scene.distilling for n in optimizers)
