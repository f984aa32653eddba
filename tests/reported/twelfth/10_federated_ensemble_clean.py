"""Federated distillation: a server model learns from the ensemble of its clients.

Every round each client fine-tunes the current global model on its own private data and
sends back its weights; the server averages the clients' predictions on public data.
"""
import torch
from torch import nn
import torch.nn.functional as F

N_CLIENTS, CLASSES, DIM = 4, 8, 10


def make_net():
    return nn.Sequential(nn.Linear(DIM, 40), nn.ReLU(), nn.Linear(40, CLASSES))


class Population:
    """Gaussian classes; each client owns mostly two of them."""

    def __init__(self, seed=0):
        self.g = torch.Generator().manual_seed(seed)
        self.centre = 1.1 * torch.randn(CLASSES, DIM, generator=self.g)

    def draw(self, y):
        return self.centre[y] + torch.randn(len(y), DIM, generator=self.g), y

    def client(self, k, n=240):
        own = torch.randint(0, 2, (n,), generator=self.g) + 2 * k
        other = torch.randint(0, CLASSES, (n,), generator=self.g)
        return self.draw(torch.where(torch.rand(n, generator=self.g) < 0.7, own, other))

    def uniform(self, n):
        return self.draw(torch.randint(0, CLASSES, (n,), generator=self.g))


def local_training(worker, data, steps, g):
    x, y = data
    opt = torch.optim.SGD(worker.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        pick = torch.randint(0, len(y), (40,), generator=g)
        loss = F.cross_entropy(worker(x[pick]), y[pick])
        opt.zero_grad()
        loss.backward()
        opt.step()
    return {k: v.detach().clone() for k, v in worker.state_dict().items()}


def collect_updates(global_net, clients, g):
    worker = make_net()
    updates = []
    for data in clients:
        worker.load_state_dict(global_net.state_dict())
        updates.append(local_training(worker, data, steps=25, g=g))
    return updates


class EnsembleTeacher:
    def __init__(self, updates):
        self.members = []
        for state in updates:
            net = make_net()
            net.load_state_dict(state)
            self.members.append(net.eval())

    @torch.no_grad()
    def __call__(self, x):
        return torch.stack([net(x).softmax(-1) for net in self.members]).mean(0)


def server_distillation(global_net, teacher, public_x, steps, g):
    opt = torch.optim.Adam(global_net.parameters(), lr=3e-3)
    total = 0.0
    for _ in range(steps):
        x = public_x[torch.randint(0, len(public_x), (64,), generator=g)]
        loss = F.kl_div(global_net(x).log_softmax(-1), teacher(x), reduction="batchmean")
        opt.zero_grad()
        loss.backward()
        opt.step()
        total += loss.item()
    return total / steps


@torch.no_grad()
def accuracy(predict, data):
    x, y = data
    return (predict(x).argmax(-1) == y).float().mean().item()


def main():
    torch.manual_seed(0)
    people = Population()
    clients = [people.client(k) for k in range(N_CLIENTS)]
    public_x, test = people.uniform(600)[0], people.uniform(800)
    g = torch.Generator().manual_seed(1)
    global_net = make_net()
    for round_ in range(4):
        updates = collect_updates(global_net, clients, g)
        teacher = EnsembleTeacher(updates)
        kd = server_distillation(global_net, teacher, public_x, steps=40, g=g)
        print(f"round {round_}: ensemble accuracy {accuracy(teacher, test):.3f}  "
              f"distillation loss {kd:.4f}  server accuracy {accuracy(global_net, test):.3f}")


if __name__ == "__main__":
    main()
