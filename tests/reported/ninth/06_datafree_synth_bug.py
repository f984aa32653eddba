"""Data-free distillation: a generator looks for inputs on which the two networks disagree."""
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(31)
DIM, CLASSES, NZ = 20, 6, 16
MU = torch.randn(CLASSES, DIM) * 1.1


def real_data(n):
    y = torch.randint(0, CLASSES, (n,))
    return MU[y] + torch.randn(n, DIM), y


def mlp(*sizes, bn=False):
    mods = []
    for i, (a, b) in enumerate(zip(sizes[:-1], sizes[1:])):
        mods.append(nn.Linear(a, b))
        if i < len(sizes) - 2:
            if bn:
                mods.append(nn.BatchNorm1d(b))
            mods.append(nn.LeakyReLU(0.1))
    return nn.Sequential(*mods)


def kl(a, b, T=2.0):
    return F.kl_div(F.log_softmax(a / T, 1), F.softmax(b / T, 1), reduction="batchmean") * T * T


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp(NZ, 64, 64, DIM, bn=True)
        self.scale = nn.Parameter(torch.full((DIM,), 2.0))

    def forward(self, z):
        return torch.tanh(self.body(z)) * self.scale


class Synthesizer:
    """trains the generator and hands out batches"""

    def __init__(self, teacher, student, generator, lr, adv=1.0, oh=0.5, bal=2.0, batch=96):
        self.teacher, self.student, self.generator = teacher, student, generator
        self.opt = torch.optim.Adam(generator.parameters(), lr=lr)
        self.adv, self.oh, self.bal, self.batch = adv, oh, bal, batch
        self.last = {}

    def fit_generator(self, rounds=1):
        self.generator.train()
        self.student.eval()
        for _ in range(rounds):
            x = self.generator(torch.randn(self.batch, NZ))
            t = self.teacher(x)
            s = self.student(x)
            l_oh = F.cross_entropy(t, t.argmax(1))
            mean_p = t.softmax(1).mean(0)
            l_bal = (mean_p * mean_p.clamp(min=1e-8).log()).sum()
            l_adv = -kl(s, t)
            loss = self.adv * l_adv + self.oh * l_oh + self.bal * l_bal
            self.opt.zero_grad()
            loss.backward()
            self.opt.step()
        self.last = {"oh": l_oh.item(), "bal": l_bal.item(), "adv": l_adv.item()}

    @torch.no_grad()
    def sample(self):
        self.generator.train()
        return self.generator(torch.randn(self.batch, NZ))


@torch.no_grad()
def test(net, n=2000):
    torch.manual_seed(12345)
    x, y = real_data(n)
    return (net(x).argmax(1) == y).float().mean().item()


def train_teacher():
    net = mlp(DIM, 96, 96, CLASSES)
    opt = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(250):
        x, y = real_data(128)
        loss = F.cross_entropy(net(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
    return net.eval()


def main():
    teacher = train_teacher()
    for p in teacher.parameters():
        p.requires_grad_(False)
    print(f"teacher accuracy {test(teacher):.3f}")

    torch.manual_seed(2)
    student = mlp(DIM, 32, CLASSES)
    generator = Generator()
    synth = Synthesizer(teacher, teacher, generator, lr=2e-3)
    opt = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    for step in range(100):
        synth.fit_generator()
        x = synth.sample()
        student.train()
        loss = kl(student(x), teacher(x))
        opt.zero_grad()
        loss.backward()
        opt.step()
        if step % 25 == 24:
            g = " ".join(f"{k} {v:.4f}" for k, v in synth.last.items())
            print(f"step {step + 1} student kl {loss.item():.4f} | generator {g}")
    print(f"student accuracy on real data {test(student):.3f}")


if __name__ == "__main__":
    main()
