"""Records the two parity iterations in double precision, with plain PyTorch.

The published float32 numbers cannot be met beyond the first updates by anything, not
even by the same formulas in PyTorch with another thread count: a rectifier that flips
by rounding sends the trajectories apart (README.md beside this file). In float64
they do not part, so an independent implementation can be compared to the end.

    pip install torch
    python -m tests.parity.record_float64              # writes iteration_*_float64.npz
    python -m tests.parity.record_float64 --dtype=float32 --threads=1   # only compares

Written from the published description, without any code of this package's engine.
"""

import argparse

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tests.parity.filling import FOLDER, RECORDED, draw, fill, load

CLASSES, ROUNDS = 10, 5
WIDENS = {"iteration_wrn": (1, 1, 1), "iteration_mixed": (1, 1, 2)}
# TensorFlow keeps the slope in float32; in double precision that would show.
SLOPE = float(np.float32(0.2))


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.convShortcut = None
        if inputs != outputs:
            self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        activated = functional.relu(self.bn1(x))
        shortcut = self.convShortcut(activated) if self.convShortcut else x
        inner = functional.relu(self.bn2(self.conv1(activated)))
        return self.conv2(inner) + shortcut


class Group(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        blocks = [Block(inputs, outputs, stride), Block(outputs, outputs, 1)]
        self.layer = nn.Sequential(*blocks)

    def forward(self, x):
        return self.layer(x)


class Teacher(nn.Module):
    def __init__(self, widen):
        super().__init__()
        widths = [16, 16 * widen, 32 * widen, 64 * widen]
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.block1 = Group(widths[0], widths[1], 1)
        self.block2 = Group(widths[1], widths[2], 2)
        self.block3 = Group(widths[2], widths[3], 2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], CLASSES)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        features = functional.relu(self.bn1(x)).mean((2, 3))
        return self.fc(features), features


class Encoder(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.op = nn.Sequential(
            nn.Conv2d(inputs, inputs, 3, 2, 1, groups=inputs, bias=False),
            nn.Conv2d(inputs, inputs, 1, bias=False),
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            nn.Conv2d(inputs, inputs, 3, 1, 1, groups=inputs, bias=False),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )

    def forward(self, x):
        return self.op(x)


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared_conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.shared_layer1 = Group(16, 16, 1)
        self.shared_layer2 = Group(16, 32, 2)
        self.shared_layer3 = Group(32, 64, 2)
        self.encoder1 = nn.ModuleList(Encoder(16, 32) for _ in range(3))
        self.encoder2 = nn.ModuleList(Encoder(64, 64) for _ in range(3))
        self.encoder3 = nn.ModuleList(Encoder(128, 64) for _ in range(3))
        self.linear = nn.ModuleList(nn.Linear(64, CLASSES) for _ in range(3))

    def forward(self, x):
        u1 = self.shared_layer1(self.shared_conv(x))
        u2 = self.shared_layer2(u1)
        u3 = self.shared_layer3(u2)
        logits, features = [], []
        for header in range(3):
            a = self.encoder1[header](u1)
            a = self.encoder2[header](torch.cat([u2, a], 1))
            a = self.encoder3[header](torch.cat([u3, a], 1))
            features.append(a.mean((2, 3)))
            logits.append(self.linear[header](features[-1]))
        return torch.stack(logits), features


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.l1 = nn.Sequential(nn.Linear(256, 128 * 8 * 8))
        self.conv_blocks0 = nn.Sequential(nn.BatchNorm2d(128))
        self.conv_blocks1 = self.stage(128, 128)
        self.conv_blocks2 = self.stage(128, 64)
        last = nn.BatchNorm2d(3, affine=False)
        self.out_block = nn.Sequential(nn.Conv2d(64, 3, 3, 1, 1), nn.Tanh(), last)

    @staticmethod
    def stage(inputs, outputs):
        conv = nn.Conv2d(inputs, outputs, 3, 1, 1)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs, 0.8), nn.LeakyReLU(SLOPE))

    def forward(self, z):
        x = self.conv_blocks0(self.l1(z).view(-1, 128, 8, 8))
        x = self.conv_blocks1(functional.interpolate(x, scale_factor=2))
        x = self.conv_blocks2(functional.interpolate(x, scale_factor=2))
        return self.out_block(x)


def filled(network, salt, like, dtype):
    tensors = [
        [name, [CLASSES, *shape[1:]] if shape[0] == 100 else shape]
        for name, shape in RECORDED[like]["tensors"]
    ]
    values = {k: torch.tensor(v) for k, v in fill(salt, tensors).items()}
    missing = network.load_state_dict(values, strict=False)
    assert not missing.unexpected_keys
    assert all("num_batches" in key for key in missing.missing_keys)
    return network.to(dtype)


def watch_bn(teacher):
    """Collects (layer, mean, biased variance) of each BatchNorm's input."""
    seen = []
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(
                lambda layer, inputs, _: seen.append(
                    (
                        layer,
                        inputs[0].mean((0, 2, 3)),
                        inputs[0].var((0, 2, 3), unbiased=False),
                    )
                )
            )
    return seen


def iterate(tag, dtype):
    settings, salt = RECORDED[tag], tag.removeprefix("iteration_")
    teachers = [
        filled(Teacher(k), f"{salt}/teacher{i}", f"wrn16_{k}", dtype).eval()
        for i, k in enumerate(WIDENS[tag])
    ]
    student = filled(Student(), f"{salt}/student", "mh_wrn16_1", dtype).train()
    generator = filled(Generator(), f"{salt}/generator", "generator_32", dtype).train()
    sgd = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    adam = torch.optim.Adam(generator.parameters(), lr=1e-3)
    seen = [watch_bn(teacher) for teacher in teachers]
    w_feature, w_ensemble, w_bn = (
        settings[f"weight_{term}"] for term in ("feature", "ensemble", "bn")
    )

    def noise(name):
        return torch.tensor(draw(salt, name, (settings["batch"], 256))).to(dtype)

    rows = []
    for iteration in range(settings["iterations"]):
        for k in range(ROUNDS):
            with torch.no_grad():
                images = generator(noise(f"z{iteration}.{k}"))
                said = [teacher(images) for teacher in teachers]
            sgd.zero_grad()
            logits, features = student(images)
            header = sum((s - t).abs().mean() for s, (t, _) in zip(logits, said)) / 3
            feature = torch.zeros((), dtype=dtype)
            if w_feature:
                gaps = [(f - t).abs() for f, (_, t) in zip(features, said)]
                feature = w_feature * sum(gap.sum(1).mean() for gap in gaps) / 3
            mean = sum(t for t, _ in said) / 3
            ensemble = w_ensemble * (logits.mean(0) - mean).abs().mean()
            (header + feature + ensemble).backward()
            sgd.step()
            rows.append([header.item(), feature.item(), ensemble.item()])
        adam.zero_grad()
        for records in seen:
            records.clear()
        images = generator(noise(f"z{iteration}.g"))
        logits, _ = student(images)
        said = [teacher(images)[0] for teacher in teachers]
        attack = -sum((s - t).abs().mean() for s, t in zip(logits, said)) / 3
        bn = sum(
            (5 if index == 0 else 1)
            * ((var - layer.running_var).norm() + (mean - layer.running_mean).norm())
            for records in seen
            for index, (layer, mean, var) in enumerate(records)
        )
        bn = w_bn * bn / 3
        (attack + bn).backward()
        adam.step()
        rows.append([attack.item(), bn.item(), 0.0])
    student.eval()
    probe = draw(salt, "probe", (8, 32, 32, 3)).transpose(0, 3, 1, 2)
    with torch.no_grad():
        logits = student(torch.tensor(probe).to(dtype))[0].numpy()
    return np.array(rows), logits


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", default="float64")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for tag in WIDENS:
        losses, logits = iterate(tag, getattr(torch, arguments.dtype))
        recorded = load(tag)
        theirs = recorded["losses"][:, 2:]
        relative = np.abs(losses - theirs) / np.maximum(np.abs(theirs), 1e-9)
        gap = np.abs(logits - recorded["student_logits_eval"]).max()
        gap /= np.abs(recorded["student_logits_eval"]).max()
        print(tag, "relative to the recorded float32 numbers: worst loss per update")
        print("  ", " ".join(f"{value:.0e}" for value in relative.max(1)))
        print("   final logits", f"{gap:.2f}")
        if arguments.dtype == "float64":
            np.savez_compressed(
                FOLDER / f"{tag}_float64.npz", losses=losses, student_logits_eval=logits
            )


if __name__ == "__main__":
    main()
