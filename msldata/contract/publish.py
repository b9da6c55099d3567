"""The last files of a dataset: those that other programs look for, and ``dataset.json``, which makes it complete.

``croissant.json`` describes it in the words of MLCommons Croissant 1.1, for catalogues and loaders that know it: what
the manifest says, without time or place, so equal datasets have equal files. A record is an image from a tar, joined by
its key with its row of the sample index.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from msldata.contract.manifest import MANIFEST_NAME, Manifest
from msldata.errors import counted
from msldata.storage import Storage

CROISSANT_NAME = "croissant.json"

_IMAGES, _INDEX = "image-files", "index-files"

# The context that Croissant 1.1 prescribes.
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "name": {"@container": "@language"},
    "description": {"@container": "@language"},
} | {
    name: f"cr:{name}"
    for name in (
        "arrayShape citeAs column containedIn equivalentProperty extract field fileObject fileProperty fileSet format "
        "includes isArray isLiveDataset jsonPath key md5 parentField path recordSet references regex repeated replace "
        "samplingRate separator source subField transform"
    ).split()
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Publication:
    """Where a well-known source was published."""

    creator: str
    date: str
    url: str
    cite: str


_PUBLICATIONS = {
    "VOC2007": _Publication(
        "M. Everingham, L. Van Gool, C. K. I. Williams, J. Winn, A. Zisserman",
        "2007",
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2007/",
        "Everingham et al., The PASCAL Visual Object Classes Challenge 2007 (VOC2007) Results",
    ),
    "VOC2012": _Publication(
        "M. Everingham, L. Van Gool, C. K. I. Williams, J. Winn, A. Zisserman",
        "2012",
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
        "Everingham et al., The PASCAL Visual Object Classes Challenge 2012 (VOC2012) Results",
    ),
    "COCO-2014": _Publication(
        "COCO Consortium",
        "2014",
        "https://cocodataset.org",
        "Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014",
    ),
    "WIDER-Attribute": _Publication(
        "Y. Li, C. Huang, C. C. Loy, X. Tang",
        "2016",
        "http://mmlab.ie.cuhk.edu.hk/projects/WIDERAttribute.html",
        "Li et al., Human Attribute Recognition by Deep Hierarchical Contexts, ECCV 2016",
    ),
}


def croissant(manifest: Manifest) -> bytes:
    """The JSON-LD of one dataset: its tars with their SHA-256, the members in them, and what each member says."""
    images = bool(manifest.classes)
    suffix, encoding = (".jpg", "image/jpeg") if images else (".png", "image/png")
    name = f"{manifest.dataset}-{manifest.split}"
    classes = counted(len(manifest.classes), "class")
    kind = f"images with {classes}" if images else "keep masks (white = visible, black = hole)"
    tars = [
        {
            "@type": "cr:FileObject",
            "@id": tar,
            "name": tar,
            "contentUrl": tar,
            "contentSize": f"{num_bytes} B",
            "encodingFormat": "application/x-tar",
            "sha256": sha256,
        }
        for tar, _, num_bytes, sha256, _, _ in manifest.shards.columns()
    ]
    content: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": name,
        "description": (
            f"{manifest.num_samples} {kind} in {len(manifest.shards)} WebDataset shards. Fingerprint of their bytes: "
            f"{manifest.fingerprint}."
        ),
        "version": f"{manifest.schema_version}.0.0",
        "license": manifest.licence or "Not stated.",
        "distribution": [
            *tars,
            {
                "@type": "cr:FileSet",
                "@id": _IMAGES,
                "name": _IMAGES,
                "description": f"The member {suffix} of every sample.",
                "containedIn": [{"@id": shard} for shard in manifest.shards.name],
                "encodingFormat": encoding,
                "includes": f"*{suffix}",
            },
            {
                "@type": "cr:FileSet",
                "@id": _INDEX,
                "name": _INDEX,
                "description": "The sample index beside every tar, a row per sample.",
                "encodingFormat": "application/x-parquet",
                "includes": "*.parquet",
            },
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "samples",
                "name": "samples",
                "description": "A record per sample.",
                "key": {"@id": "samples/key"},
                "field": _fields(images),
            }
        ],
    }
    publication = _PUBLICATIONS.get(str(manifest.provenance.get("source")))
    if publication is not None:
        content |= {
            "citeAs": publication.cite,
            "creator": {"@type": "sc:Organization", "name": publication.creator},
            "datePublished": publication.date,
            "url": publication.url,
        }
    if images:
        content["recordSet"].append(_class_set(manifest))
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _fields(images: bool) -> list[dict[str, Any]]:
    key = _field("key", "sc:Text", "The file name up to its first dot.", _IMAGES, {"fileProperty": "filename"})
    key["source"]["transform"] = {"regex": r"^([^.]+)"}
    key["references"] = {"fileSet": {"@id": _INDEX}, "extract": {"column": "key"}}
    size = [_column(side, "sc:Integer", f"The {side} of the stored image in pixels.") for side in ("width", "height")]
    if images:
        pixels = _field("image", "sc:ImageObject", "The photograph.", _IMAGES, {"fileProperty": "content"})
        what = "Positions in the record set classes of the classes that the image"
        classes = [
            _column(name, "sc:Integer", f"{what} {verb}.") | {"isArray": True, "arrayShape": "-1"}
            for name, verb in (("positives", "shows"), ("ignored", "may show: neither positive nor negative"))
        ]
        return [key, pixels, *size, *classes]
    pixels = _field("keep_mask", "sc:ImageObject", "White = visible.", _IMAGES, {"fileProperty": "content"})
    return [
        key,
        pixels,
        *size,
        _column("hole_fraction", "sc:Float", "The share of hidden pixels."),
        _column("source", "sc:Text", "The file it was made from."),
    ]


def _class_set(manifest: Manifest) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": "classes",
        "name": "classes",
        "description": "The classes in the order of KEY.target.npy, a multi-hot vector.",
        "dataType": "sc:Enumeration",
        "key": {"@id": "classes/name"},
        "field": [
            {"@type": "cr:Field", "@id": "classes/name", "name": "name", "dataType": "sc:Text"},
            {"@type": "cr:Field", "@id": "classes/index", "name": "index", "dataType": "sc:Integer"},
        ],
        "data": [{"classes/name": name, "classes/index": index} for index, name in enumerate(manifest.classes)],
    }


def _column(name: str, data_type: str, description: str) -> dict[str, Any]:
    return _field(name, data_type, description, _INDEX, {"column": name})


def _field(name: str, data_type: str, description: str, file_set: str, extract: dict[str, str]) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"samples/{name}",
        "name": name,
        "description": description,
        "dataType": data_type,
        "source": {"fileSet": {"@id": file_set}, "extract": extract},
    }


def write_manifest(storage: Storage, manifest: Manifest) -> None:
    """Publish a dataset: first the files other readers want, then ``dataset.json``, which makes it complete."""
    for name, data in reader_files(manifest).items():
        storage.put(name, data)
    storage.put(MANIFEST_NAME, manifest.to_json())


def reader_files(manifest: Manifest) -> dict[str, bytes]:
    """``_info.json`` (timm's WebDataset reader), ``sizes.json`` (open_clip's) and ``croissant.json`` (catalogues)."""
    split = {
        "name": manifest.split,
        "num_samples": manifest.num_samples,
        "filenames": manifest.shards.name,
        "shard_lengths": list(manifest.shards.num_samples),
    }
    sizes = dict(zip(manifest.shards.name, manifest.shards.num_samples))
    return {
        "_info.json": (json.dumps({"splits": {manifest.split: split}}, indent=2) + "\n").encode(),
        "sizes.json": (json.dumps(sizes, indent=2) + "\n").encode(),
        CROISSANT_NAME: croissant(manifest),
    }
