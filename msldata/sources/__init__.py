"""Where records come from: VOC, COCO, WIDER-Attribute, your own tables; and how datasets are downloaded."""
