"""sentence-transformers: MSELoss on embeddings that the teacher wrote beforehand, as its documentation shows it."""

import tempfile

import tiny_words
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MSELoss

teacher = tiny_words.embedder(16, tempfile.mkdtemp(), seed=1)
student = tiny_words.embedder(16, tempfile.mkdtemp(), seed=2)
data = Dataset.from_dict({"sentence": tiny_words.sentences(128)})
data = data.map(lambda batch: {"label": teacher.encode(batch["sentence"])}, batched=True)
arguments = SentenceTransformerTrainingArguments(
    tempfile.mkdtemp(), max_steps=30, per_device_train_batch_size=16, learning_rate=2e-3, use_cpu=True, report_to=[],
    save_strategy="no", disable_tqdm=True,
)  # fmt: skip
SentenceTransformerTrainer(student, arguments, train_dataset=data, loss=MSELoss(student)).train()
