"""vit-pytorch: the README's distillation from a torchvision teacher, made small; nobody calls teacher.eval()."""

import torch
from torch import nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock
from vit_pytorch.distill import DistillableViT, DistillWrapper

torch.manual_seed(0)
means = torch.randn(5, 3, 1, 1)
labels = torch.arange(400) % 5
images = means[labels] + 0.7 * torch.randn(400, 3, 96, 96)

teacher = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5)
trainer = torch.optim.SGD(teacher.parameters(), lr=0.05, momentum=0.9)
for x, y in zip(images.split(40), labels.split(40), strict=True):  # stands for the weights that the README downloads
    trainer.zero_grad()
    nn.functional.cross_entropy(teacher(x), y).backward()
    trainer.step()

v = DistillableViT(
    image_size=96, patch_size=32, num_classes=5, dim=32, depth=2, heads=2, mlp_dim=64, dropout=0.1, emb_dropout=0.1
)
distiller = DistillWrapper(student=v, teacher=teacher, temperature=3, alpha=0.5, hard=False)
optimizer = torch.optim.AdamW([p for n, p in distiller.named_parameters() if not n.startswith("teacher.")], lr=1e-3)
for _ in range(4):
    for x, y in zip(images.split(40), labels.split(40), strict=True):
        optimizer.zero_grad()
        distiller(x, y).backward()
        optimizer.step()
