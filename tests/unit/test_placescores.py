"""Place scores: the head's own evidence, from which its logits can be computed again; and how they are drawn."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

from msldata.errors import UserError
from msltrain.config import ModelConfig
from msltrain.models.build import build_model
from msltrain.models.heads import TEMPERATURES
from msltrain.use.class_activation import logits_and_place_logits
from msltrain.use.overlay import RAMP, STRONGEST, OverlayFolder, Panel, Row, draw_sheet, hide, paint, thumbnail

NUM_CLASSES = 5


def model(backbone: str = "test_resnet", **options):
    torch.manual_seed(0)
    made = build_model(ModelConfig(backbone=backbone, **options), NUM_CLASSES, image_size=96).eval()
    for parameter in made.classifier.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def images() -> torch.Tensor:
    return torch.rand(3, 3, 96, 96, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_mean_and_attention_of_the_score_maps_give_the_logit(backbone, num_heads):
    attention_weight = 0.3
    recogniser = model(backbone, num_heads=num_heads, attention_weight=attention_weight)
    with torch.inference_mode():
        logit_BK, place_BKHW = logits_and_place_logits(recogniser, images())
        torch.testing.assert_close(logit_BK, recogniser(images()), rtol=0, atol=0)
        assert place_BKHW.shape[2] > 1 and place_BKHW.std(dim=(2, 3)).min() > 1e-3, "maps that show nothing"
        # The maps once more by hand: a 1x1 convolution with weights of length one, per head.
        weight_CD = recogniser.classifier.score.weight[:, :, 0, 0]
        weight_CD = weight_CD / weight_CD.norm(dim=1, keepdim=True)
        score_BCHW = torch.einsum("cd,bdhw->bchw", weight_CD, recogniser.backbone(images()))
        score_BNKP = score_BCHW.flatten(2).unflatten(1, (num_heads, NUM_CLASSES))
    torch.testing.assert_close(
        place_BKHW.flatten(2) / (1 + attention_weight), score_BNKP.sum(dim=1), rtol=1e-4, atol=1e-5
    )
    expected_BK = place_BKHW.mean(dim=(2, 3)) / (1 + attention_weight)
    for number, temperature in enumerate(TEMPERATURES[num_heads]):
        score_BKP = score_BNKP[:, number]
        share_BKP = (score_BKP * temperature).softmax(dim=2)
        attended_BK = score_BKP.amax(dim=2) if temperature == 99 else (share_BKP * score_BKP).sum(dim=2)
        expected_BK = expected_BK + attention_weight * attended_BK
    torch.testing.assert_close(logit_BK, expected_BK, rtol=1e-4, atol=1e-4)


SMALL = {
    "test_resnet": {},
    "test_vit": {},
    "test_vit3": {},
    "mobilenetv3_small_050": {},
    "convnext_atto": {},
    "deit_tiny_distilled_patch16_224": {"depth": 1},
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 4)},
}
"""All kinds of heads: of a map or of tokens, with and without class tokens, channels last, layers behind the pool."""


@pytest.mark.parametrize("name", SMALL)
def test_a_timm_classifier_is_asked_with_its_own_head(name):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=NUM_CLASSES, **SMALL[name]).eval()
    for parameter in network.get_classifier().parameters() if "distilled" not in name else ():
        torch.nn.init.normal_(parameter, std=0.5)
    image = torch.rand(2, *network.default_cfg["input_size"], generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logit_BK, place_BKHW = logits_and_place_logits(network, image)
        torch.testing.assert_close(logit_BK, network(image))
        assert place_BKHW.shape[:2] == (2, NUM_CLASSES) and place_BKHW.shape[2] == place_BKHW.shape[3] > 1
        assert place_BKHW.std(dim=(2, 3)).min() > 0, "maps that show nothing"
        # An image all places of which are alike has the logits of each of its places.
        feature = network.forward_features(image)
        one = feature[:, -1:] if feature.ndim == 3 else feature[:, :, -1:, -1:]
        if getattr(network, "output_fmt", "NCHW") == "NHWC":
            one = feature[:, -1:, -1:]
        expected_BK = network.forward_head(one.expand_as(feature))
        torch.testing.assert_close(place_BKHW[:, :, -1, -1], expected_BK, rtol=1e-4, atol=1e-5)


def test_features_without_places_are_said():
    network = timm.create_model("test_vit", num_classes=NUM_CLASSES).eval()
    network.forward_features = lambda image: torch.rand(2, 8, 64)  # one class token and seven others
    with pytest.raises(UserError, match="no map of places"):
        logits_and_place_logits(network, images())


def test_with_one_head_the_map_alone_gives_the_logit():
    recogniser = model(num_heads=1, attention_weight=0.5)
    with torch.inference_mode():
        logit_BK, place_BKHW = logits_and_place_logits(recogniser, images())
    score_BKP = place_BKHW.flatten(2) / 1.5
    again_BK = score_BKP.mean(dim=2) + 0.5 * (score_BKP.softmax(dim=2) * score_BKP).sum(dim=2)
    torch.testing.assert_close(logit_BK, again_BK, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["mean", "max"])
def test_pooling_heads_have_their_linear_classifier_at_each_place(head):
    recogniser = model(head=head)
    with torch.inference_mode():
        logit_BK, place_BKHW = logits_and_place_logits(recogniser, images())
        feature_BDHW = recogniser.backbone(images())
        linear = recogniser.classifier.linear
        expected_BKHW = torch.einsum("kd,bdhw->bkhw", linear.weight, feature_BDHW) + linear.bias[:, None, None]
    torch.testing.assert_close(place_BKHW, expected_BKHW, rtol=1e-4, atol=1e-4)
    if head == "mean":
        torch.testing.assert_close(logit_BK, place_BKHW.mean(dim=(2, 3)), rtol=1e-4, atol=1e-4)


def test_colours_lie_where_the_scores_are():
    photo_HWC = np.full((80, 120, 3), 100, np.uint8)
    place_HW = np.zeros((4, 6), np.float32)
    place_HW[0, 5] = 1.0  # upper right
    painted_HWC = paint(photo_HWC, place_HW)
    assert (painted_HWC[:, :60] == 100).all() and (painted_HWC[40:] == 100).all()
    strongest = np.rint((1 - STRONGEST) * 100 + STRONGEST * np.array(RAMP[-1]))
    np.testing.assert_array_equal(painted_HWC[0, -1], strongest)


def test_holes_lie_where_the_mask_has_them():
    keep_mask_SS = np.ones((8, 8), np.uint8)
    keep_mask_SS[:4, :4] = 0
    hidden_HWC = hide(np.full((20, 40, 3), 200, np.uint8), keep_mask_SS, (1, 2, 3))
    np.testing.assert_array_equal(hidden_HWC[:10, :20].reshape(-1, 3), np.tile((1, 2, 3), (200, 1)))
    assert (hidden_HWC[10:] == 200).all() and (hidden_HWC[:, 20:] == 200).all()


def test_thumbnails_keep_their_shape():
    assert thumbnail(np.zeros((200, 800, 3), np.uint8)).shape == (75, 300, 3)
    assert thumbnail(np.zeros((1, 900, 3), np.uint8)).shape == (1, 300, 3)


def test_sheets_have_a_panel_per_class_and_names_never_collide(tmp_path):
    panels = [Panel("dog 93 %", True, np.ones((2, 2))), Panel("x" * 200, False, np.zeros((2, 2)))]
    rows = [Row(None, panels), Row(np.ones((4, 4), np.uint8), panels)]
    photo_HWC = thumbnail(np.random.default_rng(0).integers(0, 255, (60, 100, 3), dtype=np.uint8))
    sheet = draw_sheet("a/b.jpg", photo_HWC, rows, (0, 0, 0))
    one = draw_sheet("a/b.jpg", photo_HWC, rows[:1], (0, 0, 0))
    assert sheet.width == one.width > 3 * 300 and sheet.height > one.height + 180
    names = [
        "a/b.jpg",
        "c/b.png",
        "C/B.jpg",
        "../../evil",
        "https://x/y/photo.jpg?size=1",
        "shards#key/0",
        "ünï cödé.jpg",
    ]
    folder = OverlayFolder(tmp_path / "new", names)
    written = [folder.write(name, one) for name in reversed(names)]
    assert [path.relative_to(tmp_path / "new").as_posix() for path in reversed(written)] == [
        *("a/b.jpg", "c/b.png.jpg", "C/B.jpg", "image/image/evil.jpg", "https_/x/y/photo.jpg"),
        *("shards/key/0.jpg", "ünï_cödé.jpg"),
    ]
    assert all(path.is_file() for path in written)


def test_sheets_lie_as_their_photographs_do(tmp_path):
    names = ["/data/photos/a/x.jpg", "/data/photos/b/x.jpg", "/data/photos/b/X.JPG", "/data/photos/b/x.png"]
    sheet = draw_sheet("x", np.zeros((2, 2, 3), np.uint8), [Row(None, [])], (0, 0, 0))
    folder = OverlayFolder(tmp_path, names)
    written = [folder.write(name, sheet).relative_to(tmp_path).as_posix() for name in names]
    assert written == ["a/x.jpg", "b/x.jpg", "b/X-2.jpg", "b/x.png.jpg"]
    assert OverlayFolder(tmp_path / "one", names[:1]).write(names[0], sheet) == tmp_path / "one" / "x.jpg"
