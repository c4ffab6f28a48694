"""Distillation: accelerate launch with_accelerate.py TEACHER STUDENT EPOCHS"""

import sys
from contextlib import nullcontext

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from apd import APDLoss
from apd.data.scenes import Scenes
from apd.models import build_segmenter, load_weights
from apd.normalizers import across_processes, global_count


class Objective(nn.Module):  # one module, which `prepare` wraps
    def __init__(self):
        super().__init__()
        self.student = build_segmenter("test_efficientnet", 10, head_width=32, dropout=0.0)
        self.distiller = APDLoss(32, 128, num_classes=10, width=128)

    def forward(self, images, labels, teacher):
        logits, features, aux = self.student(images)
        maps = dict(student_features=features, teacher_features=teacher.features)
        maps |= dict(student_logits=logits, teacher_logits=teacher.logits, labels=labels)
        return task(logits, labels) + 0.4 * task(aux, labels) + self.distiller(**maps)["loss"]


def task(logits, labels):
    logits = F.interpolate(logits, labels.shape[1:], mode="bilinear")
    summed = F.cross_entropy(logits, labels, ignore_index=255, reduction="sum")
    return summed / global_count((labels != 255).sum())


teacher_file, student_file, epochs = sys.argv[1:]
accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(split_batches=True))
torch.manual_seed(0)
teacher = build_segmenter("test_efficientnet", 10, head_width=128, output_stride=4)
load_weights(teacher.to(accelerator.device).eval().requires_grad_(False), teacher_file)
several_gpus = accelerator.num_processes > 1 and accelerator.device.type == "cuda"
objective = convert_sync_batchnorm(Objective()) if several_gpus else Objective()
optimiser = torch.optim.AdamW(objective.parameters(), lr=2e-3)
scenes = Scenes(200, height=96, width=96, context_shift=0.5, seed=0)
loader = DataLoader(scenes, batch_size=8, shuffle=True, drop_last=True)
model, optimiser, loader = accelerator.prepare(objective, optimiser, loader)
for epoch in range(int(epochs)):
    for images, labels, _ in loader:
        images, labels = images / 255, labels.long()
        with torch.no_grad(), accelerator.autocast():
            seen = teacher(images)
        with across_processes() if accelerator.num_processes > 1 else nullcontext():
            loss = model(images, labels, seen)
        optimiser.zero_grad()
        accelerator.backward(loss)
        optimiser.step()
    accelerator.print(f"epoch {epoch + 1}: loss {accelerator.reduce(loss.detach(), 'mean'):.5f}")
accelerator.save(accelerator.unwrap_model(model).student.state_dict(), student_file)
