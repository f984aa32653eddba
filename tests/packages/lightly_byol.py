"""lightly: BYOL as its documentation shows it; the momentum network is an average of the online one."""

import copy

import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import nn


class BYOL(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.projection_head = BYOLProjectionHead(16, 32, 16)
        self.prediction_head = BYOLPredictionHead(16, 32, 16)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        for average in (self.backbone_momentum, self.projection_head_momentum):
            deactivate_requires_grad(average)

    def forward(self, x):
        return self.prediction_head(self.projection_head(self.backbone(x)))

    def forward_momentum(self, x):
        return self.projection_head_momentum(self.backbone_momentum(x)).detach()


torch.manual_seed(0)
images = torch.randn(320, 3, 8, 8)
model, criterion = BYOL(), NegativeCosineSimilarity()
optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
for _ in range(4):
    for x in images.split(32):
        update_momentum(model.backbone, model.backbone_momentum, m=0.99)
        update_momentum(model.projection_head, model.projection_head_momentum, m=0.99)
        a, b = x + 0.1 * torch.randn_like(x), x.flip(-1)
        (criterion(model(a), model.forward_momentum(b)) + criterion(model(b), model.forward_momentum(a))).backward()
        optimizer.step(), optimizer.zero_grad()
