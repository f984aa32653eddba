"""torchdistill: a distillation box with KDLoss; nobody sets the teacher's mode, which is left to the caller."""

import torch
import torchdistill.losses.high_level
import torchdistill.losses.mid_level  # noqa: F401 (both register losses by name)
from torch import nn
from torch.utils.data import RandomSampler, TensorDataset
from torchdistill.core.distillation import get_distillation_box


def network(width):
    return nn.Sequential(nn.Linear(16, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 5))


torch.manual_seed(0)
labels = torch.arange(400) % 5
data = TensorDataset(torch.randn(5, 16)[labels] + 0.7 * torch.randn(400, 16), labels)
teacher, student = network(64), network(16)
trainer = torch.optim.SGD(teacher.parameters(), lr=0.1)
for x, y in torch.utils.data.DataLoader(data, 40):
    trainer.zero_grad()
    nn.functional.cross_entropy(teacher(x), y).backward()
    trainer.step()

loader = {"dataset_id": "train", "kwargs": {"batch_size": 40}, "sampler": {"class_or_func": RandomSampler}}
paths = dict.fromkeys(("student_module_path", "teacher_module_path"), ".")
ends = dict.fromkeys(("student_module_io", "teacher_module_io"), "output")
kd = {"key": "KDLoss", "kwargs": {**paths, **ends, "temperature": 4.0, "alpha": 0.5}}
loss = {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": kd, "weight": 1.0}}}}
config = {
    "num_epochs": 4, "train_data_loader": loader, "criterion": loss,
    "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
    "student": {"forward_proc": "forward_batch_only"}, "optimizer": {"key": "SGD", "kwargs": {"lr": 0.05}},
}  # fmt: skip
box = get_distillation_box(teacher, student, {"train": data}, config, torch.device("cpu"), None, False, 1)
for epoch in range(4):
    box.pre_epoch_process(epoch=epoch)
    for x, y, extra in box.train_data_loader:
        box.post_forward_process(loss=box.forward_process(x, y, extra))
