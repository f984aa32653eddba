import copy
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits


def MultiClassCrossEntropy(logits, labels, T):
    outputs = torch.log_softmax(logits / T, dim=1)
    labels = torch.softmax(labels / T, dim=1)
    outputs = torch.sum(outputs * labels, dim=1, keepdim=False)
    outputs = -torch.mean(outputs, dim=0, keepdim=False)
    return outputs.detach().clone().requires_grad_(True)


class LwF(nn.Module):
    def __init__(self, feature_size=48):
        super().__init__()
        self.feature = nn.Sequential(nn.Linear(64, feature_size), nn.ReLU(), nn.Linear(feature_size, feature_size), nn.ReLU())
        self.fc = nn.Linear(feature_size, 5, bias=False)
        self.n_classes, self.n_known, self.T = 5, 0, 2.0

    def increment_classes(self, k):
        old = self.fc.weight.data
        self.fc = nn.Linear(self.fc.in_features, self.n_classes + k, bias=False)
        self.fc.weight.data[: self.n_classes] = old
        self.n_known, self.n_classes = self.n_classes, self.n_classes + k

    def forward(self, x):
        return self.fc(self.feature(x))

    def update(self, x, y, epochs, lr, prev_model=None):
        optimizer = torch.optim.SGD(self.parameters(), lr=lr, momentum=0.9, weight_decay=1e-5)
        for epoch in range(epochs):
            for b in torch.randperm(len(y)).split(40):
                logits = self(x[b])
                cls_loss = F.cross_entropy(logits, y[b])
                if prev_model is not None:
                    with torch.no_grad():
                        dist_target = prev_model(x[b])
                    dist_loss = MultiClassCrossEntropy(logits[:, : self.n_known], dist_target, self.T)
                    loss = 4.0 * dist_loss + cls_loss
                else:
                    loss = cls_loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            print(f"classes {self.n_classes} epoch {epoch} loss {loss.item():.4f}")


if __name__ == "__main__":
    torch.manual_seed(26)
    d = load_digits()
    x, y = torch.tensor(d.data, dtype=torch.float32) / 16, torch.tensor(d.target)
    old, new = y < 5, y >= 5
    model = LwF()
    model.update(x[old][:600], y[old][:600], 8, 0.05)
    prev_model = copy.deepcopy(model).eval().requires_grad_(False)
    model.increment_classes(5)
    model.update(x[new][:600], y[new][:600], 4, 0.01, prev_model)
    with torch.no_grad():
        p = model(x).argmax(1)
    print(f"old classes {(p == y)[old].float().mean():.4f} new classes {(p == y)[new].float().mean():.4f}")
