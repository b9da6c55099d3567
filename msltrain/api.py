"""The functions of the public face: what the commands do, in Python. ``import msltrain`` is enough.

A place is a local path or an address such as ``s3://bucket/folder``, as text. N samples, K classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from msldata.python_words import in_python, says_it_in_python
from msldata.storage import Location, one_or_many

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import ArrayLike
    from torch import Tensor

    from msltrain.config import TrainConfig
    from msltrain.measures.metrics import Metrics
    from msltrain.measures.predictions import Predictions
    from msltrain.settings import Settings
    from msltrain.stream.config import StreamConfig
    from msltrain.training.events import OnEpoch, OnStep, TrainResult
    from msltrain.use.predict import Predictor


@says_it_in_python(has_settings=True)
def recipe(
    name: Location,
    *,
    data: Location | None = None,
    keep_masks: Location | Sequence[Location] | None = None,
    settings: Settings = (),
) -> TrainConfig:
    """The whole config of a run, as a recipe or another run has it, with your own data and settings.

    Args:
        name: of a recipe; ``msl recipes`` lists them. Or of a run in ``runs/``, its folder, or a file like its
            ``config.json``: what that was trained with.
        data: training shards, instead of the recipe's. ``own`` and ``own-baseline`` take a dataset, by name or place,
            and fit weights, size, length and validation to it, as ``msl train NAME`` does; a warning says where they
            found no weights.
        keep_masks: keep-mask shards, one folder or several, instead of the recipe's.
        settings: fields and values, ``{"optim.lr": 0.1}``; or ``section.field=value``, as ``msl train --set`` takes
            them.

    Raises:
        UserError: no such recipe, run, field or dataset, or a value that the field cannot take.

    Example:
        config = msltrain.recipe("msl-c-voc2007", data="shards/voc2007/trainval", settings={"optim.lr": 0.005})
        print(config.optim.lr, config.model.backbone, config.loss)
    """
    from msltrain.recipes import configure
    from msltrain.recipes.own import OWN, OWN_BASELINE
    from msltrain.runs.recorded import find_recipe

    if name in (OWN, OWN_BASELINE) and data is not None:
        return _fit_own(str(name), str(data), keep_masks, settings)
    return configure(find_recipe(name, data=data), train=data, keep_masks=keep_masks, settings=settings)


def _fit_own(name: str, data: str, keep_masks: Location | Sequence[Location] | None, settings: Settings) -> TrainConfig:
    from msltrain.recipes.own_fit import fit_own
    from msltrain.runs.run_places import find_dataset
    from msltrain.settings import given

    found = find_dataset(data)
    config, reasons = fit_own(
        found.train,
        validation=found.validation,
        keep_masks=[str(place) for place in one_or_many(keep_masks)] if keep_masks else (),
        settings=settings,
        name=name,
    )
    if not config.model.weights and "model.weights" not in given(settings):
        reason = next(reason for reason in reasons if reason.startswith("network: "))
        warnings.warn(in_python(reason, recipe, has_settings=True), stacklevel=4)
    return config


@says_it_in_python(has_settings=True)
def train(
    config: TrainConfig,
    run: Location,
    *,
    resume: bool | Literal["auto"] = False,
    allow_changes: bool = False,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
) -> TrainResult:
    """Train a recogniser in this process, or as one of those that torchrun started; standard error says how far it is.

    Args:
        config: the whole run, from `recipe`.
        run: the folder or address where everything is written.
        resume: True: continue the run that is there from its last checkpoint; auto: if there is one, else begin it.
        allow_changes: continue it though the config or the data are others than before.
        on_step: your function, called after every ``run.log_every`` steps with what the log gets: ``step``, ``epoch``,
            ``losses`` (means since the last call, over all processes), ``learning_rate``, ``images_per_second`` …
        on_epoch: called after every epoch, once it is validated and saved, with its numbers (``epoch``, ``step``,
            ``validation_mAP``, ``is_best`` …) and the network that is shipped, in evaluation mode.

            Both are called in the first process alone, and the others wait. What one returns, if it is true, ends the
            run: it is validated, saved, and finished. What one raises is raised once everything is saved. Random
            numbers that they draw change nothing.

    Raises:
        UserError: the folder is in use, or holds another run; data or model cannot be used; a loss is not finite.
        Interrupted: Ctrl-C or SIGTERM came; the state is saved.

    Example:
        config = msltrain.recipe("demo", settings=["optim.num_epochs=1", "stream.batch_size=8"])
        result = msltrain.train(config, "runs/first")
        print(result.num_steps, result.validation_mAP, result.best)
    """
    from msldata.console import err
    from msltrain.hosts.rank_output import is_first_process
    from msltrain.training.display import TrainingDisplay
    from msltrain.training.trainer import train

    given: dict[str, Any] = {"resume": resume, "allow_changes": allow_changes, "on_step": on_step, "on_epoch": on_epoch}
    if not is_first_process():
        return train(config, run_dir=run, **given)
    with TrainingDisplay(err, err) as display:
        return train(config, run_dir=run, on_event=display.show, **given)


@says_it_in_python()
def evaluate(
    checkpoint: Location | Callable[[Tensor], Tensor],
    data: Location,
    *,
    stream: StreamConfig | None = None,
    classes: Sequence[str] = (),
    held_out: bool = False,
    keep_masks: Location | Sequence[Location] = (),
    out: Location | None = None,
    on_sample_error: Literal["fail", "skip"] = "fail",
) -> tuple[Predictions, Metrics]:
    """Predict every sample of a dataset exactly once, and measure the predictions as published: fractions in [0, 1].

    CP, CR, CF1, OP, OR and OF1 are at a score of 0.5; where `Predictor` has tuned thresholds for the run, ``tuned`` has
    them at those.

    Args:
        checkpoint: a run, in ``runs/`` by its name, whose best checkpoint is taken, or a checkpoint. A warning says
            where its training was stopped. Or a module or function of your own: normalised images (B, 3, S, S) to
            logits (B, K).
        data: the shards to evaluate on; of a dataset in ``shards/`` its name, for the test split.
        stream: for your own: ``image_size``, ``mean`` and ``std`` of its input.
        classes: for your own: the names of its outputs, in order; default: those of the shards.
        held_out: only what training on these shards set aside for validation.
        keep_masks: hide parts of the images with these, one folder or several; none: whole images.
        out: predictions file to write (parquet).
        on_sample_error: at a damaged sample stop, or leave it out of the predictions, whose ``origin`` lists it.

    Raises:
        UserError: the checkpoint has other classes than the shards, or something cannot be used.
        SampleError: a sample is damaged, and ``on_sample_error`` is fail. FileNotFoundError: no such checkpoint.

    Example:
        predictions, metrics = msltrain.evaluate("runs/msl", "shards/voc2007/test", keep_masks="shards/masks/low")
        print(f"mAP {100 * metrics.mAP:.1f} behind holes of {100 * predictions.origin.hole_fraction:.0f} %")
    """
    from msldata.errors import UserError
    from msltrain.evaluation import evaluate as evaluation
    from msltrain.measures.metrics import compute_metrics
    from msltrain.measures.thresholds import held_out_beside, other_thresholds
    from msltrain.runs.run_places import default_file, find_evaluation_shards, find_run

    notes: list[str] = []
    if callable(checkpoint):
        if stream is None:
            raise UserError("evaluate: a model of your own needs stream=StreamConfig(image_size=…, mean=…, std=…)")
        model: str | evaluation.OwnModel = evaluation.OwnModel(
            network=checkpoint, stream=stream, classes=tuple(classes)
        )
    elif stream is not None or classes:
        raise UserError("evaluate: stream and classes are for a model of your own; a run knows its own")
    else:
        model = find_run(checkpoint)
    predictions = evaluation.evaluate(
        model,
        find_evaluation_shards(str(data), held_out=held_out),
        held_out=held_out,
        keep_masks=keep_masks,
        out=out,
        on_sample_error=on_sample_error,
        note=notes.append,
    )
    tuned_on = held_out_beside(predictions, [default_file(predictions.origin.checkpoint, "").parent])
    metrics = compute_metrics(predictions, other_thresholds(tuned_on))
    for text in filter(None, [*notes, metrics.decided_by_order()]):
        _warn(text, evaluate)
    return predictions, metrics


@says_it_in_python()
def load(checkpoint: Location, *, device: str | torch.device = "auto") -> Predictor:
    """A trained recogniser, ready to predict images.

    Args:
        checkpoint: a run, in ``runs/`` by its name, whose best checkpoint is taken, or a checkpoint. A warning says
            where its training was stopped.
        device: where it computes; auto: a GPU when there is one.

    Raises:
        FileNotFoundError: no checkpoint there. UserError: it is damaged.

    Example:
        predictor = msltrain.load("runs/msl")
        for prediction in predictor.predict(["photos/street.jpg", "photos/harbour.jpg"]):
            print(prediction.file, prediction.predicted, prediction.scores[:3])
    """
    from msltrain.use.predict import Predictor

    predictor = Predictor(checkpoint, device)
    if predictor.unfinished:
        _warn(predictor.unfinished, load)
    return predictor


def _warn(text: str, function: Callable[..., object]) -> None:
    """Warn whoever called ``function``, which calls this."""
    warnings.warn(in_python(text, function), stacklevel=4)  # past the function and what translates its errors


def compute_metrics(
    logits: ArrayLike, targets: ArrayLike, ignore: ArrayLike | None = None, *, classes: Sequence[str] | None = None
) -> Metrics:
    """mAP, CP, CR, CF1, OP, OR, OF1 and a table by class, as published, from plain arrays; fractions in [0, 1].

    Two habits of the published code can surprise. Equal logits are ranked in the order of the rows, so that it decides
    mAP where there are many: a warning says so, and ``mAP_by_kind["sklearn"]`` is mAP with equal logits as equals. And
    a class that is never predicted counts in OP as one wrong prediction, in CP as none right: with every prediction
    right OP may be 0.75. ``Metrics.never_predicted()`` names such classes, and both numbers without them.

    Args:
        logits: (N, K), before the sigmoid: a class is predicted from logit 0 on.
        targets: (N, K), 1 positive, 0 negative.
        ignore: (N, K), true where the pair is not counted at all, such as VOC's difficult objects.
        classes: their names; default: numbers.

    Raises:
        UserError: shapes that differ, a target that is neither 0 nor 1, a NaN, or no class with a positive.

    Example:
        metrics = msltrain.compute_metrics(logits=[[2.0, -1.0], [-0.5, 3.0]], targets=[[1, 0], [0, 1]])
        print(metrics.mAP, metrics.OF1, [row.average_precision for row in metrics.classes])
    """
    import numpy as np

    from msldata.errors import UserError, counted
    from msltrain.measures.metrics import compute_metrics
    from msltrain.measures.predictions import Predictions

    given_NK, target_NK = _array(logits, "logits"), _array(targets, "targets")
    with np.errstate(over="ignore"):
        logit_NK = given_NK.astype(np.float32)
    ignore_NK = np.zeros(target_NK.shape, bool) if ignore is None else _array(ignore, "ignore")
    if logit_NK.ndim != 2 or not logit_NK.shape == target_NK.shape == ignore_NK.shape:
        shapes = f"logits {logit_NK.shape}, targets {target_NK.shape}, ignore {ignore_NK.shape}"
        raise UserError(f"compute_metrics: {shapes}; all must be (N, K), a row for each sample")
    if not np.isin(target_NK, (0, 1)).all():
        raise UserError("compute_metrics: a target is neither 0 nor 1; pass pairs that count nowhere as ignore")
    if not np.isin(ignore_NK, (0, 1)).all():
        raise UserError("compute_metrics: an element of ignore is neither 0 nor 1")
    if (np.isinf(logit_NK) & np.isfinite(given_NK)).any():
        raise UserError("compute_metrics: logits are beyond what 32 bits hold, where they would all be equal")
    if classes is not None and len(classes) != logit_NK.shape[1]:
        named = f"{counted(len(classes), 'class')} {'is' if len(classes) == 1 else 'are'} named"
        raise UserError(f"compute_metrics: {named} for {counted(logit_NK.shape[1], 'column')}")
    if ((logit_NK >= 0) & (logit_NK <= 1)).all() and len(np.unique(logit_NK)) > 1:
        warnings.warn("compute_metrics: all logits lie in 0 … 1; give values before the sigmoid", stacklevel=2)
    num_samples, num_classes = logit_NK.shape
    predictions = Predictions(
        keys=tuple(map(str, range(num_samples))),
        logit_NK=logit_NK,
        target_NK=target_NK.astype(np.uint8),
        ignore_NK=ignore_NK.astype(bool),
        classes=tuple(map(str, range(num_classes))) if classes is None else tuple(classes),
    )
    metrics = compute_metrics(predictions)
    if tied := metrics.decided_by_order():
        warnings.warn(f"compute_metrics: {tied}", stacklevel=2)
    return metrics


def _array(values: ArrayLike, name: str) -> np.ndarray:
    """A tensor, wherever it is, or anything that numpy takes, as an array of numbers. Raises UserError."""
    import numpy as np

    from msldata.errors import UserError

    try:
        array = np.asarray(values.detach().float().cpu() if hasattr(values, "detach") else values)
    except ValueError:  # rows of several lengths
        array = np.array(None)
    if array.dtype.kind not in "biuf":
        raise UserError(f"compute_metrics: {name} are no array of numbers (N, K), a row for each sample")
    return array
