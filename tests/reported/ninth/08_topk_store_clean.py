"""Offline distillation of a character model: the large model's top-k answers are written once, then read back."""
import os
import tempfile

import torch
import torch.nn as nn
from torch.utils.data import DataLoader, Dataset

K, VOCAB, T_LEN, N_SEQ = 6, 32, 16, 192
torch.manual_seed(40)

# order-2 source: the next symbol depends on the two before
base = torch.randn(VOCAB, VOCAB) * 1.6
bigram = torch.randn(VOCAB, VOCAB) * 1.6


def draw(n, t=T_LEN + 1):
    seq = torch.randint(0, VOCAB, (n, 2))
    while seq.shape[1] < t:
        p = (base[seq[:, -1]] + 0.6 * bigram[seq[:, -2]]).softmax(-1)
        seq = torch.cat([seq, torch.multinomial(p, 1)], 1)
    return seq


class CharGRU(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.emb = nn.Embedding(VOCAB, width)
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.out = nn.Linear(width, VOCAB)

    def forward(self, x):
        return self.out(self.rnn(self.emb(x))[0])


def write_store(net, data, folder):
    net.eval()
    for n, seq in enumerate(data):
        with torch.no_grad():
            logp = net(seq[None, :-1]).log_softmax(-1)[0]
        val, idx = logp.topk(K, dim=-1)
        # ascending ids, so that they can be packed as differences
        idx, order = idx.sort(dim=-1)
        val = val.gather(-1, order)
        delta = torch.diff(idx, dim=-1, prepend=torch.zeros_like(idx[:, :1]))
        torch.save({"delta": delta.to(torch.uint8), "logp": val.half()}, os.path.join(folder, f"{n:05d}.pt"))


class StoredDistillSet(Dataset):
    def __init__(self, data, folder):
        self.data, self.folder = data, folder

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        rec = torch.load(os.path.join(self.folder, f"{i:05d}.pt"))
        return self.data[i], rec["delta"].long().cumsum(-1), rec["logp"].float()


def topk_kl(logits, ids, logp):
    """KL over the k kept symbols and one bucket for all others"""
    lq = logits.log_softmax(-1)
    lq_k = lq.gather(-1, ids)
    p = logp.exp()
    rest_p = (1 - p.sum(-1)).clamp(min=1e-4)
    rest_q = (1 - lq_k.exp().sum(-1)).clamp(min=1e-4)
    kl = (p * (logp - lq_k)).sum(-1) + rest_p * (rest_p.log() - rest_q.log())
    return kl.mean()


@torch.no_grad()
def nll(net):
    st = torch.get_rng_state()
    torch.manual_seed(555)
    seq = draw(200)
    torch.set_rng_state(st)
    net.eval()
    out = net(seq[:, :-1])
    return nn.functional.cross_entropy(out[:, 1:].flatten(0, 1), seq[:, 2:].flatten()).item()


def main():
    large = CharGRU(64)
    opt = torch.optim.Adam(large.parameters(), lr=1e-2)
    for _ in range(110):
        seq = draw(32)
        out = large(seq[:, :-1])
        loss = nn.functional.cross_entropy(out.flatten(0, 1), seq[:, 1:].flatten())
        opt.zero_grad()
        loss.backward()
        opt.step()
    print(f"large nll {nll(large):.3f} (uniform {torch.log(torch.tensor(float(VOCAB))):.3f})")

    data = draw(N_SEQ)
    with tempfile.TemporaryDirectory() as folder:
        write_store(large, data, folder)
        loader = DataLoader(StoredDistillSet(data, folder), batch_size=24, shuffle=True)
        torch.manual_seed(41)
        little = CharGRU(32)
        opt = torch.optim.Adam(little.parameters(), lr=1e-2)
        for ep in range(10):
            total = 0.0
            little.train()
            for seq, ids, logp in loader:
                loss = topk_kl(little(seq[:, :-1]), ids, logp)
                opt.zero_grad()
                loss.backward()
                opt.step()
                total += loss.item()
            if ep % 5 == 4:
                print(f"epoch {ep + 1} kl {total / len(loader):.4f}")
    print(f"little nll {nll(little):.3f}")


if __name__ == "__main__":
    main()
