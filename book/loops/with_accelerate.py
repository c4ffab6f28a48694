"""Distillation with Hugging Face accelerate: accelerate launch with_accelerate.py TEACHER STUDENT EPOCHS"""

import sys
from contextlib import nullcontext

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from apd import APDLoss
from apd.data.scenes import Scenes
from apd.models import build_segmenter, load_weights
from apd.normalizers import across_processes, global_count


class Objective(nn.Module):  # student and distiller in one module, which `prepare` wraps
    def __init__(self):
        super().__init__()
        self.student = build_segmenter("test_efficientnet", 10, head_width=32, output_stride=4, dropout=0.0)
        self.distiller = APDLoss(32, 128, num_classes=10, width=128)

    def forward(self, images, labels, teacher):
        logits, features, auxiliary = self.student(images)
        maps = dict(student_features=features, teacher_features=teacher.features, student_logits=logits)
        distilled = self.distiller(**maps, teacher_logits=teacher.logits, labels=labels)["loss"]
        return task_loss(logits, labels) + 0.4 * task_loss(auxiliary, labels) + distilled


def task_loss(logits, labels):
    logits = F.interpolate(logits, labels.shape[1:], mode="bilinear")
    summed = F.cross_entropy(logits, labels, ignore_index=255, reduction="sum")
    return summed / global_count((labels != 255).sum())


teacher_file, student_file, epochs = sys.argv[1:]
# a batch of 8 whatever the number of processes
accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(split_batches=True, use_seedable_sampler=True))
set_seed(0)
teacher = build_segmenter("test_efficientnet", 10, head_width=128, output_stride=4).to(accelerator.device)
load_weights(teacher.eval().requires_grad_(False), teacher_file)
objective = Objective()
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
            loss = model(images, labels, seen)  # of the whole batch: the processes' mean
        optimiser.zero_grad()
        accelerator.backward(loss)
        optimiser.step()
    accelerator.print(f"epoch {epoch + 1}: loss {accelerator.reduce(loss.detach(), 'mean'):.5f}")
accelerator.save(accelerator.unwrap_model(model).student.state_dict(), student_file)
