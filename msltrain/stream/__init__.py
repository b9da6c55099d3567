"""Streams shards into batches on the device: exact, resumable on any number of ranks, fast.

The way of a sample: ``order`` says which samples a step takes, ``samples`` where their bytes are, ``reading`` fetches
the bytes, ``pixels`` decodes, crops and resizes them into reused buffers and sends these to the device, ``pipeline``
runs all that on threads and ``loader`` puts it all together. ``keepmasks`` hides parts of the images; ``bench``
measures. What a caller needs::

    from msltrain import KeepMasks, Loader, StreamConfig, hold_out

    train, validation = hold_out("shards/voc2007/trainval", 0.1)
    keep_masks = KeepMasks.open("shards/masks/high", image_size=448, device="cuda")
    with Loader(train, StreamConfig(), device="cuda", training=True) as loader:
        for epoch in range(60):
            loader.set_epoch(epoch)
            for batch in loader:
                keep_mask_B1HW = keep_masks.keep_masks(batch, seed=0, epoch=epoch)
"""
