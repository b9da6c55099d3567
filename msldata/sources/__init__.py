"""Where records come from: VOC, COCO, WIDER-Attribute, tables of one's own; and how they are downloaded."""
