"""The loader's position: where it goes on, and what makes a saved one worthless."""

from __future__ import annotations

from pathlib import Path

import pytest

from msldata.errors import UserError
from msltrain.stream.config import StreamConfig
from msltrain.stream.loader import Loader
from tests.smallshards import write_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    write_images(folder, [12, 14])
    return folder


def open_loader(folder: Path, *, training: bool = True, seed: int = 0, **settings: int) -> Loader:
    config = StreamConfig(image_size=16, num_threads=1, **{"batch_size": 4, "window": 12, **settings})
    return Loader(folder, config, training=training, seed=seed)


def test_a_started_loader_goes_on_where_the_loaded_position_says(folder: Path):
    with open_loader(folder) as loader:
        whole = [batch.keys for batch in loader]
        assert len(whole) == len(loader) == 6 and loader.state_dict()["epoch"] == 1
        loader.set_epoch(0)
        loader.start()
        loader.load_state_dict({**loader.state_dict(), "step": 4})
        assert [batch.keys for batch in loader] == whole[4:]


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch_size": 5}, {"window": 26}])
def test_a_position_means_nothing_where_the_order_is_another(folder: Path, change: dict[str, int]):
    (name,) = change
    with pytest.raises(UserError, match=f"the saved run had {name} = .*, this one has {change[name]}; continue"):
        open_loader(folder, **change).load_state_dict(open_loader(folder).state_dict())


def test_a_position_means_nothing_with_other_samples(folder: Path, tmp_path: Path):
    state = open_loader(folder).state_dict()
    for counts, name in (([12, 13], "num_samples"), ([14, 12], "fingerprint")):
        write_images(tmp_path / name, counts)
        with pytest.raises(UserError, match=f"the saved run had {name} = "):
            open_loader(tmp_path / name).load_state_dict(state)
