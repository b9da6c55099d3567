"""Which runs make up a grid, what each is measured on, and what they are called.

Rows of several grids that are the same run have one name, that of the first grid in `GRIDS`, and are trained once. The
name does not depend on which grids were requested, so grids that share a folder share their runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from msldata.contract.manifest import MANIFEST_NAME
from msldata.errors import UserError
from msldata.storage import open_storage
from msltrain.config import TrainConfig, override
from msltrain.recipes.ablations import GRIDS
from msltrain.recipes.cost import gpu_hours, num_published
from msltrain.recipes.variants import Form, tuned
from msltrain.runs.run_places import WHOLE

LAST, BEST = "last", "best"
"""The two checkpoints that are measured: after the last step, and best on the validation split."""
_ROOT = "shards"
"""Where the recipes look for all their data."""
_TEST = {
    "shards/voc2007/trainval": "shards/voc2007/test",
    "shards/coco2014/train": "shards/coco2014/val",
    "shards/wider/trainval": "shards/wider/test",
}
"""Training shards of a recipe → the split that its published numbers were measured on."""
_MASKS, _HELD_OUT = "shards/masks", "shards/heldout"
_SUBSETS = ("low", "high")


@dataclass(frozen=True, kw_only=True)
class Test:
    """What a run is measured on."""

    shards: str
    keep_masks: tuple[tuple[str, str], ...] = ()
    """Held-out keep masks as (condition, folder): every test image is measured whole, and behind each of these."""

    @property
    def conditions(self) -> tuple[tuple[str, str | None], ...]:
        """(condition, folder of keep masks or None)."""
        return ((WHOLE, None), *self.keep_masks)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One row's training, for any seed."""

    name: str
    """GRID/ROW in the first grid that has it."""
    config: TrainConfig
    test: Test
    num_samples: int | None = None
    """Number of samples of the whole training set, where it is the recipe's own."""

    def gpu_hours(self, num_samples: int | None = None) -> float | None:
        """Estimated hours for one seed, on ``num_samples`` if known; None if the network is not the paper's."""
        return gpu_hours(self.config, num_samples or self.num_samples)

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Those that the run leaves behind."""
        return (LAST, BEST) if self.config.data.validates else (LAST,)

    def folder(self, out: Path, seed: int) -> Path:
        """Its run folder."""
        return out / "runs" / self.name / f"seed{seed}"


@dataclass(frozen=True, kw_only=True)
class DataPlaces:
    """Where the data of a grid lies; by default where the recipes look for it."""

    root: str = _ROOT
    """Takes the place of ``shards`` in the recipes."""
    train: str | None = None
    """Training shards of all rows, whatever their recipe says; ``test`` belongs to it."""
    test: str | None = None
    """Test shards of all rows."""
    keep_masks: str | None = None
    """Folder with the subsets ``high`` and ``low`` of the training keep masks."""
    test_masks: tuple[str, ...] | None = None
    """Held-out keep masks: folders of keep-mask shards, or folders with the subsets ``high`` and ``low``. None: those
    in ``heldout`` below the root; empty: none."""

    def __post_init__(self) -> None:
        if self.train is not None and self.test is None:
            raise UserError(
                "--data says what to train on; say with --test what to measure on, such as shards/mine/test"
            )

    def locate(self, config: TrainConfig) -> tuple[TrainConfig, Test]:
        """A recipe's config with the actual places of its data, and what to measure it on."""
        data = replace(
            config.data,
            train=self.train or self._below_root(config.data.train),
            keep_masks=tuple(self._masks(place) for place in config.data.keep_masks),
        )
        shards = self.test or self._below_root(_TEST[config.data.train])
        return replace(config, data=data), Test(shards=shards, keep_masks=self.conditions)

    @cached_property
    def conditions(self) -> tuple[tuple[str, str], ...]:
        """The held-out keep masks as (condition, folder)."""
        found: list[tuple[str, str]] = []
        for place in (self._below_root(_HELD_OUT),) if self.test_masks is None else self.test_masks:
            place = place.rstrip("/")
            if open_storage(place).exists(MANIFEST_NAME):
                found.append((place.rsplit("/", 1)[-1], place))
            else:
                found += [(subset, f"{place}/{subset}") for subset in _SUBSETS]
        names = [name for name, _ in found]
        if len(set(names)) < len(names) or WHOLE in names:
            raise UserError(
                f"--test-masks: {', '.join(place for _, place in found)} would have the same name; give folders with "
                "different last names"
            )
        return tuple(found)

    def _masks(self, place: str) -> str:
        """Where a recipe's subset of keep masks is: below the user's folder, under its last name."""
        if self.keep_masks is None:
            return self._below_root(place)
        if open_storage(self.keep_masks).exists(MANIFEST_NAME):  # as `msl train` takes them
            above = self.keep_masks.rstrip("/").rpartition("/")[0] or "."
            raise UserError(
                f"--keep-masks {self.keep_masks}: one set of masks; a grid has rows with several and takes the folder "
                f"that holds {' and '.join(_SUBSETS)}, such as {above}"
            )
        return f"{self.keep_masks.rstrip('/')}/{place.rpartition('/')[2]}"

    def _below_root(self, place: str) -> str:
        return f"{self.root.rstrip('/')}{place.removeprefix(_ROOT)}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Grids × seeds."""

    grids: Mapping[str, Mapping[str, Run]]
    """Run by grid and row."""
    seeds: tuple[int, ...]
    settings: tuple[str, ...] = ()
    """What the user changed in every run, as ``section.field=value``."""

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs, each once."""
        return tuple({run.name: run for rows in self.grids.values() for run in rows.values()}.values())

    def rows_of(self, run: Run) -> list[str]:
        """The GRID/ROW of every row that the run stands for."""
        return [f"{grid}/{row}" for grid, rows in self.grids.items() for row, one in rows.items() if one == run]


def make_plan(
    grids: Sequence[str],
    *,
    seeds: Sequence[int],
    places: DataPlaces,
    form: Form = tuned,
    adapt: Callable[[TrainConfig], TrainConfig] = lambda config: config,
    settings: Sequence[str] = (),
) -> Plan:
    """The runs of some grids.

    Args:
        grids: names in `GRIDS`.
        seeds: each run is trained once per seed.
        places: where the data is.
        form: turns the paper's run into the one to train, or leaves the published values.
        adapt: turns a row's config into the one to train, before ``settings``.
        settings: ``section.field=value`` for every run.

    Raises:
        UserError: no such grid, or a setting that does not fit.
    """
    for name in grids:
        if name not in GRIDS:
            raise UserError(f"no grid '{name}'; there are: {', '.join(GRIDS)}")
    first: dict[tuple[TrainConfig, Test], Run] = {}
    planned: dict[str, dict[str, Run]] = {}
    for grid, make in GRIDS.items():
        planned[grid] = {}
        for row, config in make(form).items():
            located, test = places.locate(config)
            located = override(adapt(located), settings)
            num_samples = None if places.train else num_published(config.data.train)
            run = Run(name=f"{grid}/{row}", config=located, test=test, num_samples=num_samples)
            planned[grid][row] = first.setdefault((located, test), run)
    return Plan(grids={name: planned[name] for name in grids}, seeds=tuple(seeds), settings=tuple(settings))
