"""sentence-transformers: DistillKLDivLoss on the teacher's scores of three passages, written beforehand."""

import tempfile

import tiny_words
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss

teacher = tiny_words.embedder(32, tempfile.mkdtemp(), seed=1)
student = tiny_words.embedder(16, tempfile.mkdtemp(), seed=2)
names = ("query", "positive", "negative1", "negative2")
columns = {name: tiny_words.sentences(128, seed=i) for i, name in enumerate(names)}


def scores(batch):
    q, *passages = (teacher.encode(batch[name], convert_to_tensor=True) for name in names)
    return {"label": torch.stack([teacher.similarity_pairwise(q, p) for p in passages], 1).tolist()}


data = Dataset.from_dict(columns).map(scores, batched=True)
arguments = SentenceTransformerTrainingArguments(
    tempfile.mkdtemp(), max_steps=30, per_device_train_batch_size=16, learning_rate=2e-3, use_cpu=True, report_to=[],
    save_strategy="no", disable_tqdm=True,
)  # fmt: skip
loss = DistillKLDivLoss(student, temperature=2.0)
SentenceTransformerTrainer(student, arguments, train_dataset=data, loss=loss).train()
