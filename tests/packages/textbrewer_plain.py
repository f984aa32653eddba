"""TextBrewer: distillation of logits alone, with clipping, as its documentation shows it."""

import tempfile

import torch
from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Network(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(width, 5)

    def forward(self, x, labels):
        logits = self.head(hidden := self.body(x))
        return logits, (hidden.unsqueeze(1),), nn.functional.cross_entropy(logits, labels)


def adaptor(batch, outputs):
    return {"logits": outputs[0], "hidden": outputs[1], "losses": outputs[2]}


torch.manual_seed(0)
labels = torch.arange(400) % 5
loader = DataLoader(TensorDataset(torch.randn(5, 16)[labels] + 0.7 * torch.randn(400, 16), labels), 40, shuffle=True)
teacher, student = Network(64), Network(16)
trainer = torch.optim.SGD(teacher.parameters(), lr=0.1)
for batch in loader:
    trainer.zero_grad(), teacher(*batch)[2].backward(), trainer.step()
settings = TrainingConfig(device="cpu", output_dir=tempfile.mkdtemp())
what = DistillationConfig(temperature=1, kd_loss_weight=0.5, hard_label_weight=0.5)
distiller = GeneralDistiller(settings, what, teacher, student, adaptor, adaptor)
with distiller:
    distiller.train(torch.optim.AdamW(student.parameters(), lr=1e-3), loader, num_epochs=4, max_grad_norm=1.0)
