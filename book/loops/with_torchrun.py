"""Distillation in plain PyTorch: torchrun with_torchrun.py TEACHER STUDENT EPOCHS"""

import sys

import torch
from timm.layers import convert_sync_batchnorm
from torch import distributed, nn
from torch.utils.data import DataLoader, DistributedSampler

from apd import APDLoss
from apd.data.scenes import Scenes
from apd.models import build_segmenter, load_weights
from apd.normalizers import across_processes, global_count


class Objective(nn.Module):  # one module: DDP averages gradients of what it wraps
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
    logits = nn.functional.interpolate(logits, labels.shape[1:], mode="bilinear")
    summed = nn.functional.cross_entropy(logits, labels, ignore_index=255, reduction="sum")
    return summed / global_count((labels != 255).sum())


teacher_file, student_file, epochs = sys.argv[1:]
distributed.init_process_group()
rank, size = distributed.get_rank(), distributed.get_world_size()
device = f"cuda:{distributed.get_node_local_rank()}" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
teacher = build_segmenter("test_efficientnet", 10, head_width=128, output_stride=4)
load_weights(teacher.to(device).eval().requires_grad_(False), teacher_file)
objective = convert_sync_batchnorm(Objective()) if "cuda" in device else Objective()
model = nn.parallel.DistributedDataParallel(objective.to(device))
optimiser = torch.optim.AdamW(objective.parameters(), lr=2e-3)
scenes = Scenes(200, height=96, width=96, context_shift=0.5, seed=0)
sampler = DistributedSampler(scenes)  # every process has its part of each batch of 8
for epoch in range(int(epochs)):
    sampler.set_epoch(epoch)
    for images, labels, _ in DataLoader(scenes, 8 // size, sampler=sampler, drop_last=True):
        images, labels = images.to(device) / 255, labels.to(device).long()
        with torch.no_grad():
            seen = teacher(images)
        with across_processes():  # losses divide by the counts of the whole batch
            loss = model(images, labels, seen)
        optimiser.zero_grad(), loss.backward(), optimiser.step()
    distributed.all_reduce(loss := loss.detach())  # the last batch's
    if rank == 0:
        print(f"epoch {epoch + 1}: loss {loss / size:.5f}")
        torch.save(objective.student.state_dict(), student_file)
distributed.destroy_process_group()
