"""timm: its LogitDistillationTask, as timm's train.py uses it."""

import timm
import torch
from timm.task import LogitDistillationTask
from torch import nn

torch.manual_seed(0)
means = torch.randn(5, 3, 1, 1)
labels = torch.arange(400) % 5
images = means[labels] + 0.7 * torch.randn(400, 3, 32, 32)
batches = list(zip(images.split(40), labels.split(40), strict=True))

teacher = timm.create_model("test_resnet", num_classes=5)
trainer = torch.optim.SGD(teacher.parameters(), lr=0.05, momentum=0.9)
for x, y in batches * 2:
    trainer.zero_grad()
    nn.functional.cross_entropy(teacher(x), y).backward()
    trainer.step()

student = timm.create_model("test_vit", img_size=32, patch_size=8, num_classes=5, drop_rate=0.1)
task = LogitDistillationTask(student, teacher, nn.CrossEntropyLoss(), task_loss_weight=0.3, temperature=4.0)
optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
for _ in range(4):
    task.train()
    for x, y in batches:
        optimizer.zero_grad()
        task(x, y)["loss"].backward()
        nn.utils.clip_grad_norm_(task.get_clip_parameters(), 1.0)
        optimizer.step()
