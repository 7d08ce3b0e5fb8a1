"""Plain PyTorch networks from the published description, to compare with.

None of this package's code is used: `tests/parity/record_float64.py` compares the
engine's arithmetic with these, `pytorch_loop.py` its speed. Modules carry the names of
published checkpoints.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

# TensorFlow keeps the slope in float32; in double precision that would show.
SLOPE = float(np.float32(0.2))


class PreActivationBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.convShortcut = None
        if inputs != outputs or stride != 1:
            self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        activated = functional.relu(self.bn1(x))
        shortcut = self.convShortcut(activated) if self.convShortcut else x
        inner = functional.relu(self.bn2(self.conv1(activated)))
        return self.conv2(inner) + shortcut


class BasicBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if inputs != outputs or stride != 1:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x):
        shortcut = self.downsample(x) if self.downsample else x
        inner = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(inner)) + shortcut)


class Group(nn.Module):
    def __init__(self, block, count, inputs, outputs, stride):
        super().__init__()
        blocks = [block(inputs, outputs, stride)]
        blocks += [block(outputs, outputs, 1) for _ in range(count - 1)]
        self.layer = nn.Sequential(*blocks)

    def forward(self, x):
        return self.layer(x)


def trunk(family, counts, widths, channels):
    """Stem and stages. `widths`: the stem's, then each stage's."""
    stem = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
    block = PreActivationBlock if family == "wrn" else BasicBlock
    if family == "resnet":
        stem = nn.Sequential(stem, nn.BatchNorm2d(widths[0]), nn.ReLU())
    strides = (1, *(2,) * (len(counts) - 1))
    stages = [
        Group(block, *arguments)
        for arguments in zip(counts, widths, widths[1:], strides)
    ]
    return stem, stages


class Teacher(nn.Module):
    """Answers logits and pooled features."""

    def __init__(self, family, counts, widths, classes, channels=3):
        super().__init__()
        self.conv1, stages = trunk(family, counts, widths, channels)
        self.stages = len(stages)
        for index, stage in enumerate(stages, start=1):
            setattr(self, f"block{index}", stage)
        self.bn1 = nn.BatchNorm2d(widths[-1]) if family == "wrn" else None
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, x):
        x = self.conv1(x)
        for index in range(1, self.stages + 1):
            x = getattr(self, f"block{index}")(x)
        if self.bn1:
            x = functional.relu(self.bn1(x))
        features = x.mean((2, 3))
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
    """Multi-level student: answers logits `(H, B, C)` and each header's features."""

    def __init__(self, family, counts, widths, classes, channels=3, headers=3):
        super().__init__()
        self.shared_conv, stages = trunk(family, counts, widths, channels)
        self.headers, self.levels = headers, len(stages)
        levels = widths[1:]
        outputs = (*levels[1:], levels[-1])
        climbed = 0
        for level, (own, output) in enumerate(zip(levels, outputs), start=1):
            setattr(self, f"shared_layer{level}", stages[level - 1])
            encoders = [Encoder(own + climbed, output) for _ in range(headers)]
            setattr(self, f"encoder{level}", nn.ModuleList(encoders))
            climbed = output
        answers = [nn.Linear(climbed, classes) for _ in range(headers)]
        self.linear = nn.ModuleList(answers)

    def forward(self, x):
        x, maps = self.shared_conv(x), []
        for level in range(1, self.levels + 1):
            x = getattr(self, f"shared_layer{level}")(x)
            maps.append(x)
        logits, features = [], []
        for header in range(self.headers):
            climbed = None
            for level, own in enumerate(maps, start=1):
                read = own if climbed is None else torch.cat([own, climbed], 1)
                climbed = getattr(self, f"encoder{level}")[header](read)
            features.append(climbed.mean((2, 3)))
            logits.append(self.linear[header](features[-1]))
        return torch.stack(logits), features


class Generator(nn.Module):
    """The `dafl` generator; `widths`: of its three maps."""

    def __init__(self, size=32, channels=3, widths=(128, 128, 64), latent=256):
        super().__init__()
        self.shape = (widths[0], size // 4, size // 4)
        self.l1 = nn.Sequential(nn.Linear(latent, int(np.prod(self.shape))))
        self.conv_blocks0 = nn.Sequential(nn.BatchNorm2d(widths[0]))
        self.conv_blocks1 = self.stage(widths[0], widths[1])
        self.conv_blocks2 = self.stage(widths[1], widths[2])
        last = nn.BatchNorm2d(channels, affine=False)
        image = nn.Conv2d(widths[2], channels, 3, 1, 1)
        self.out_block = nn.Sequential(image, nn.Tanh(), last)

    @staticmethod
    def stage(inputs, outputs):
        conv = nn.Conv2d(inputs, outputs, 3, 1, 1)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs, 0.8), nn.LeakyReLU(SLOPE))

    def forward(self, z):
        x = self.conv_blocks0(self.l1(z).view(-1, *self.shape))
        x = self.conv_blocks1(functional.interpolate(x, scale_factor=2))
        x = self.conv_blocks2(functional.interpolate(x, scale_factor=2))
        return self.out_block(x)


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


class Iteration:
    """One CDFKD-MFS iteration, student steps and generator step, written plainly.

    Args:
        teachers: in evaluation mode.
        student: in training mode, as the generator.
        generator: noise to images.
        sgd: the student's optimiser.
        adam: the generator's.
        weights: of the feature, ensemble and bn terms.
    """

    def __init__(self, teachers, student, generator, sgd, adam, weights):
        self.teachers, self.student, self.generator = teachers, student, generator
        self.sgd, self.adam, self.weights = sgd, adam, weights
        self.seen = [watch_bn(teacher) for teacher in teachers]

    def student_round(self, noise):
        self.sgd.zero_grad()
        terms = self.student_terms(noise)
        sum(terms).backward()
        self.sgd.step()
        return terms

    def generator_round(self, noise):
        self.adam.zero_grad()
        terms = self.generator_terms(noise)
        sum(terms).backward()
        self.adam.step()
        return terms

    def student_terms(self, noise):
        w_feature, w_ensemble, _ = self.weights
        count = len(self.teachers)
        with torch.no_grad():
            images = self.generator(noise)
            said = [teacher(images) for teacher in self.teachers]
        self.forget()
        logits, features = self.student(images)
        header = sum((s - t).abs().mean() for s, (t, _) in zip(logits, said)) / count
        feature = torch.zeros((), dtype=noise.dtype)
        if w_feature:
            gaps = [(f - t).abs() for f, (_, t) in zip(features, said)]
            feature = w_feature * sum(gap.sum(1).mean() for gap in gaps) / count
        mean = sum(t for t, _ in said) / count
        ensemble = w_ensemble * (logits.mean(0) - mean).abs().mean()
        return header, feature, ensemble

    def generator_terms(self, noise):
        count = len(self.teachers)
        images = self.generator(noise)
        logits, _ = self.student(images)
        said = [teacher(images)[0] for teacher in self.teachers]
        attack = -sum((s - t).abs().mean() for s, t in zip(logits, said)) / count
        bn = sum(
            (5 if index == 0 else 1)
            * ((var - layer.running_var).norm() + (mean - layer.running_mean).norm())
            for records in self.seen
            for index, (layer, mean, var) in enumerate(records)
        )
        self.forget()
        return attack, self.weights[2] * bn / count

    def forget(self):
        """What the teachers' BatchNorms saw."""
        for records in self.seen:
            records.clear()
