import torch
import torch.nn as nn
import torch.nn.functional as F

VOCAB, K, T_LEN = 48, 4, 12


def lm(width, seed):
    torch.manual_seed(seed)
    return nn.ModuleDict({"emb": nn.Embedding(VOCAB, width), "rnn": nn.LSTM(width, width, batch_first=True),
                          "head": nn.Linear(width, VOCAB)})


def run(net, ids):
    return net["head"](net["rnn"](net["emb"](ids))[0])


def rollouts(n, gen):
    first = torch.randint(0, VOCAB, (n, 1), generator=gen)
    ids = (first + torch.randint(1, 4, (n, T_LEN), generator=gen).cumsum(1)) % VOCAB
    mask = torch.arange(T_LEN - 1)[None] < torch.randint(5, T_LEN, (n, 1), generator=gen)
    return ids, mask


class TeacherServer:
    """Answers with the top-k log-probabilities only, as an inference server does."""

    def __init__(self, net):
        self.net = net.eval()

    @torch.no_grad()
    def score(self, ids):
        lp = F.log_softmax(run(self.net, ids), -1)
        return lp.topk(K, dim=-1)


def forward_kl_topk(student_logits, t_lp, t_ids):
    s_lp = F.log_softmax(student_logits, -1).gather(-1, t_ids)
    p = t_lp.exp()
    loss = (p * (t_lp - s_lp)).sum(-1)
    p_tail = (1 - p.sum(-1)).clamp_min(1e-6)
    q_tail = (1 - s_lp.exp().sum(-1)).clamp_min(1e-6)
    return loss + p_tail * (p_tail.log() - q_tail.log())


if __name__ == "__main__":
    gen = torch.Generator().manual_seed(4)
    teacher, student = lm(40, 0), lm(20, 1)
    opt = torch.optim.Adam(teacher.parameters(), lr=1e-2)
    for _ in range(60):
        ids, m = rollouts(32, gen)
        ce = F.cross_entropy(run(teacher, ids)[:, :-1].transpose(1, 2), ids[:, 1:])
        opt.zero_grad(); ce.backward(); opt.step()
    server = TeacherServer(teacher)
    opt = torch.optim.Adam(student.parameters(), lr=6e-3)
    for step in range(100):
        ids, mask = rollouts(32, gen)
        t_lp, t_ids = server.score(ids)
        logits = run(student, ids)
        per_token = forward_kl_topk(logits[:, :-1], t_lp[:, :-1], t_ids[:, :-1])
        loss = per_token[mask].mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        if step % 25 == 0:
            print(f"[{step}] distill {loss.item():.4f} min {per_token[mask].min().item():.4f}")
    with torch.no_grad():
        ids, mask = rollouts(128, gen)
        full = F.kl_div(F.log_softmax(run(student, ids), -1), F.log_softmax(run(teacher, ids), -1),
                        log_target=True, reduction="none").sum(-1)[:, :-1]
    print(f"full-vocabulary KL {full[mask].mean().item():.4f}")
