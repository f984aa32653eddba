"""What the explanation costs at a real vocabulary, 151,936 words in bf16: peak memory, and the pace of the burn-in."""

import resource
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from timing import Ratio, Sides, compare_anew, in_new_process
from torch import nn

from kdbench import audits

WORDS, T, STEPS = 151_936, 2.0, 2
"Words of Qwen 2.5 and 3; the temperature; optimizer steps of one call, all of them in the burn-in."
SURE = 40
"What the teacher's head is times: one as unsure as it was made leaves less gradient than bf16 rounds off the labels'."
MEMORY, PACE = 1 / 1.1, 1 / 1.5
"The goals: at most a tenth more memory, and at most half as much time again."
SHAPES = {"8x1024": (8, 1024), "2x512": (2, 512)}
ROOM = {"8x1024": 48, "2x512": 8}
"GiB that must be free: a training holds nine tensors of the logits' size, 2.3 GiB each at 8 x 1,024."
ROUNDS, PATIENCE = 1, 2
"A call takes seconds, so there are fewer rounds than elsewhere."


class Words(nn.Module):
    """As little of a language model as has a head over its words."""

    def __init__(self, words, width):
        super().__init__()
        self.table, self.mix = nn.Embedding(words, width), nn.Linear(width, width)
        self.head = nn.Linear(width, words, bias=False)

    def forward(self, ids):
        return self.head(F.silu(self.mix(self.table(ids))))


def steps_of(shape, words, device, watched):
    """Return a call of some steps of forward KL beside the labels, as scripts write it, on whole logits."""
    torch.manual_seed(0)
    student, teacher = (Words(words, width).to(device, torch.bfloat16) for width in (32, 48))
    teacher.eval().requires_grad_(False)
    teacher.head.weight.mul_(SURE)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    ids = torch.randint(0, words, shape, device=device)

    def run():
        for _ in range(STEPS):
            with torch.no_grad():
                said = teacher(ids)[:, :-1]
            logits = student(ids)[:, :-1]
            label = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            p, q = F.log_softmax(logits / T, -1), F.softmax(said / T, -1)
            soft = F.kl_div(p, q, reduction="none").sum(-1).mean() * T * T
            optimizer.zero_grad()
            (0.5 * label + 0.5 * soft).backward()
            optimizer.step()

    def run_watched():
        with audits.watch(student=student, teacher=teacher, optimizer=optimizer) as w:
            run()
        read = {f.id: f.status for f in w.report.findings}
        if any(read[id] != "pass" for id in ("KD305", "KD312", "KD313")):  # what explains nothing costs nothing
            raise RuntimeError(f"the term was not explained: {w.report}")

    return run_watched if watched else run


def watched_and_not(shape, words, device):
    return Sides(steps_of(shape, words, device, True), steps_of(shape, words, device, False))


def peak_mb(shape, words, device, watched):
    """Return the peak in MiB of a process that trains some steps; on a GPU that of its tensors."""
    torch.set_num_threads(1)
    steps_of(shape, words, device, watched)()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def free_gib(device):
    if device.type == "cuda":
        return torch.cuda.mem_get_info()[0] / 2**30
    said = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in said if line.startswith("MemAvailable")) / 2**20


@pytest.fixture(params=SHAPES)
def training(request, sizes, device):
    """Shape, words and device; what does not fit is skipped."""
    if sizes.toy:
        return (2, 16), 512, device
    if free_gib(device) < ROOM[request.param]:
        pytest.skip(f"{ROOM[request.param]} GiB must be free for {request.param} tokens of {WORDS} words")
    return SHAPES[request.param], WORDS, device


def test_vocabulary_memory(measure, benchmark, training):
    """Peak memory of some steps that are not watched as a part of that of watched ones, imports included."""

    def of(watched):
        return in_new_process(peak_mb, *training, watched)

    first, plain, second = benchmark.pedantic(of, (True,), rounds=1), of(False), of(True)
    ratios = plain / first, plain / second
    ratio = Ratio(2 * plain / (first + second), min(ratios), max(ratios), first / second, 0.0)
    measure.claim(ratio, goal=MEMORY, peak_mb=round((first + second) / 2), unwatched_peak_mb=round(plain))


def test_vocabulary_pace(measure, benchmark, sizes, training):
    """The pace of some steps of the burn-in against the same steps that are not watched."""
    rounds, patience = (1, 1) if sizes.toy else (ROUNDS, PATIENCE)
    shape, words, device = training
    job = (compare_anew, 1, rounds, patience, device, watched_and_not, shape, words, device)
    ratio, more = benchmark.pedantic(in_new_process, job, rounds=1, iterations=1)
    measure.claim(ratio, PACE, **more)
