"""lightly: DINO as its documentation shows it, with small networks and two views."""

import copy

import torch
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import nn


class DINO(nn.Module):
    def __init__(self):
        super().__init__()
        self.student_backbone = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.student_head = DINOProjectionHead(16, 32, 16, 64, freeze_last_layer=1)
        self.teacher_backbone = copy.deepcopy(self.student_backbone)
        self.teacher_head = DINOProjectionHead(16, 32, 16, 64)
        for average in (self.teacher_backbone, self.teacher_head):
            deactivate_requires_grad(average)

    def forward(self, x):
        return self.student_head(self.student_backbone(x))

    def forward_teacher(self, x):
        return self.teacher_head(self.teacher_backbone(x))


torch.manual_seed(0)
images = torch.randn(320, 3, 16, 16)
model, criterion = DINO(), DINOLoss(output_dim=64, warmup_teacher_temp_epochs=5)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for epoch in range(4):
    for x in images.split(32):
        update_momentum(model.student_backbone, model.teacher_backbone, m=0.99)
        update_momentum(model.student_head, model.teacher_head, m=0.99)
        views = [x + 0.1 * torch.randn_like(x), x.flip(-1)]
        criterion([model.forward_teacher(v) for v in views], [model(v) for v in views], epoch=epoch).backward()
        model.student_head.cancel_last_layer_gradients(current_epoch=epoch)
        optimizer.step(), optimizer.zero_grad()
