"""Two-stage distillation of a tiny BERT on a similarity-score task (stage 1 hidden states, stage 2 predictions)."""
import torch
from torch.nn import CrossEntropyLoss, Linear, MSELoss
from transformers import BertConfig, BertForSequenceClassification

torch.manual_seed(0)


def bert(hidden, layers, num_labels=1):
    cfg = BertConfig(vocab_size=50, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=2,
                     intermediate_size=2 * hidden, max_position_embeddings=24, num_labels=num_labels,
                     hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return BertForSequenceClassification(cfg)


def batch(n=16):
    a = torch.randint(3, 50, (n, 8))
    keep = torch.rand(n, 1)
    b = torch.where(torch.rand(n, 8) < keep, a, torch.randint(3, 50, (n, 8)))
    ids = torch.cat([torch.ones(n, 1).long(), a, torch.full((n, 1), 2), b], 1)
    types = torch.cat([torch.zeros(n, 10).long(), torch.ones(n, 8).long()], 1)
    score = 5 * (a == b).float().mean(1) + 0.7 * torch.randn(n)
    return dict(input_ids=ids, token_type_ids=types, attention_mask=torch.ones_like(ids)), score


teacher_model = bert(48, 2)
opt = torch.optim.AdamW(teacher_model.parameters(), lr=1e-3)
for _ in range(80):
    x, y = batch(24)
    loss = MSELoss()(teacher_model(**x).logits.view(-1), y)
    opt.zero_grad(); loss.backward(); opt.step()
teacher_model.eval()

student_model = bert(24, 1)
fit_dense = Linear(24, 48)
output_mode, temperature = "regression", 1.0
optimizer = torch.optim.AdamW([*student_model.parameters(), *fit_dense.parameters()], lr=2e-3)
loss_mse = MSELoss()

for step in range(100):
    pred_distill = step >= 40
    x, label_ids = batch(24)
    student = student_model(**x, output_hidden_states=True)
    with torch.no_grad():
        teacher = teacher_model(**x, output_hidden_states=True)
    student_logits, teacher_logits = student.logits, teacher.logits
    if not pred_distill:
        rep_loss = loss_mse(fit_dense(student.hidden_states[0]), teacher.hidden_states[0])
        rep_loss = rep_loss + loss_mse(fit_dense(student.hidden_states[-1]), teacher.hidden_states[-1])
        loss = rep_loss
    elif output_mode == "classification":
        soft = torch.softmax(teacher_logits / temperature, -1)
        loss = CrossEntropyLoss()(student_logits / temperature, soft)
    else:
        loss = loss_mse(student_logits.view(-1), teacher_logits.view(-1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 30 == 0:
        print(f"step {step} pred_distill={pred_distill} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")
