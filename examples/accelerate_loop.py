"""A Dataset of one's own under accelerate; keep masks by the sample's key and the epoch, the same on any machine."""

import torch
from accelerate import Accelerator
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet18
from torchvision.transforms import v2

import msldata
import msltrain

VOC = "datasets/VOCdevkit/VOC2007"
source = msldata.open_source("voc2007", VOC, "trainval")
records, num_classes = list(source.records()), len(source.labels.classes)
transform = v2.Compose([v2.PILToTensor(), v2.RandomResizedCrop(64), v2.ToDtype(torch.float32, scale=True)])


class Photographs(Dataset):
    def __len__(self) -> int:
        return len(records)

    def __getitem__(self, index: int) -> tuple[str, torch.Tensor, torch.Tensor]:
        target = torch.zeros(num_classes).index_fill(0, torch.tensor(records[index].positives), 1)
        return records[index].key, transform(Image.open(f"{VOC}/{records[index].image}").convert("RGB")), target


accelerator = Accelerator()
step = msltrain.SiameseStep(resnet18(num_classes=num_classes), msltrain.LossConfig())
optimizer = torch.optim.SGD(step.parameters(), lr=0.01, momentum=0.9)
loader = DataLoader(Photographs(), batch_size=8, shuffle=True, drop_last=True)
step, optimizer, loader = accelerator.prepare(step, optimizer, loader)
keep_masks = msltrain.KeepMasks.open("shards/masks/high", 64, accelerator.device)
for epoch in range(2):
    for keys, images, targets in loader:
        losses = step(images, keep_masks.of_keys(keys, epoch=epoch), targets)
        optimizer.zero_grad()
        accelerator.backward(losses["total"])
        optimizer.step()
    accelerator.print(f"epoch {epoch}: loss {losses['total']:.3f}")
