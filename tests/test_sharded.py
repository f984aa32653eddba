"""Networks whose parameters are shared out over processes and freed between uses: seen, and never read where nothing
lies. Each runs in a process of its own, which a wrong touch would end."""

import textwrap

import corpus
import pytest
import torch
from torch import nn

from kdbench.audits.observe.readable import address, copy_of, is_readable, is_still, numbers

FSDP = """
    import tempfile
    import torch, torch.distributed as dist, torch.nn.functional as F
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
        mesh = init_device_mesh("cpu", (1,))
        torch.manual_seed(0)
        X = torch.randn(512, 8)
        Y = X[:, :4].argmax(1)

        def mlp(width):
            return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 4))

        teacher, student = mlp(32), mlp(16)
        adam = torch.optim.Adam(teacher.parameters(), 1e-2)
        for _ in range(60):
            adam.zero_grad()
            F.cross_entropy(teacher(X), Y).backward()
            adam.step()
        teacher.MODE().requires_grad_(False)
        for net in (teacher, student):
            for layer in net:
                if isinstance(layer, nn.Linear):
                    fully_shard(layer, mesh=mesh)
            fully_shard(net, mesh=mesh)
        adam = torch.optim.Adam(STEPPED.parameters(), 1e-2)
        for i in range(14):
            x, y = X[i * 32 : i * 32 + 32], Y[i * 32 : i * 32 + 32]
            with torch.no_grad():
                t = teacher(x)
            s = student(x)
            kd = F.kl_div((s / 2).log_softmax(1), (t / 2).softmax(1), reduction="batchmean") * 4
            adam.zero_grad()
            (0.5 * F.cross_entropy(s, y) + 0.5 * kd).backward()
            adam.step()
        dist.destroy_process_group()
"""
FREED = """
    import torch, torch.nn.functional as F
    from torch import nn

    torch.manual_seed(0)
    X = torch.randn(512, 8)
    Y = X[:, :4].argmax(1)

    class Lent(nn.Linear):
        # Holds its weight's memory only while it answers, as offloading frameworks do.
        def forward(self, x):
            self.weight.untyped_storage().resize_(4 * self.weight.numel())
            with torch.no_grad():
                self.weight.copy_(self.kept[0])
            out = F.linear(x, self.weight.clone(), self.bias)
            self.weight.untyped_storage().resize_(0)
            return out

    teacher = nn.Sequential(Lent(8, 32), nn.ReLU(), nn.Linear(32, 4))
    teacher[0].kept = [teacher[0].weight.detach().clone()]
    adam = torch.optim.Adam(teacher[2].parameters(), 1e-2)
    for _ in range(60):
        adam.zero_grad()
        F.cross_entropy(teacher(X), Y).backward()
        adam.step()
    teacher.requires_grad_(False)
    student = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    adam = torch.optim.Adam(student.parameters(), 1e-2)
    for i in range(14):
        x, y = X[i * 32 : i * 32 + 32], Y[i * 32 : i * 32 + 32]
        s, t = student(x), teacher(x)
        kd = F.kl_div((s / 2).log_softmax(1), (t / 2).softmax(1), reduction="batchmean") * 4
        adam.zero_grad()
        (0.5 * F.cross_entropy(s, y) + 0.5 * kd).backward()
        adam.step()
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    def path(text, name, **words):
        for word, put in words.items():
            text = text.replace(word, put)
        script = tmp_path_factory.mktemp("sharded") / f"{name}.py"
        script.write_text(textwrap.dedent(text))
        return script

    scripts = {
        "correct": path(FSDP, "correct", MODE="eval", STEPPED="student"),
        "in training mode": path(FSDP, "mode", MODE="train", STEPPED="student"),
        "half is stepped": path(FSDP, "half", MODE="eval", STEPPED="student[3]"),
        "freed": path(FREED, "freed"),
    }
    return dict(zip(scripts, corpus.observe_all(list(scripts.values())), strict=True))


def test_sharded_networks_are_told_apart_and_found_right(seen):
    one = seen["correct"]
    assert one["broken"] is None and one["error"] is None
    assert one["roles"]["student"] == ["FSDPSequential (student)"]
    assert one["roles"]["teacher"] == ["FSDPSequential (teacher)"]
    assert [f for f in one["failed"] if f[1] != "info"] == []
    assert {one["status"][i] for i in ("KD101", "KD102", "KD213", "KD301", "KD302")} == {"pass"}


def test_the_same_slips_are_found_as_without_sharding(seen):
    assert seen["in training mode"]["failed"][0][0] == "KD301"
    lost = seen["half is stepped"]["failed"][0]
    assert lost[0] == "KD101" and "2 of 4 parameters" in lost[3]


def test_a_parameter_whose_memory_was_given_back_is_left_alone(seen):
    one = seen["freed"]
    assert one["broken"] is None and one["error"] is None and one["exit"] is None
    assert one["roles"]["teacher"] == ["Sequential (teacher)"]
    assert [f for f in one["failed"] if f[1] == "error"] == []


def test_what_can_be_read_is_told_from_what_cannot():
    there, freed, nowhere = torch.ones(3), torch.ones(3), torch.ones(3, device="meta")
    freed.untyped_storage().resize_(0)
    with torch._subclasses.FakeTensorMode():
        fake = torch.ones(3)
    for value in (freed, nowhere, fake):
        assert numbers(value) is None and copy_of(value) is None and not is_readable(value) and address(value) == 0
        assert is_still(value, there)
    assert is_readable(there) and is_readable(nn.Parameter(there)) and address(there) == there.data_ptr()
    assert is_still(there, torch.ones(3)) and not is_still(there, torch.zeros(3))
    assert is_readable(torch.eye(3).to_sparse()) and is_readable(torch.empty(0))
    told = []
    torch.vmap(lambda x: (told.append(is_readable(x)), x)[1])(torch.ones(2, 2))
    assert told == [False]
