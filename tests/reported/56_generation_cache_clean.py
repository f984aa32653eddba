"""Born-again training: every generation learns from the predictions of the one before, kept in a table."""
import torch
import torch.nn as nn
import torch.nn.functional as F

N, DIM, CLASSES, BATCH = 512, 14, 6, 64


class SelfDistillationTrainer:
    def __init__(self, make_model, generations=3, temperature=2.0, alpha=0.3, lr=5e-3, epochs=6):
        self.make_model, self.generations = make_model, generations
        self.temperature, self.alpha, self.lr, self.epochs = temperature, alpha, lr, epochs
        self._cached_predictions = None

    def get_teacher_prediction(self, index):
        return None if self._cached_predictions is None else self._cached_predictions[index]

    def sample_loss(self, logits, label, teacher_logits):
        hard = F.cross_entropy(logits, label)
        if teacher_logits is None:
            return hard
        T = self.temperature
        soft = F.kl_div(F.log_softmax(logits / T, -1), F.softmax(teacher_logits / T, -1), reduction="batchmean") * T * T
        return self.alpha * hard + (1 - self.alpha) * soft

    def train_batch(self, model, optimizer, x, y, sample_ids):
        logits = model(x)
        index = torch.arange(len(y))
        index = sample_ids
        loss = self.sample_loss(logits, y, self.get_teacher_prediction(index))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    def train(self, inputs, labels):
        for generation in range(self.generations):
            student = self.make_model()
            optimizer = torch.optim.Adam(student.parameters(), lr=self.lr)
            for _ in range(self.epochs):
                order = torch.randperm(len(labels))
                for ids in order.split(BATCH):
                    loss = self.train_batch(student, optimizer, inputs[ids], labels[ids], ids)
            print(f"generation {generation} loss {loss:.4f}")
            with torch.no_grad():
                self._cached_predictions = student.eval()(inputs)
        return student


def main():
    torch.manual_seed(56)
    proto = torch.randn(CLASSES, DIM)
    def split(n):
        y = torch.randint(0, CLASSES, (n,))
        return proto[y] + 1.2 * torch.randn(n, DIM), y
    x, y = split(N)
    xt, yt = split(1000)
    trainer = SelfDistillationTrainer(lambda: nn.Sequential(nn.Linear(DIM, 32), nn.ReLU(), nn.Linear(32, CLASSES)))
    student = trainer.train(x, y)
    with torch.no_grad():
        print(f"last generation test accuracy {(student(xt).argmax(1) == yt).float().mean().item():.4f}")


if __name__ == "__main__":
    main()
