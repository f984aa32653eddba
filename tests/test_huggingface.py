"""The callback on small trainings by Hugging Face's own Trainer: a right one is clean, broken ones are named."""

import gc
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.utils.data import Dataset

from kdbench import audits

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from kdbench.audits.huggingface import KDAudit  # noqa: E402

T = 4.0


def bert(width: int, layers: int) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * width,
        num_labels=5,
        max_position_embeddings=16,
    )
    return transformers.BertForSequenceClassification(config)


class Sentences(Dataset):
    def __init__(self) -> None:
        self.words, self.labels = torch.randint(0, 50, (384, 8)), torch.randint(0, 5, (384,))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.words[i], "labels": self.labels[i]}


class DistillationTrainer(transformers.Trainer):
    """A Trainer in the documented manner, in which one thing may be wrong."""

    def __init__(self, *args, teacher: nn.Module, wrong: str = "", **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.teacher, self.wrong = teacher, wrong
        self.projector = nn.Linear(8, 16, bias=False)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        out = model(**inputs, output_hidden_states=True)
        with torch.no_grad():
            taught = self.teacher(**inputs, output_hidden_states=True)
        scale = 1 if self.wrong == "no T squared" else T * T
        kd = scale * F.kl_div(
            F.log_softmax(out.logits / T, -1), F.softmax(taught.logits / T, -1), reduction="batchmean"
        )
        loss = 0.5 * out.loss + 0.5 * kd
        if self.wrong.startswith("projector"):
            loss = loss + F.mse_loss(self.projector(out.hidden_states[-1]), taught.hidden_states[-1])
        return (loss, out) if return_outputs else loss

    def create_optimizer(self, *args, **kwargs):
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.wrong == "projector outside the model, so not clipped":
            optimizer.add_param_group({"params": self.projector.parameters()})
        return optimizer


def settings(folder: Path, **options) -> object:
    return transformers.TrainingArguments(
        str(folder),
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **{"max_steps": 8, **options},
    )


def train(audit, folder: Path, wrong: str = "", loss_raises: bool = False, **options) -> DistillationTrainer:
    student, teacher = bert(8, 1), bert(16, 2)
    teacher.train(wrong == "teacher left in train mode")
    arguments = settings(folder, **options)
    trainer = DistillationTrainer(
        student, arguments, train_dataset=Sentences(), callbacks=[audit] if audit else [], teacher=teacher, wrong=wrong
    )
    if loss_raises:
        trainer.compute_loss = lambda *args, **kwargs: 1 / 0
    trainer.train()
    return trainer


def failed(report: audits.Report) -> list[str]:
    return [f.id for f in report.failed("warn") if f.consequence_of is None]


@pytest.mark.parametrize(
    ("wrong", "ids"),
    [
        ("", []),
        ("teacher left in train mode", ["KD301"]),
        ("no T squared", ["KD312"]),
        ("projector outside the model, so not optimised", ["KD101"]),
        # The Trainer zeroes the gradients of its model, so those of a projector beside it add up as well.
        ("projector outside the model, so not clipped", ["KD201", "KD211"]),
    ],
)
def test_a_right_trainer_is_clean_and_a_broken_one_is_named(wrong, ids, tmp_path):
    audit = KDAudit(steps=6, on_fail="record")
    train(audit, tmp_path, wrong, max_grad_norm=0.1)
    assert failed(audit.report) == ids, audit.report
    assert audit.report.counts()["pass"] >= 14, audit.report


@pytest.mark.parametrize("options", [{"gradient_accumulation_steps": 2}, {"bf16": True}, {"warmup_steps": 3}])
def test_what_the_trainer_does_beside_is_no_fault(options, tmp_path):
    audit = KDAudit(steps=6, on_fail="record")
    train(audit, tmp_path, **options)
    assert failed(audit.report) == [], audit.report


def test_roles_can_be_given_and_the_trainers_bound_is_the_declared_one(tmp_path):
    student, teacher = bert(8, 1), bert(16, 2).eval()
    audit = KDAudit(
        student=student, teacher=teacher, teacher_weights=bert(16, 2).state_dict(), steps=3, on_fail="record"
    )
    arguments = settings(tmp_path, max_steps=3)
    DistillationTrainer(student, arguments, train_dataset=Sentences(), callbacks=[audit], teacher=teacher).train()
    by_name = {f.name: f for f in audit.report.findings}
    assert by_name["norm-bound"].observed["bound"] == 1.0, "max_grad_norm, which nobody set"
    assert failed(audit.report) == ["KD104"] and by_name["kd-scale"].status == "pass"


def test_watching_changes_no_bit_and_a_failure_can_end_the_training(tmp_path):
    ends = []
    for audit in (KDAudit(steps=3, on_fail="record"), None):
        torch.manual_seed(0)
        ends.append([p.detach() for p in train(audit, tmp_path, seed=3).model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    with pytest.raises(audits.AuditFailure, match="KD312"):
        train(KDAudit(steps=3, on_fail="raise"), tmp_path, "no T squared")


def test_a_training_that_breaks_off_keeps_its_hooks_no_longer_than_its_callback(tmp_path):
    def hooks() -> tuple[int, ...]:
        return (
            len(_global_optimizer_pre_hooks),
            len(_global_optimizer_post_hooks),
            len(nn.modules.module._global_forward_hooks),
            torch._C._len_torch_function_stack(),
        )

    before = hooks()
    audit = KDAudit(steps=3)
    with pytest.raises(ZeroDivisionError):
        train(audit, tmp_path, loss_raises=True)
    assert hooks() != before
    del audit
    gc.collect()
    assert hooks() == before
