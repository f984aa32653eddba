"""The Lightning callback on small trainings by the real package: a right module is clean, broken ones are named."""

import logging
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.utils.data import DataLoader, TensorDataset

from kdbench import audits

lightning = pytest.importorskip("lightning")
from kdbench.audits.lightning import KDAudit  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*(num_workers|log_every_n_steps|eval mode|LeafSpec|pytree).*")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
T = 4.0


def network(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 5))


class Distillation(lightning.LightningModule):
    """A module that owns student, teacher and projector, in which one thing may be wrong."""

    def __init__(self, wrong: str = "") -> None:
        super().__init__()
        self.wrong = wrong
        self.student, self.teacher = network(8), network(16).requires_grad_(False)
        self.projector = nn.Linear(8, 16, bias=False)
        if wrong != "teacher left in train mode":
            self.teacher.eval()

    def on_train_epoch_start(self) -> None:
        if self.wrong == "train() reaches the teacher":
            self.train()

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        x, y = batch
        hidden = self.student[:3](x)
        z = self.student[3](hidden)
        with torch.no_grad():
            hint = self.teacher[:3](x)
            answer = self.teacher[3](hint)
        scale = 1 if self.wrong == "no T squared" else T * T
        kd = F.kl_div(F.log_softmax(z / T, 1), F.softmax(answer / T, 1), reduction="batchmean") * scale
        return 0.5 * F.cross_entropy(z, y) + 0.5 * kd + F.mse_loss(self.projector(hidden), hint)

    def validation_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        x, y = batch
        return F.cross_entropy(self.student(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        params = [*self.student.parameters()]
        if self.wrong != "projector not optimised":
            params += self.projector.parameters()
        return torch.optim.SGD(params, lr=0.1, momentum=0.9)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        if self.wrong == "projector not clipped":
            nn.utils.clip_grad_norm_(self.student.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)


def fit(module: nn.Module, audit: object | None, epochs: int = 2, **options) -> None:
    data = TensorDataset(torch.randn(384, 12), torch.randint(0, 5, (384,)))
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[audit] if audit else [],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"gradient_clip_val": 0.05, **options},
    )
    trainer.fit(module, DataLoader(data, 32), DataLoader(data, 64))


ROLES = {"student": "student", "teacher": "teacher", "projectors": "projector"}


def failed(report: audits.Report) -> list[str]:
    return [f.id for f in report.failed("warn") if f.consequence_of is None]


@pytest.mark.parametrize("roles", [{}, ROLES], ids=["inferred", "named"])
@pytest.mark.parametrize(
    ("wrong", "ids"),
    [
        ("", []),
        ("teacher left in train mode", ["KD301"]),
        ("train() reaches the teacher", ["KD301"]),
        ("projector not optimised", ["KD101"]),
        ("no T squared", ["KD312"]),
        ("projector not clipped", ["KD201"]),
    ],
)
def test_a_right_module_is_clean_and_a_broken_one_is_named(wrong, ids, roles):
    audit = KDAudit(**roles, on_fail="record")
    fit(Distillation(wrong), audit)
    assert failed(audit.report) == ids, audit.report
    assert audit.report.counts()["pass"] >= 14, audit.report
    missed = [name for f in audit.report.failed() for name in f.observed.get("missed", [])]
    assert missed == (["projector.weight"] if wrong == "projector not clipped" else [])


@pytest.mark.parametrize("options", [{"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}, {"devices": 1}])
def test_what_the_trainer_does_beside_is_no_fault(options):
    audit = KDAudit(on_fail="record")
    fit(Distillation(), audit, **options)
    assert failed(audit.report) == [], audit.report


def test_the_trainers_bound_is_the_declared_one():
    audit = KDAudit(on_fail="record")
    fit(Distillation(), audit)
    (bound,) = [f for f in audit.report.findings if f.name == "norm-bound"]
    assert bound.status == "pass" and bound.observed["bound"] == 0.05
    audit = KDAudit(on_fail="record")
    fit(Distillation(), audit, gradient_clip_val=None)
    (bound,) = [f for f in audit.report.findings if f.name == "norm-bound"]
    assert bound.status == "not_triggered"


def hooks() -> list[int]:
    module = nn.modules.module
    return [
        len(module._global_forward_hooks),
        len(module._global_forward_pre_hooks),
        len(_global_optimizer_pre_hooks),
        len(_global_optimizer_post_hooks),
        torch._C._len_torch_function_stack(),
        id(torch.autograd.backward),
    ]


def test_hooks_are_gone_after_the_steps_asked_for_and_numbers_are_the_trainings_own():
    before = hooks()
    seen = []

    class Spy(Distillation):
        def on_train_batch_start(self, batch, index) -> None:
            seen.append(hooks())

    ends = []
    for audit in (KDAudit(steps=5, on_fail="record"), None):
        torch.manual_seed(0)
        module = Spy()
        fit(module, audit)
        ends.append([p.detach().clone() for p in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert len(seen) == 48 and all(at != before for at in seen[:5]) and all(at == before for at in seen[5:])


def test_a_failure_can_end_the_training_or_be_warned_of():
    with pytest.raises(audits.AuditFailure, match="KD312"):
        fit(Distillation("no T squared"), KDAudit(on_fail="raise", steps=3))
    with pytest.warns(UserWarning, match="KD312"):
        fit(Distillation("no T squared"), KDAudit(steps=3))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*KD.*")
        fit(Distillation(), KDAudit(steps=3))


def test_a_fit_that_breaks_off_leaves_no_hook():
    class Breaks(Distillation):
        def on_before_optimizer_step(self, optimizer) -> None:
            raise RuntimeError("mine")

    before = hooks()
    with pytest.raises(RuntimeError, match="mine"):
        fit(Breaks(), KDAudit())
    assert hooks() == before


def test_a_name_that_the_module_does_not_have_is_told_with_the_nearest():
    with pytest.raises(ValueError, match=r"Distillation has no attribute 'teachr'; did you mean 'teacher'\?"):
        fit(Distillation(), KDAudit(teacher="teachr"))
    with pytest.raises(ValueError, match=r"Distillation\.wrong is a str, no module"):
        fit(Distillation(), KDAudit(teacher="wrong"))
    with pytest.raises(ValueError, match="steps is at least 1"):
        KDAudit(steps=0)


def test_the_checkpoint_that_was_meant_is_held_against_the_teacher():
    module = Distillation()
    other = network(16).state_dict()
    for weights, status in ((module.teacher.state_dict(), "pass"), (other, "fail")):
        copied = {name: value.clone() for name, value in weights.items()}
        audit = KDAudit(teacher="teacher", teacher_weights=copied, steps=3, on_fail="record")
        fit(module, audit, epochs=1)
        (found,) = [f for f in audit.report.findings if f.name == "teacher-provenance"]
        assert found.status == status, audit.report


def test_a_callback_travels_with_its_trainer():
    assert pickle.loads(pickle.dumps(KDAudit(teacher="teacher"))).report is None
