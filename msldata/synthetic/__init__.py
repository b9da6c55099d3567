"""The drawn dataset: scenes full of overlapping, occluded and small objects, in VOC's layout."""
