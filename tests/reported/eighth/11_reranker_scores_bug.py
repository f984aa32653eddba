"""Compress a passage reranker: pointwise score regression from a larger cross-encoder."""
from dataclasses import dataclass

import torch
from scipy.stats import spearmanr
from torch.nn import MSELoss
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForSequenceClassification, get_linear_schedule_with_warmup

CLS, SEP, PAD = 1, 2, 0


@dataclass
class Hyper:
    vocab_size: int = 43
    query_len: int = 4
    passage_len: int = 10
    lr: float = 3e-3
    epochs: int = 3
    batch_size: int = 16


def synth(hp, n, seed):
    """Queries live in the upper half of the vocabulary. Relevance = share of such tokens in the passage, plus noise."""
    g = torch.Generator().manual_seed(seed)
    half = (hp.vocab_size - 3) // 2
    topic = torch.ones(n, 1, dtype=torch.long)
    draw = lambda which, width: torch.randint(3, 3 + half, (n, width), generator=g) + which * half
    query = draw(topic, hp.query_len)
    share = torch.rand(n, 1, generator=g)
    on_topic = torch.rand(n, hp.passage_len, generator=g) < share
    passage = draw(torch.where(on_topic, topic, 1 - topic), hp.passage_len)
    keep = torch.arange(hp.passage_len) < torch.randint(5, hp.passage_len + 1, (n, 1), generator=g)
    hits = (on_topic & keep).sum(1) / keep.sum(1)
    col = lambda t: torch.full((n, 1), t)
    ids = torch.cat([col(CLS), query, col(SEP), passage * keep], dim=1)
    mask = torch.cat([torch.ones(n, hp.query_len + 2, dtype=torch.long), keep.long()], dim=1)
    seg = torch.cat([torch.zeros(n, hp.query_len + 2), torch.ones(n, hp.passage_len)], dim=1).long()
    labels = 4 * hits + 0.3 * torch.randn(n, generator=g)
    return TensorDataset(ids, mask, seg, labels)


def cross_encoder(hp, width, depth):
    return BertForSequenceClassification(BertConfig(
        vocab_size=hp.vocab_size, hidden_size=width, num_hidden_layers=depth, num_attention_heads=4,
        intermediate_size=2 * width, max_position_embeddings=32, num_labels=1, pad_token_id=PAD))


def score(model, batch):
    ids, mask, seg, _ = batch
    return model(input_ids=ids, attention_mask=mask, token_type_ids=seg).logits.view(-1)


def fit_teacher(hp, data):
    model = cross_encoder(hp, 64, 2)
    opt = torch.optim.AdamW(model.parameters(), lr=1.5e-3)
    model.train()
    for _ in range(4):
        for batch in DataLoader(data, batch_size=32, shuffle=True):
            loss = MSELoss()(score(model, batch), batch[-1])
            opt.zero_grad()
            loss.backward()
            opt.step()
    print(f"teacher mse {loss.item():.4f}")
    return model.eval().requires_grad_(False)


@torch.no_grad()
def rank_correlation(model, data):
    model.eval()
    preds, gold = [], []
    for batch in DataLoader(data, batch_size=64):
        preds.append(score(model, batch))
        gold.append(batch[-1])
    return spearmanr(torch.cat(preds).numpy(), torch.cat(gold).numpy()).statistic


def distill(hp, teacher, student, data):
    loader = DataLoader(data, batch_size=hp.batch_size, shuffle=True)
    total = hp.epochs * len(loader)
    opt = torch.optim.AdamW(student.parameters(), lr=hp.lr, weight_decay=0.01)
    sched = get_linear_schedule_with_warmup(opt, total // 10, total)
    loss_mse = MSELoss()
    for epoch in range(hp.epochs):
        student.train()
        running = gap = 0.0
        for batch in loader:
            labels = batch[-1]
            with torch.no_grad():
                teacher_scores = score(teacher, batch)
            student_scores = score(student, batch)
            loss = loss_mse(student_scores, labels.view(-1))
            opt.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            opt.step()
            sched.step()
            running += loss.item()
            gap += (student_scores.detach() - teacher_scores).abs().mean().item()
        print(f"epoch {epoch}: loss {running / len(loader):.4f} |student-teacher| {gap / len(loader):.4f}")
    return running / len(loader)


if __name__ == "__main__":
    torch.manual_seed(9)
    hp = Hyper()
    train, dev = synth(hp, 512, 1), synth(hp, 128, 2)
    teacher = fit_teacher(hp, train)
    student = cross_encoder(hp, 32, 1)
    final = distill(hp, teacher, student, train)
    print(f"spearman dev: teacher {rank_correlation(teacher, dev):.3f} student {rank_correlation(student, dev):.3f}")
    print(f"final loss {final:.4f}")
