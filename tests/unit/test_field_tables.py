"""Tables as people keep them in the field: species, sites, dates and counts side by side, in their own languages."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from msldata.errors import BadInputError, UserError
from msldata.sources.kinds import open_source, recognise
from msldata.sources.source import NO_OPTIONS, SourceOptions
from msldata.sources.tables.doubts import with_words
from msltrain.__main__ import app
from tests.unit.test_mark_columns import needed, shown


def table(folder: Path, *lines: str, name: str = "labels.csv") -> Path:
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / name


def columns(*names: str) -> list[str]:
    return [word for name in names for word in ("--labels-column", name)]


@pytest.mark.parametrize(
    "word",
    "Art Arten Tierart Spezies species scientificName scientific_name common_name commonName Espèce espèces ESPECIE "
    "especies specie soort taxon Label Labels Klasse Klassen classe clase Etikett Tag Tags "
    "Keywords Schlagwörter Mots-clés".split(),
)
def test_a_header_that_is_a_word_for_species_names_the_labels(tmp_path, word):
    for other, cells in (("Nacht", "01"), ("Anzahl", "10"), ("Bemerkung", "xy")):
        path = table(tmp_path, f"Foto;{word};{other}", f"a.jpg;Wolf;{cells[0]}", f"b.jpg;Luchs;{cells[1]}")
        assert shown(path)[1] == ["Wolf", "Luchs"] and f"columns left alone: {other}" in shown(path)[2]


def test_names_beside_a_column_of_0_and_1_are_asked_about_with_both_commands(tmp_path):
    path = table(tmp_path, "Foto;Motiv;Nacht", "a.jpg;Wolf;0", "b.jpg;Luchs;1")
    error = needed(path)
    assert "column 'Motiv' ('Wolf' in line 2) or the column 'Nacht' of 0 and 1 ('0' in line 2) may say" in str(error)
    assert list(error.options) == columns("Nacht")
    assert error.other == ("if 'Motiv' holds the names of what they show", columns("Motiv"))
    run = CliRunner().invoke(app, ["build-shards", str(path), "--name", "mine"], env={"COLUMNS": "400"})
    commands = [line.partition("run: ")[2] for line in run.output.splitlines() if "run: " in line]
    assert [command.split("--name mine ")[1] for command in commands] == [
        "--labels-column Nacht",
        "--labels-column Motiv",
    ]
    assert shown(path, SourceOptions(labels_columns=("Motiv",)))[1] == ["Wolf", "Luchs"]
    rows = ["a.jpg;Wolf;0;1", "b.jpg;Luchs;1;0", "c.jpg;Wolf;1;0", "d.jpg;Wolf;0;0"]
    error = needed(table(tmp_path, "Foto;Motiv;Nacht;Regen", *rows))
    assert list(error.options) == columns("Nacht", "Regen") and error.other is not None
    rows = [row.replace("Wolf", "2024-05-01").replace("Luchs", "02.05.2024") for row in rows]
    for header in ("Foto;Standort;Wolf;Luchs", "Foto;am;Wolf;Luchs", "Foto;Beobachterin;Wolf;Luchs"):
        assert shown(table(tmp_path, header, *rows))[0] == ("Wolf", "Luchs")


def test_a_number_of_each_photograph_is_not_proposed_as_labels(tmp_path):
    rows = [f"1987/{row:04};{row}.jpg;Ansicht {row};{word}" for row, word in enumerate(["Boot", "Pferd, Boot"] * 6)]
    error = needed(table(tmp_path, "Inv.-Nr.;Datei;Titel;Motiv", *rows))
    assert list(error.options) == [*columns("Motiv"), "--separator", ","]
    assert "'Motiv' says what they show" in str(error)


COUNTS = ("a.jpg;Süd;0;2;0;1", "b.jpg;Nord;3;0;0;1", "c.jpg;Nord;1;0;-1;")


def test_columns_of_counts_are_columns_of_classes(tmp_path):
    path = table(tmp_path, "Foto;Standort;Büffel;Großtrappe;Wildkatze;Wolf", *COUNTS)
    names = ("Büffel", "Großtrappe", "Wildkatze", "Wolf")
    for options in (NO_OPTIONS, SourceOptions(labels_columns=names)):
        classes, labels, said = shown(path, options)
        assert classes == names and labels == ["Großtrappe Wolf", "Büffel Wolf", "Büffel"]
        assert "labels in counts of 4 classes: above 0 is present, 0 or blank negative, -1 ignored; columns" in said
    assert shown(path, SourceOptions(labels_columns=("Büffel",)))[:2] == (("Büffel",), ["", "Büffel", "Büffel"])
    last = list(open_source("table", path, "all").records())[2]
    assert last.ignored == (2,)


@pytest.mark.parametrize("header", ["Jahr", "id", "width", "x", "Anzahl", "siteID", "Bild-Nr.", "image height", "Höhe"])
def test_numbers_that_are_no_counts_are_left_alone(tmp_path, header):
    rows = ("a.jpg;0;2;0", "b.jpg;3;0;2", "c.jpg;1;0;2")
    assert shown(table(tmp_path, f"Foto;Büffel;Wolf;{header}", *rows))[0] == ("Büffel", "Wolf")
    for odd in ("2021", "2.5", "-7"):  # nor are these, whatever they are called
        large = [f"{row};{odd if row[0] != 'a' else 0}" for row in rows]
        assert shown(table(tmp_path, f"Foto;Büffel;Wolf;{header};gemessen", *large))[0] == ("Büffel", "Wolf")


def test_a_species_on_every_photograph_is_not_left_alone(tmp_path):
    path = table(tmp_path, "Foto;Büffel;Wolf;Luchs", "a.jpg;1;2;0", "b.jpg;3;0;2", "c.jpg;1;0;2")
    error = needed(path)
    assert "column 'Büffel' holds small numbers as 'Wolf' does, but nowhere 0: a count, or something else" in str(error)
    assert list(error.options) == columns("Wolf", "Luchs", "Büffel")
    assert error.other == ("if it says something else", columns("Wolf", "Luchs"))
    assert shown(path, SourceOptions(labels_columns=("Büffel", "Wolf")))[1] == ["Büffel Wolf", "Büffel", "Büffel"]


def test_one_number_above_1_is_a_slip(tmp_path):
    path = table(tmp_path, "Foto;Büffel;Wolf", "a.jpg;0;1", "b.jpg;1;0", "c.jpg;0;2")
    with pytest.raises(BadInputError, match="line 4: column 'Wolf' holds '2' among 0 and 1"):
        shown(path)
    assert shown(path, SourceOptions(labels_columns=("Büffel", "Wolf")))[1] == ["Wolf", "Büffel", "Wolf"]


def test_a_few_words_do_not_make_a_column_of_classes_another_one(tmp_path):
    rows = ["a.jpg;0;1;0;", "b.jpg;1;vielleicht;1;", "c.jpg;0;1;0;", "d.jpg;1;?;1;1", "e.jpg;0;0;kaum;Nest"]
    path = table(tmp_path, "Foto;Büffel;Wolf;Luchs;Notiz", *rows)
    with pytest.raises(
        BadInputError,
        match=r"line 3: column 'Wolf' holds 'vielleicht'; line 5: column 'Wolf' holds '\?'; "
        "line 6: column 'Luchs' holds 'kaum' among 0 and 1; mend them, or name the columns of classes",
    ):
        shown(path)
    assert shown(path, SourceOptions(labels_columns=("Büffel",)))[0] == ("Büffel",)
    many = [f"{letter}.jpg;0;1;0;" for letter in "fghij"] + [f"{letter}.jpg;1;so;1;" for letter in "kl"]
    with pytest.raises(BadInputError, match=r"'so' \(1 more like these\) among 0 and 1"):
        shown(table(tmp_path, "Foto;Büffel;Wolf;Luchs;Notiz", *rows, *many))
    half = ["a.jpg;0;1", "b.jpg;1;so", "c.jpg;0;0", "d.jpg;1;anders"]
    assert shown(table(tmp_path, "Foto;Büffel;Bemerkung", *half))[0] == ("Büffel",)
    alone = ["a.jpg;0", "b.jpg;1", "c.jpg;kaum", "d.jpg;1"]  # nothing but such a column
    with pytest.raises(BadInputError, match="line 4: column 'Wolf' holds 'kaum' among 0 and 1; mend it"):
        shown(table(tmp_path, "Foto;Wolf", *alone))


def test_a_few_words_do_not_make_a_column_of_counts_another_one(tmp_path):
    rows = ["a.jpg;0;2;5;7", "b.jpg;3;viele;0;2,5", "c.jpg;0;1;0;nan", "d.jpg;2;4;1;3000"]
    with pytest.raises(BadInputError, match="line 3: column 'Luchs' holds 'viele' among counts; mend it"):
        shown(table(tmp_path, "Foto;Wolf;Luchs;Reh;Wert", *rows))
    rows = [row.replace("viele", "0") for row in rows]
    assert shown(table(tmp_path, "Foto;Wolf;Luchs;Reh;Wert", *rows))[0] == ("Wolf", "Luchs", "Reh")
    rows = [
        "a.jpg;0;2;gut;1",
        "b.jpg;3;0;gut;0",
        "c.jpg;0;1;1;2,5",
        "d.jpg;2;4;so;1",
    ]  # words that are another column's
    with pytest.raises(BadInputError, match="line 4: column 'Bock' holds '2,5' among 0 and 1; mend it"):
        shown(table(tmp_path, "Foto;Wolf;Reh;Zustand;Bock", *rows))


def test_a_site_and_a_date_are_not_taken_for_labels(tmp_path):
    error = needed(table(tmp_path, "Foto;Standort;Büffel", "a.jpg;Süd;0", "b.jpg;Nord;3"))
    assert list(error.options) == columns("Standort")
    error = needed(table(tmp_path, "Foto;Standort;Datum;Motiv", "a.jpg;Süd;heute;Wolf", "b.jpg;Nord;heute;Luchs"))
    assert list(error.options) == columns("Motiv") and error.other is None
    assert shown(table(tmp_path, "Foto;am;Motiv", "a.jpg;2024-05-01 10:00;Wolf", "b.jpg;1.5.24;Wolf"))[0] == ("Wolf",)
    for header in ("Datum", "Tag", "am"):
        with pytest.raises(BadInputError, match="add a column 'labels' with what each photograph shows"):
            shown(table(tmp_path, f"Foto;{header}", "a.jpg;2024-05-01", "b.jpg;2024-05-02"))


def test_a_rank_is_no_label_beside_the_name(tmp_path):
    header = "filepath,class,order,genus,species,common_name"
    path = table(tmp_path, header, "a.jpg,Mammalia,Carnivora,Canis,lupus,Wolf", "b.jpg,Aves,Otidiformes,Otis,tarda,")
    assert shown(path)[:2] == (("Wolf",), ["Wolf", ""])


@pytest.mark.parametrize("names", [("Art 1", "Art 2"), ("Art", "Art 2"), ("species1", "species_2"), ("vorn", "hinten")])
def test_species_in_two_columns_are_read_together(tmp_path, names):
    path = table(tmp_path, f"Foto;{';'.join(names)};Standort", "a.jpg;Wolf;Luchs;Süd", "b.jpg;Luchs;;Nord")
    error = needed(path)
    assert list(error.options) == columns(*names)
    assert error.other == (f"if only '{names[0]}' does", columns(names[0]))
    classes, labels, said = shown(path, SourceOptions(labels_columns=names))
    assert classes == ("Luchs", "Wolf") and labels == ["Luchs Wolf", "Luchs"]
    assert f"labels in '{names[0]}' and '{names[1]}', read as class names; columns left alone: Standort" in said


def test_species_in_two_columns_beside_0_and_1_are_both_advised(tmp_path):
    path = table(tmp_path, "Foto;Art 1;Art 2;Nacht", "a.jpg;Wolf;Luchs;0", "b.jpg;Luchs;;1")
    assert list(needed(path).options) == columns("Art 1", "Art 2")
    path = table(tmp_path, "Foto;vorn;hinten;Nacht", "a.jpg;Wolf;Luchs;0", "b.jpg;Luchs;;1")
    assert needed(path).other == ("if 'vorn' and 'hinten' hold the names of what they show", columns("vorn", "hinten"))
    path = table(tmp_path, "Foto;class 1;class 2", "a.jpg;1;0", "b.jpg;0;1")
    assert shown(path)[:2] == (("class 1", "class 2"), ["class 1", "class 2"])
    with pytest.raises(
        BadInputError, match="no column 'labels' and no columns of 0 and 1 among Foto, class 1, class 2"
    ):
        shown(table(tmp_path, "Foto;class 1;class 2", "a.jpg;31;4", "b.jpg;7;5"))


def test_a_photograph_with_rows_and_columns_of_species_has_all(tmp_path):
    path = table(tmp_path, "Foto;Art 1;Art 2", "a.jpg;Wolf;Luchs", "a.jpg;Bär;", "b.jpg;Bär;Wolf")
    assert shown(path, SourceOptions(labels_columns=("Art 1", "Art 2")))[1] == ["Bär Luchs Wolf", "Bär Wolf"]


def test_one_column_is_one_column(tmp_path):
    path = table(tmp_path, "Foto;Wolf", "a.jpg;0", "b.jpg;1")
    assert "labels in 1 column of 0 and 1, 1 positive" in shown(path)[2]


@pytest.mark.parametrize("word", ["und", "and", "et", "y", "e", "en", "&", "+"])
def test_words_between_names_are_proposed_as_separators(tmp_path, word):
    path = table(tmp_path, "Foto;Art", f"a.jpg;Großtrappe {word} Büffel", "b.jpg;Büffel", "c.jpg;Seeadler")
    error = needed(path)
    separator = word if word in "&+" else f" {word} "
    assert error.options == ("--separator", separator)
    classes, labels, said = shown(path, SourceOptions(separator=separator))
    assert classes == ("Büffel", "Großtrappe", "Seeadler") and labels == ["Büffel Großtrappe", "Büffel", "Seeadler"]
    assert f"class names, separated by '{separator}'" in said


def test_a_word_and_a_character_may_separate_names_in_one_table(tmp_path):
    path = table(tmp_path, "Foto;Art", "a.jpg;Fuchs, Dachs und Hund", "b.jpg;Hund", "c.jpg;Grundel")
    one = open_source("table", path, "all", options=SourceOptions(separator=","))
    assert "'Dachs und Hund' stays one class" in one.notes[0] and "--separator ', und '" in one.notes[0]
    assert shown(path, SourceOptions(separator=", und "))[0] == ("Dachs", "Fuchs", "Grundel", "Hund")


def test_a_word_before_every_name_does_not_part_them(tmp_path):
    rows = ("a.jpg;Standort Süd", "b.jpg;Standort Nord", "c.jpg;Standort Süd 2")
    path = table(tmp_path, "Foto;Standort", *rows)
    assert len(shown(path, SourceOptions(labels_columns=("Standort",)))[0]) == 3
    assert needed(table(tmp_path, "Foto;Art", *rows, "d.jpg;Süd Hang")).options == ("--separator", " ")


def photographs(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_files_whose_names_differ_in_case_alone_are_found_and_counted(tmp_path):
    photographs(tmp_path, "Fotos/A1.JPG", "Fotos/A2.JPG", "Fotos/a3.jpg")
    path = table(tmp_path, "Foto;Art", "A1.jpg;Wolf", "fotos/a2.jpg;Luchs", "a3.jpg;Wolf")
    source = open_source("table", path, "all")
    assert [record.image for record in source.records()] == ["Fotos/A1.JPG", "Fotos/A2.JPG", "Fotos/a3.jpg"]
    expected = "2 photographs found whose names differ from the table's in upper and lower case alone, such as "
    assert source.notes == (f"{expected}Fotos/A1.JPG for A1.jpg",)
    assert "1 image not where the table says, but found below" in source.provenance["labels"]  # a3.jpg
    photographs(tmp_path, "Fotos/a1.JPG")  # now two differ so, and the photograph is missing
    path = table(tmp_path, "Foto;Art", "A1.jpg;Wolf", "a3.jpg;Luchs")
    assert next(iter(open_source("table", path, "all").records())).image == "Fotos/A1.jpg"


def test_one_file_is_not_two_photographs_of_other_case(tmp_path):
    photographs(tmp_path, "A1.JPG")
    path = table(tmp_path, "Foto;Art", "A1.jpg;Wolf", "a1.jpg;Luchs")
    with pytest.raises(BadInputError, match=r"'A1\.jpg' and 'a1\.jpg' may be two photographs, and only A1\.JPG is"):
        shown(path)


def test_uploads_of_label_studio_are_found_by_the_names_that_they_had(tmp_path):
    photographs(tmp_path, "Standort Süd 000.JPG", "Standort Süd 001 (2).JPG", "c.jpg")
    uploads = ("0001e240-Standort_Süd_000.JPG", "0a1b2c3d-Standort_Süd_001_2.JPG")
    path = table(tmp_path, "image,choice,id", f"/data/upload/1/{uploads[0]},Wolf,1", f"{uploads[1]},Luchs,2")
    source = open_source("table", path, "all")
    assert [record.image for record in source.records()] == ["Standort Süd 000.JPG", "Standort Süd 001 (2).JPG"]
    assert source.notes[0] == (
        "2 photographs found by what uploads of Label Studio are called (8 digits, then _ for spaces), such as "
        f"Standort Süd 000.JPG for {uploads[0]}"
    )
    photographs(tmp_path, "weiter/Standort_Süd 000.JPG")
    path = table(tmp_path, "image,choice", f"{uploads[0]},Wolf")
    with pytest.raises(BadInputError, match=r"is an upload of Label Studio, whose name says neither folder nor spaces"):
        open_source("table", path, "all")


@pytest.mark.parametrize("suffix", [".xlsx", ".ods", ".XLS"])
def test_a_spreadsheet_is_answered_with_how_to_save_it(tmp_path, suffix):
    photographs(tmp_path, "a.jpg", f"Fotos Süd{suffix}")
    saved = tmp_path / "Fotos Süd.csv"
    advice = f"save it as 'CSV UTF-8' under the name {saved}, and run: msl build-shards '{saved}' --name NAME"
    for source in (tmp_path, tmp_path / f"Fotos Süd{suffix}"):
        with pytest.raises(UserError) as caught:
            recognise(source)
        assert f"Fotos Süd{suffix}: a spreadsheet, which is not read itself; open it, {advice}" in str(caught.value)
    table(tmp_path, "image,labels", "a.jpg,Wolf")  # what was saved counts
    assert recognise(tmp_path)[0] == "table"


@pytest.mark.parametrize(
    "header",
    "Art-Code,Art Code,Art_Code,Art-Kürzel,artcode,Artname,species_code,species code,SpeciesName,code de l'espèce,"
    "CodeEspèce,Código de especie,codice specie,soortcode,Label-Code,Wissenschaftlicher Name".split(","),
)
def test_a_header_with_a_word_for_species_and_code_or_name_names_the_labels(tmp_path, header):
    rows = ["a.jpg;LYN;Anna", "b.jpg;CAN;Bert", "c.jpg;CAN;Anna"]
    path = table(tmp_path, f"Foto;{header};Person", *rows)
    assert shown(path)[1] == ["LYN", "CAN", "CAN"] and "columns left alone: Person" in shown(path)[2]
    twice = table(tmp_path, f"Foto;{header};Person", *rows, "a.jpg;CAN;Anna")  # as in a column "species"
    assert shown(twice)[1] == ["CAN LYN", "CAN", "CAN"]


@pytest.mark.parametrize("better", ["Art", "species", "Artname", "nom scientifique"])
def test_a_name_comes_before_a_code_whatever_their_order(tmp_path, better):
    for header in (f"Foto;Art-Code;{better}", f"Foto;Species-Code;{better}"):
        path = table(tmp_path, header, "a.jpg;LYN;Luchs", "b.jpg;CAN;Wolf")
        assert shown(path)[1] == ["Luchs", "Wolf"] and "columns left alone: " in shown(path)[2]


@pytest.mark.parametrize("who", ["Beobachter:in", "recordedBy", "identifiedBy", "Erfasser", "Fotografin", "waarnemer"])
def test_whoever_was_there_is_not_what_is_shown(tmp_path, who):
    rows = [f"{n}.jpg;{'AB'[n % 2]}nna;{('Wolf', 'Luchs')[n % 3 == 0]}" for n in range(6)]
    error = needed(table(tmp_path, f"Foto;{who};gesehen", *rows))
    assert list(error.options) == columns("gesehen")


def test_numbers_in_a_column_of_codes_are_left_alone_beside_words(tmp_path):
    path = table(tmp_path, "Foto;Art-Code;Motiv", "a.jpg;17;Luchs", "b.jpg;4;Wolf", "c.jpg;4;Wolf")
    assert shown(path)[1] == ["Luchs", "Wolf", "Wolf"]
    for header in ("Postcode", "Kart-Code", "Vorname"):  # no word for species is in these
        rows = ["a.jpg;A1;rot", "b.jpg;B2;blau", "c.jpg;B2;blau"]
        assert "no column 'labels'" in str(needed(table(tmp_path, f"Foto;{header};Farbe", *rows)))


def test_numbers_with_a_decimal_comma_are_no_words(tmp_path):
    path = table(tmp_path, "Foto;Motiv;Temperatur", "a.jpg;Luchs;12,5", "b.jpg;Wolf;-3,25")
    assert shown(path)[1] == ["Luchs", "Wolf"] and "columns left alone: Temperatur" in shown(path)[2]


def test_a_header_of_signs_alone_may_be_a_class(tmp_path):
    path = table(tmp_path, "Foto;🦊;🐺", "a.jpg;1;0", "b.jpg;0;1")
    assert shown(path)[0] == ("🦊", "🐺")


def test_all_doubts_are_asked_about_in_one_command(tmp_path):
    rows = [f"a{n}.jpg;b{n}.jpg;{('W,L', 'W', 'L')[n % 3]};{n % 2}" for n in range(6)]
    path = table(tmp_path, "vorne;hinten;Motiv;Nacht", *rows)
    error = needed(path)
    assert error.reason.startswith(f"{tmp_path}/labels.csv: 3 doubts: (1) the names of image files stand in several")
    assert "; (2) column 'Motiv' (" in error.reason and "; (3) the labels are names that may be sep" in error.reason
    assert error.reason.count(str(tmp_path)) == 1
    assert list(error.options) == ["--image-column", "vorne", *columns("Nacht")]
    assert error.provided == "if 'vorne' names the photographs, and if 'Nacht' is a class"
    assert error.other is not None
    assert list(error.other[1]) == ["--image-column", "vorne", *columns("Motiv"), "--separator", ","]
    for words in (error.options, error.other[1]):
        shown(path, with_words(NO_OPTIONS, words))  # nothing more is asked


def test_a_slip_in_the_command_and_a_doubt_about_the_table_are_one_refusal(tmp_path):
    path = table(tmp_path, "Foto;Motiv", "a.jpg;Wolf, Luchs", "b.jpg;Wolf")
    error = needed(path, SourceOptions(labels_columns=("Motif",)))
    assert "2 doubts: (1) no column 'Motif'" in error.reason and "(2) the labels are names" in error.reason
    assert list(error.options) == [*columns("Motiv"), "--separator", ","]
    assert list(error.instead_of) == columns("Motif")
    assert shown(path, with_words(NO_OPTIONS, error.options))[1] == ["Luchs Wolf", "Wolf"]


def test_what_follows_from_an_answer_alone_is_no_doubt(tmp_path):
    path = table(tmp_path, "Foto;Motiv;Nacht", "a.jpg;Wolf;0", "b.jpg;Luchs;1")
    assert "doubts" not in needed(path).reason
