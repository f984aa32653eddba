import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(45)


class LoRAConv(nn.Module):
    def __init__(self, conv, r=4):
        super().__init__()
        self.conv = conv.requires_grad_(False)
        self.a = nn.Conv2d(conv.in_channels, r, conv.kernel_size, conv.stride, conv.padding, bias=False)
        self.b = nn.Conv2d(r, conv.out_channels, 1, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x):
        return self.conv(x) + self.b(self.a(x))


class Backbone(nn.Module):
    def __init__(self, c=16):
        super().__init__()
        self.layer1, self.layer2 = nn.Conv2d(1, c, 3, 2, 1), nn.Conv2d(c, c, 3, 2, 1)
        self.layer3, self.head = nn.Conv2d(c, c, 3, 1, 1), nn.Conv2d(c, 3, 1)

    def forward(self, x):
        for layer in (self.layer1, self.layer2, self.layer3):
            x = F.relu(layer(x))
        return self.head(x)


class HierarchicalDistiller:
    """Caches layer outputs of both networks by forward hooks."""

    LEVELS = ("layer1", "layer2", "layer3")
    def __init__(self, student, teacher):
        self.student, self.teacher, self.cache_s, self.cache_t = student, teacher, {}, {}
        for name in self.LEVELS:
            getattr(student, name).register_forward_hook(self._keep(self.cache_s, name))
            getattr(teacher, name).register_forward_hook(self._keep(self.cache_t, name))

    @staticmethod
    def _keep(cache, name):
        return lambda module, inputs, output: cache.__setitem__(name, output)

    def compute_hierarchical_distillation_loss(self, images):
        self.cache_t.clear()
        with torch.no_grad():
            self.teacher(images)
        total = 0.0
        for name in self.LEVELS:
            s, t = self.cache_s[name], self.cache_t[name]
            total = total + (1 - F.cosine_similarity(s.flatten(1), t.flatten(1), dim=1)).mean()
        return total / len(self.LEVELS)


def scenes(n=16, invert=False):
    x, y = 0.3 * torch.randn(n, 1, 16, 16), torch.zeros(n, 4, 4, dtype=torch.long)
    for i in range(n):
        for k in (1, 2):
            r, c = torch.randint(0, 4, (2,)).tolist()
            x[i, 0, 4 * r:4 * r + 4, 4 * c:4 * c + 4] += 1.5 if (k == 1) != invert else -1.5
            y[i, r, c] = k
    return x, y


teacher = Backbone()
opt = torch.optim.Adam(teacher.parameters(), lr=5e-3)
for _ in range(60):
    x, y = scenes()
    opt.zero_grad(); F.cross_entropy(teacher(x), y).backward(); opt.step()
teacher.eval().requires_grad_(False)

student = Backbone()
student.load_state_dict(teacher.state_dict())
for n in HierarchicalDistiller.LEVELS:
    setattr(student, n, LoRAConv(getattr(student, n)))
distiller = HierarchicalDistiller(student, teacher)
optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=3e-3)
for step in range(80):
    x, y = scenes(invert=True)
    det = F.cross_entropy(student(x), y)
    hier = distiller.compute_hierarchical_distillation_loss(x)
    (det + 2.0 * hier).backward()
    optimizer.step(); optimizer.zero_grad()
    if step % 20 == 0:
        print(f"step {step} det {det.item():.4f} hier {hier.item():.4f}")
print(f"final det {det.item():.4f} hier {hier.item():.4f}")
