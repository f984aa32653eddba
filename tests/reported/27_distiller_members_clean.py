"""A Keras-like Distiller: compile, fit, evaluate."""
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits


class Distiller:
    def __init__(self, student, teacher):
        self.teacher = teacher
        self.student = student

    def compile(self, optimizer, alpha=0.1, temperature=3.0):
        self.optimizer = optimizer(self.student.parameters())
        self.alpha, self.temperature = alpha, temperature

    def train_step(self, x, y):
        with torch.no_grad():
            teacher_predictions = self.teacher(x)
        student_predictions = self.student(x)
        student_loss = F.cross_entropy(student_predictions, y)
        distillation_loss = F.kl_div(F.log_softmax(student_predictions / self.temperature, 1),
                                     F.softmax(teacher_predictions / self.temperature, 1),
                                     reduction="batchmean") * self.temperature ** 2
        loss = self.alpha * student_loss + (1 - self.alpha) * distillation_loss
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"student_loss": student_loss.item(), "distillation_loss": distillation_loss.item()}

    def fit(self, x, y, epochs, batch_size=64):
        self.teacher.eval()
        self.student.train()
        for e in range(epochs):
            for b in torch.randperm(len(y)).split(batch_size):
                logs = self.train_step(x[b], y[b])
            print(f"Epoch {e + 1}/{epochs}", {k: round(v, 4) for k, v in logs.items()})

    @torch.no_grad()
    def evaluate(self, x, y):
        self.student.eval()
        return (self.student(x).argmax(1) == y).float().mean().item()


def make(c1, c2):
    return nn.Sequential(nn.Conv2d(1, c1, 3, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(c1, c2, 3, 2, 1), nn.LeakyReLU(0.2),
                         nn.Flatten(), nn.Linear(4 * c2, 10))


torch.manual_seed(27)
data = load_digits()
X, Y = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)
x_train, y_train, x_test, y_test = X[:1400], Y[:1400], X[1400:], Y[1400:]
teacher, student = make(32, 64), make(8, 16)
opt = torch.optim.Adam(teacher.parameters(), lr=2e-3)
for _ in range(120):
    i = torch.randint(0, 1400, (64,))
    opt.zero_grad(); F.cross_entropy(teacher(x_train[i]), y_train[i]).backward(); opt.step()

distiller = Distiller(student=student, teacher=teacher)
distiller.compile(lambda p: torch.optim.Adam(p, lr=2e-3), alpha=0.1, temperature=4.0)
distiller.fit(x_train, y_train, epochs=5)
print(f"accuracy {distiller.evaluate(x_test, y_test):.4f}")
torch.save(student.state_dict(), "/tmp/kd_student.pt")
