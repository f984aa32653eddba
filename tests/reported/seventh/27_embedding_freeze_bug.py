"""Feature distillation of an identity-embedding network (student imitates unit-norm embeddings)."""
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(27)
torch.set_num_threads(1)


class Identities:
    """observations of people: latent code -> 40 measurements, with pose noise"""

    def __init__(self, people=60, seed=27):
        self.g = torch.Generator().manual_seed(seed)
        self.codes = torch.randn(people, 10, generator=self.g)
        self.lift = torch.randn(14, 40, generator=self.g) / 3

    def sample(self, n):
        who = torch.randint(0, len(self.codes), (n,), generator=self.g)
        pose = torch.randn(n, 4, generator=self.g)
        x = torch.tanh(torch.cat([self.codes[who], pose], 1) @ self.lift)
        return x + 0.1 * torch.randn(n, 40, generator=self.g), who


def trunk(width, out=24):
    return nn.Sequential(nn.Linear(40, width), nn.PReLU(), nn.Linear(width, width), nn.PReLU(), nn.Linear(width, out))


class Distillation(nn.Module):
    def __init__(self, teacher_embedding_model, student_embedding_model, feat_dim=12):
        super().__init__()
        self.teacher = self.get_teacher(teacher_embedding_model)
        self.student = student_embedding_model
        self.head = nn.Linear(feat_dim, 24)

    @staticmethod
    def get_teacher(model):
        model.eval()
        return model

    def training_step(self, x):
        target = F.normalize(self.teacher(x), dim=-1)
        pred = F.normalize(self.head(self.student(x)), dim=-1)
        return (pred - target).pow(2).sum(-1).mean()

    def configure_optimizers(self, lr):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=lr, weight_decay=1e-4)


@torch.no_grad()
def top1(embed, gallery, probe):
    g, p = F.normalize(embed(gallery[0]), dim=-1), F.normalize(embed(probe[0]), dim=-1)
    return (gallery[1][(p @ g.T).argmax(1)] == probe[1]).float().mean().item()


world = Identities()
train, gallery, probe = world.sample(4000), world.sample(600), world.sample(400)

teacher, classes = trunk(128), nn.Linear(24, 60, bias=False)
opt = torch.optim.Adam([*teacher.parameters(), *classes.parameters()], lr=2e-3)
for step in range(350):
    i = torch.randint(0, 4000, (128,), generator=world.g)
    cos = F.normalize(teacher(train[0][i]), dim=-1) @ F.normalize(classes.weight, dim=-1).T
    opt.zero_grad()
    F.cross_entropy(12 * cos, train[1][i]).backward()
    opt.step()
print(f"teacher retrieval {top1(teacher, gallery, probe):.3f}")

method = Distillation(teacher, trunk(40, 12))
opt = method.configure_optimizers(lr=3e-3)
print("trainable tensors", sum(len(group["params"]) for group in opt.param_groups))
for step in range(1, 601):
    method.student.train()
    i = torch.randint(0, 4000, (128,), generator=world.g)
    loss = method.training_step(train[0][i])
    opt.zero_grad()
    loss.backward()
    opt.step()
    if step % 120 == 0:
        method.student.eval()
        s = top1(lambda x: method.head(method.student(x)), gallery, probe)
        print(f"step {step} loss {loss.item():.4f} retrieval student {s:.3f} teacher {top1(method.teacher, gallery, probe):.3f}")
