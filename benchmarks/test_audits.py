"""What a watch costs: in the burn-in, where every step is seen, and after it."""

import pytest
from test_step import prepare, teacher  # noqa: F401  (a fixture)

import audits
from kd import train


@pytest.mark.parametrize(("burn_in", "every"), [(10**9, 50), (1, 50)], ids=["burn-in", "steady"])
def test_watch(images, teacher, measure, burn_in, every):  # noqa: F811
    """The ratio is that of a watched step to one that is not."""
    plain, watched = (prepare(images, teacher, "feature") for _ in range(2))
    plain_epochs, watched_epochs = train.epochs(plain), train.epochs(watched)
    watch = audits.watch(
        student=watched.student,
        teacher=watched.teacher,
        projectors=dict(watched.method.named_children()),
        optimizer=watched.optimizer,
        clip=audits.Clip(1.0),
        burn_in=burn_in,
        every=every,
    )

    def one_watched():
        with watch:
            next(watched_epochs)

    measure(lambda: next(plain_epochs), one_watched, images=256)
