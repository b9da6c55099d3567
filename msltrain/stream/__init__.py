"""Streams shards into batches on the device: exact, resumable on any number of ranks, fast.

The way of a sample: ``plan`` says which samples a step takes, ``shardset`` where their bytes lie, ``fetch`` brings the
bytes (``ranges`` single samples, ``cache`` whole shards), ``decode`` writes crop and resize into a slot of the ring,
``pipeline`` runs that on threads (``job`` is a batch meanwhile), ``device`` takes the batch to the GPU and ``loader``
is the whole. ``imagecache`` keeps decoded images for later epochs, ``devicedecode`` decodes on the GPU instead,
``bench`` measures it all. ``maskbank`` holds the keep masks there. What a caller needs::

    from msltrain.stream.config import StreamConfig
    from msltrain.stream.samples.shardset import open_shard_set
    from msltrain.stream.loader import Loader
    from msltrain.stream.keepmasks.bank import MaskBank

    shards = open_shard_set("shards/voc2007/trainval")
    train, validation = shards.hold_out(0.1, seed=0)
    bank = MaskBank.open(["shards/masks/high"], image_size=448, device="cuda")
    with Loader(train, StreamConfig(), device="cuda", training=True, seed=0) as loader:
        for epoch in range(60):
            loader.set_epoch(epoch)
            for batch in loader:
                keep_mask_B1HW = bank.keep_masks(batch, seed=0, epoch=epoch)
"""
