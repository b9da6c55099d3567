"""Masked Supervised Learning in a training loop of one's own, around any network that gives logits."""

import torch
from torchvision.models import resnet18

import msltrain

DATA, KEEP_MASKS = "shards/voc2007/trainval", "shards/masks/high"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

config = msltrain.StreamConfig(image_size=64, batch_size=8)
training, validation = msltrain.hold_out(DATA, 0.1)  # the same samples as `msl train` holds out
train_loader = msltrain.Loader(training, config, training=True, device=DEVICE)
validation_loader = msltrain.Loader(validation, config, training=False, device=DEVICE)
keep_masks = msltrain.KeepMasks.open(KEEP_MASKS, config.image_size, DEVICE)

network = resnet18(num_classes=len(training.classes)).to(DEVICE)
step = msltrain.SiameseStep(network, msltrain.LossConfig())
optimizer = torch.optim.SGD(step.parameters(), lr=0.01, momentum=0.9)

for epoch in range(2):
    step.train()
    train_loader.set_epoch(epoch)
    for batch in train_loader:
        losses = step(batch.image_BCHW, keep_masks.of_keys(batch.keys, epoch=epoch), batch.target_BK)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()

    step.eval()
    logits, targets, ignored = [], [], []
    with torch.inference_mode():
        for batch in validation_loader:
            logits.append(network(batch.image_BCHW))
            targets.append(batch.target_BK)
            ignored.append(batch.ignore_BK)
    metrics = msltrain.compute_metrics(torch.cat(logits), torch.cat(targets), torch.cat(ignored))
    print(f"epoch {epoch}: loss {losses['total']:.3f}, validation mAP {100 * metrics.mAP:.1f}")
