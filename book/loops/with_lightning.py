"""Distillation with Lightning: python with_lightning.py TEACHER STUDENT EPOCHS"""

import sys
from contextlib import nullcontext

import lightning
import torch
from timm.layers import convert_sync_batchnorm
from torch.nn import functional as F
from torch.utils.data import DataLoader

from apd import APDLoss
from apd.data.scenes import Scenes
from apd.models import build_segmenter, load_weights
from apd.normalizers import across_processes, global_count


class Distillation(lightning.LightningModule):
    def __init__(self, teacher_file):
        super().__init__()
        self.student = build_segmenter("test_efficientnet", 10, head_width=32, dropout=0.0)
        self.teacher = build_segmenter("test_efficientnet", 10, head_width=128, output_stride=4)
        load_weights(self.teacher.eval().requires_grad_(False), teacher_file)
        self.distiller = APDLoss(32, 128, num_classes=10, width=128)

    def configure_model(self):
        if self.trainer.world_size > 1 and self.trainer.strategy.root_device.type == "cuda":
            convert_sync_batchnorm(self.student)  # timm's, for timm's norms

    def training_step(self, batch, _):
        images, labels = batch[0] / 255, batch[1].long()
        logits, features, aux = self.student(images)
        with torch.no_grad():
            teacher = self.teacher(images)
        maps = dict(student_features=features, teacher_features=teacher.features)
        maps |= dict(student_logits=logits, teacher_logits=teacher.logits, labels=labels)
        with across_processes() if self.trainer.world_size > 1 else nullcontext():
            loss = task(logits, labels) + 0.4 * task(aux, labels) + self.distiller(**maps)["loss"]
        self.log("loss", loss, sync_dist=True, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3)  # the teacher's want no gradient


def task(logits, labels):
    logits = F.interpolate(logits, labels.shape[1:], mode="bilinear")
    summed = F.cross_entropy(logits, labels, ignore_index=255, reduction="sum")
    return summed / global_count((labels != 255).sum())


teacher_file, student_file, epochs = sys.argv[1:]
lightning.seed_everything(0)
scenes = Scenes(200, height=96, width=96, context_shift=0.5, seed=0)
trainer = lightning.Trainer(max_epochs=int(epochs), logger=False, enable_checkpointing=False)
loader = DataLoader(scenes, 8 // trainer.world_size, shuffle=True)
trainer.fit(model := Distillation(teacher_file), loader)
if trainer.is_global_zero:
    print(f"loss {trainer.callback_metrics['loss']:.5f}")
    torch.save(model.student.state_dict(), student_file)
