"""Lightning: one module holds student and teacher; Lightning leaves modes as it finds them, so the caller sets them."""

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
labels = torch.arange(400) % 5
loader = DataLoader(TensorDataset(torch.randn(5, 16)[labels] + 0.7 * torch.randn(400, 16), labels), 40, shuffle=True)


def network(width):
    return nn.Sequential(nn.Linear(16, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 5))


class Classifier(lightning.LightningModule):
    def __init__(self, student, teacher=None):
        super().__init__()
        self.student, self.teacher = student, teacher

    def training_step(self, batch, _):
        (x, y), kd = batch, 0.0
        z = self.student(x)
        if self.teacher is not None:
            with torch.no_grad():
                t = self.teacher(x)
            kd = 16 * nn.functional.kl_div((z / 4).log_softmax(-1), (t / 4).softmax(-1), reduction="batchmean")
        return 0.5 * nn.functional.cross_entropy(z, y) + 0.5 * kd

    def configure_optimizers(self):
        return torch.optim.AdamW(self.student.parameters(), lr=1e-2)


def fit(module, epochs):
    lightning.Trainer(max_epochs=epochs, accelerator="cpu", gradient_clip_val=1.0, barebones=True).fit(module, loader)


fit(Classifier(teacher := network(64)), 2)
fit(Classifier(network(16), teacher.eval().requires_grad_(False)), 4)
