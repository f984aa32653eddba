"""Teacher and student behind nn.DataParallel; the teacher checkpoint carries the 'module.' prefix."""

import pathlib
import tempfile

import torch
import torch.nn as nn
import torch.nn.functional as F

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.manual_seed(123)

num_classes, image_size, batch_size, temperature = 5, 32, 40, 4.0


class VGGish(nn.Module):
    def __init__(self, plan):
        super().__init__()
        modules, c_in = [], 3
        for item in plan:
            if item == "M":
                modules.append(nn.MaxPool2d(2))
            else:
                modules += [nn.Conv2d(c_in, item, kernel_size=3, padding=1), nn.BatchNorm2d(item), nn.ReLU(True)]
                c_in = item
        self.features = nn.Sequential(*modules)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(c_in * 16, num_classes))

    def forward(self, x):
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 4))


def teacher_net():
    return VGGish([8, "M", 16, "M", 24])


def student_net():
    return VGGish([6, "M", 8, "M"])


def synth(n, seed):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (n,), generator=g)
    noise = torch.randn(n, 3, image_size, image_size, generator=g)
    return (templates[labels] + 1.6 * noise).to(device), labels.to(device)


def evaluate(net, images, labels):
    net.eval()
    with torch.no_grad():
        predicted = torch.cat([net(chunk).argmax(1) for chunk in images.split(100)])
    return predicted.eq(labels).float().mean().item()


def pretrain_teacher(path, images, labels):
    net = nn.DataParallel(teacher_net()).to(device)
    opt = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(2):
        for idx in torch.randperm(len(images)).split(batch_size):
            opt.zero_grad()
            F.cross_entropy(net(images[idx]), labels[idx]).backward()
            opt.step()
    torch.save({"epoch": 2, "state_dict": net.state_dict()}, path)


def load_teacher(path):
    net = teacher_net()
    state = torch.load(path, map_location="cpu")["state_dict"]
    state = {name.removeprefix("module."): value for name, value in state.items()}
    net.load_state_dict(state)
    return nn.DataParallel(net).to(device)


templates = torch.randn(num_classes, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
train_images, train_labels = synth(400, seed=1)
test_images, test_labels = synth(200, seed=2)

path = pathlib.Path(tempfile.mkdtemp()) / "vgg_teacher.pt"
pretrain_teacher(path, train_images, train_labels)
teacher = load_teacher(path)
print("teacher: %.3f" % evaluate(teacher, test_images, test_labels))

student = nn.DataParallel(student_net()).to(device)
optimizer = torch.optim.SGD(student.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
criterion_kd = nn.KLDivLoss(reduction="batchmean", log_target=True)
criterion_ce = nn.CrossEntropyLoss()

for epoch in range(3):
    student.train()
    teacher.eval()
    for idx in torch.randperm(len(train_images)).split(batch_size):
        images, labels = train_images[idx], train_labels[idx]
        outputs = student(images)
        with torch.no_grad():
            teacher_outputs = teacher(images)
        loss_kd = criterion_kd(
            F.log_softmax(outputs / temperature, dim=1),
            F.log_softmax(teacher_outputs / temperature, dim=1),
        )
        loss = criterion_ce(outputs, labels) + 0.5 * temperature**2 * loss_kd
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print("epoch %d loss %.3f acc %.3f" % (epoch, loss.item(), evaluate(student, test_images, test_labels)))
print("student: %.3f" % evaluate(student, test_images, test_labels))
