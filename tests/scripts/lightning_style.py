"""A module with training_step / configure_optimizers and a small trainer that drives it."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Backbone(nn.Module):
    def __init__(self, width, depth, classes):
        super().__init__()
        convs = [nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        for _ in range(depth):
            convs += [nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        self.encoder = nn.Sequential(*convs)
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        features = self.encoder(x).mean(dim=(2, 3))
        return self.fc(features), features


class Supervised(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x)[0], y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        return (self.net(x)[0].argmax(1) == y).float().mean()

    def configure_optimizers(self):
        opt = torch.optim.Adam(self.net.parameters(), lr=5e-3)
        return [opt], [torch.optim.lr_scheduler.ConstantLR(opt, factor=1.0)]


class KnowledgeDistillation(Supervised):
    def __init__(self, net, teacher, temperature=3.0, feature_weight=1.0):
        super().__init__(net)
        self.connector = nn.Linear(net.fc.in_features, teacher.fc.in_features)
        self.frozen = [teacher.eval()]
        self.temperature = temperature
        self.feature_weight = feature_weight

    def training_step(self, batch, batch_idx):
        x, y = batch
        with torch.no_grad():
            t_logits, t_features = self.frozen[0](x)
        logits, features = self.net(x)
        tau = self.temperature
        log_p = F.log_softmax(logits / tau, dim=1)
        kd = F.kl_div(log_p, F.softmax(t_logits / tau, dim=1), reduction="batchmean") * tau * tau
        feature = 1 - F.cosine_similarity(self.connector(features), t_features, dim=1).mean()
        return 0.5 * F.cross_entropy(logits, y) + 0.5 * kd + self.feature_weight * feature

    def configure_optimizers(self):
        params = [*self.net.parameters(), *self.connector.parameters()]
        opt = torch.optim.SGD(params, lr=0.1, momentum=0.9)
        return [opt], [torch.optim.lr_scheduler.StepLR(opt, step_size=3, gamma=0.3)]


class Trainer:
    def __init__(self, max_epochs, gradient_clip_val=None):
        self.max_epochs = max_epochs
        self.gradient_clip_val = gradient_clip_val

    def fit(self, module, train_loader, val_loader):
        (optimizer,), (scheduler,) = module.configure_optimizers()
        for epoch in range(self.max_epochs):
            module.train()
            for batch_idx, batch in enumerate(train_loader):
                loss = module.training_step(batch, batch_idx)
                optimizer.zero_grad()
                loss.backward()
                if self.gradient_clip_val is not None:
                    nn.utils.clip_grad_norm_(module.parameters(), self.gradient_clip_val)
                optimizer.step()
            scheduler.step()
            print(f"epoch {epoch}: loss={loss.item():.3f} val_acc={self.validate(module, val_loader):.3f}")

    @torch.no_grad()
    def validate(self, module, loader):
        module.eval()
        return torch.stack([module.validation_step(b, i) for i, b in enumerate(loader)]).mean().item()


def main():
    torch.manual_seed(77)
    classes = 6
    anchors = nn.functional.interpolate(torch.randn(classes, 3, 4, 4), scale_factor=4.0)
    labels = torch.randint(classes, (700,))
    images = anchors[labels] + 0.8 * torch.randn(700, 3, 16, 16)
    train = DataLoader(TensorDataset(images[:512], labels[:512]), batch_size=64, shuffle=True)
    val = DataLoader(TensorDataset(images[512:], labels[512:]), batch_size=94)

    teacher = Backbone(width=16, depth=2, classes=classes)
    Trainer(max_epochs=3).fit(Supervised(teacher), train, val)
    module = KnowledgeDistillation(Backbone(width=8, depth=2, classes=classes), teacher)
    trainer = Trainer(max_epochs=5, gradient_clip_val=1.0)
    trainer.fit(module, train, val)
    print(f"final accuracy {trainer.validate(module, val):.3f}")


if __name__ == "__main__":
    main()
