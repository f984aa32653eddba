"""NVIDIA ModelOpt: LogitsDistillationLoss with batchmean beside the labels' loss, balanced half and half."""

import modelopt.torch.distill as mtd
import torch
from torch import nn


class Network(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 5))

    def forward(self, x):
        return self.layers(x)


torch.manual_seed(0)
labels = torch.arange(400) % 5
inputs = torch.randn(5, 16)[labels] + 0.7 * torch.randn(400, 16)
batches = list(zip(inputs.split(40), labels.split(40), strict=True))
teacher = Network(64)
trainer = torch.optim.SGD(teacher.parameters(), lr=0.1)
for x, y in batches:
    trainer.zero_grad()
    nn.functional.cross_entropy(teacher(x), y).backward()
    trainer.step()

config = {
    "teacher_model": teacher,
    "criterion": mtd.LogitsDistillationLoss(temperature=4.0, reduction="batchmean"),
    "loss_balancer": mtd.StaticLossBalancer(kd_loss_weight=0.5),
}
model = mtd.convert(Network(16), mode=[("kd_loss", config)])
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
for _ in range(4):
    model.train()
    for x, y in batches:
        optimizer.zero_grad()
        model.compute_kd_loss(student_loss=nn.functional.cross_entropy(model(x), y)).backward()
        optimizer.step()
