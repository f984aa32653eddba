"""sentence-transformers: MarginMSELoss on the differences of the teacher's scores, written beforehand."""

import tempfile

import tiny_words
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MarginMSELoss

teacher = tiny_words.embedder(32, tempfile.mkdtemp(), seed=1)
student = tiny_words.embedder(16, tempfile.mkdtemp(), seed=2)
columns = {name: tiny_words.sentences(128, seed=i) for i, name in enumerate(("query", "positive", "negative"))}


def scores(batch):
    q, p, n = (teacher.encode(batch[name], convert_to_tensor=True) for name in columns)
    return {"label": (teacher.similarity_pairwise(q, p) - teacher.similarity_pairwise(q, n)).tolist()}


data = Dataset.from_dict(columns).map(scores, batched=True)
arguments = SentenceTransformerTrainingArguments(
    tempfile.mkdtemp(), max_steps=30, per_device_train_batch_size=16, learning_rate=2e-3, use_cpu=True, report_to=[],
    save_strategy="no", disable_tqdm=True,
)  # fmt: skip
loss = MarginMSELoss(student)
SentenceTransformerTrainer(student, arguments, train_dataset=data, loss=loss).train()
