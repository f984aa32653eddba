"""What a watch costs: in the burn-in, where every step is seen, and after it."""

import pytest
from test_step import make_teacher, prepare

import audits
from kd import train


@pytest.mark.parametrize(
    ("burn_in", "width", "steps"),
    [(10**9, 16, 2), (1, 16, 2), (1, 64, 1)],
    ids=["burn-in-16", "steady-16", "steady-64"],
)
def test_watch(images, folder, measure, burn_in, width, steps):
    """The ratio is that of a watched step to one that is not; in the steady state every 50th step is seen."""
    teacher = make_teacher(images, folder, width)
    plain, watched = (prepare(images, teacher, "feature", steps, width) for _ in range(2))
    plain_epochs, watched_epochs = train.epochs(plain), train.epochs(watched)
    watch = audits.watch(
        student=watched.student,
        teacher=watched.teacher,
        projectors=dict(watched.method.named_children()),
        optimizer=watched.optimizer,
        clip=audits.Clip(1.0),
        burn_in=burn_in,
        every=50,
    )

    def one_watched():
        with watch:
            next(watched_epochs)

    measure(lambda: next(plain_epochs), one_watched, images=128 * steps)
