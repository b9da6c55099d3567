"""Every field of a recipe is described where people look for it: `msl recipes NAME`, and the shell."""

from __future__ import annotations

import dataclasses

from typer.testing import CliRunner

from msltrain.__main__ import app
from msltrain.commands.recipes import complete_recipe, complete_setting
from msltrain.recipes import recipe
from msltrain.recipes.fields import fields_of


def test_every_field_has_a_description():
    config = recipe("own")
    fields = {field.name: field for field in fields_of(config)}
    sections = {section.name: getattr(config, section.name) for section in dataclasses.fields(config)}
    assert set(fields) == {f"{name}.{one.name}" for name, part in sections.items() for one in dataclasses.fields(part)}
    assert [field.name for field in fields.values() if len(field.doc) < 12] == []
    assert fields["stream.batch_size"].value == 8 and fields["stream.batch_size"].default == 32


def test_recipes_shows_values_and_where_they_differ():
    result = CliRunner().invoke(app, ["recipes", "own"])
    text = " ".join(result.output.split())
    assert result.exit_code == 0 and "stream.flip_probability = 0.5 How often" in text
    assert "stream.batch_size: chosen at the start" in text and "optim.clip_norm = none Gradients" in text
    result = CliRunner().invoke(app, ["recipes", "msl-c-voc2008"])
    assert result.exit_code == 2 and "did you mean msl-c-voc2007?" in result.output


def test_the_shell_completes_fields_and_their_values():
    assert dict(complete_setting("optim.l"))["optim.lr="].startswith("Learning rate of the backbone")
    heads = ["model.head=mean", "model.head=max", "model.head=mldecoder"]
    assert [value for value, _ in complete_setting("model.head=m")] == heads
    assert ("run.amp=true", "") in complete_setting("run.amp=")
    assert "own" in dict(complete_recipe("o"))
