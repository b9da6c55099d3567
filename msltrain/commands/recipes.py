"""``recipes``: what can be trained, and every field of it; and what the shell completes of them."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from msldata.console import next_step, out, show


def complete_recipe(incomplete: str) -> list[tuple[str, str]]:
    """Names of recipes that begin so, for the shell."""
    from msltrain.recipes import RECIPES

    return [(name, entry.what) for name, entry in RECIPES.items() if name.startswith(incomplete)]


def complete_setting(incomplete: str) -> list[tuple[str, str]]:
    """Fields that begin so; of a field whose values are a list of words, those. For the shell."""
    from msltrain.recipes import recipe
    from msltrain.recipes.fields import fields_of

    fields = fields_of(recipe("own"))
    name, equals, _ = incomplete.partition("=")
    if equals:
        choices = [f"{name}={choice}" for field in fields if field.name == name for choice in field.choices]
        return [(choice, "") for choice in choices if choice.startswith(incomplete)]
    return [(f"{field.name}=", _first_sentence(field.doc)) for field in fields if field.name.startswith(incomplete)]


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0].rstrip(".")


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Show every field of this one, or of a run.", show_default=False, autocompletion=complete_recipe
        ),
    ] = None,
) -> None:
    """List the recipes with published numbers and estimated hours; or, with NAME, every field of one."""
    if name is not None:
        _show_fields(name)
        return
    from msltrain.recipes import RECIPES
    from msltrain.recipes.cost import BF16_TERAFLOPS, FLOAT32_TERAFLOPS

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("recipe", no_wrap=True)
    table.add_column("GPU-hours", justify="right")
    table.add_column("what it is")
    for recipe in RECIPES.values():
        hours = "" if recipe.gpu_hours is None else f"{recipe.gpu_hours:.2f}"
        table.add_row(recipe.name, hours, Text.assemble(recipe.what, (f"\n{recipe.source} · {recipe.number}", "dim")))
    out.print(
        "For photographs of your own take own, which `msl train NAME` does. The others train a published method on its "
        "dataset: msl- is Masked Supervised Learning, -paper its published values.\n",
        soft_wrap=not out.is_terminal,
    )
    out.print(table)
    out.print(
        f"GPU-hours: an estimate for one H100 or H200 that sustains {BF16_TERAFLOPS:g} TFLOP/s in bf16 and "
        f"{FLOAT32_TERAFLOPS:g} in float32 (-paper); numbers are those of the sources, not measured here. `msl ablate` "
        "lists the grids of ablations."
    )
    next_step("msl recipes NAME")


def _show_fields(name: str) -> None:
    """Every field of a recipe or run: value, what it means, and the default where that is another."""
    from msltrain.recipes import RECIPES
    from msltrain.recipes.fields import fields_of, plainly
    from msltrain.recipes.own import CHOSEN, CHOSEN_OF_BASELINE, OWN, OWN_BASELINE
    from msltrain.runs.recorded import find_recipe

    config = find_recipe(name)
    if entry := RECIPES.get(name):
        show(out, (name, "bold"), f": {entry.what}")
        show(out, (f"{entry.source} · {entry.number}", "dim"))
    else:
        show(out, (name, "bold"), ": what this run was trained with")
    chosen = {OWN: CHOSEN, OWN_BASELINE: CHOSEN_OF_BASELINE}.get(name, {})
    if chosen:
        out.print(
            "What is chosen at the start from your photographs and the machine has its rule here instead of a value; "
            "config.json in a run's folder has the values.",
            soft_wrap=not out.is_terminal,
        )
    section = ""
    for field in fields_of(config):
        if (now := field.name.partition(".")[0]) != section:
            section = now
            out.print()
        value = plainly(field.value) or "(none)"
        default = f"   default: {plainly(field.default) or '(none)'}" if field.is_changed else ""
        if rule := chosen.get(field.name):
            show(out, (field.name, "cyan"), ": ", ("chosen at the start", "yellow"), f": {rule}", wrap=True)
        else:
            show(out, (field.name, "cyan"), " = ", (value, "bold"), (default, "yellow"))
        if field.doc:
            out.print(Padding(Text(field.doc, style="dim"), (0, 0, 0, 4)), width=min(out.width, 110))
    if name == OWN:
        next_step("msl train NAME --set section.field=value")
    elif chosen:
        next_step("msl train NAME --recipe own-baseline --set section.field=value")
    else:
        next_step(f"msl train --recipe {name} --set section.field=value")
