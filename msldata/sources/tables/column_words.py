"""Words in the headers of tables, in several languages: what a column says of a photograph."""

from __future__ import annotations

import re
from collections.abc import Sequence

from msldata.contract.listing import Row, bare

# Compared by ``bare``; earlier ones win.
WORDS_FOR_INDICES = (
    "labels label tags tag classes class categories category labelname classname findinglabels choices choice target "
    "targets annotations objects"
).split()
"""Columns of labels, which may hold class indices too."""
_SPECIES = (
    "scientificname species commonname vernacularname arten art tierarten tierart spezies especes espece especies "
    "especie specie soorten soort taxa taxon taxonname klassen klasse classe clases clase etiketten etikett etiquettes "
    "etiquette etiquetas etiqueta kategorien kategorie categorie categoria "
    "wissenschaftlichername deutschername nomscientifique nomvernaculaire nomfrancais nombrecientifico nombrecomun "
    "nomescientifico nomecomune nomecientifico nomecomum wetenschappelijkenaam nederlandsenaam"
).split()
_KEYWORDS = (
    "keywords keyword schlagworte schlagwort schlagworter schlagwoerter stichworte stichwort stichworter stichwoerter "
    "motscles motcle palabrasclave parolechiave trefwoorden trefwoord"
).split()
"""What photographers and archives call labels."""
LABELS = (*WORDS_FOR_INDICES, *_SPECIES, *_KEYWORDS)
_PLURALS = frozenset(
    "labels tags classes categories findinglabels choices target targets annotations objects arten tierarten especes "
    "taxa klassen clases etiketten etiquettes etiquetas kategorien soorten keywords schlagworte schlagworter "
    "schlagwoerter stichworte stichworter stichwoerter motscles palabrasclave parolechiave trefwoorden".split()
)
_NAMES = frozenset("name namen names nom noms nombre nombres nome nomi nomes naam namen".split())
_CODES = frozenset(
    "code codes kode codigo codigos codice codici kurzel kuerzel kurzcode abk abkurzung abkuerzung id ids".split()
)
"""Words beside one for labels: ``Artname``, ``code espèce``, ``Art-Kürzel`` name or number what a photograph shows."""
_BETWEEN = frozenset("de des del da do di della d l la le der of the".split())
_RANKS = frozenset({"genus", "gattung", "genre", "genero"})
"""Beside one of these, ``class`` is a rank such as Mammalia, and ``species`` may be but half of a name."""

_TIMES = frozenset(
    "datum date datetime datetimeoriginal timestamp time zeit uhrzeit zeitpunkt aufnahmezeit fecha hora heure "
    "dateheure eventdate".split()
)
_SITES = frozenset(
    "standort standorte site sitio sites station ort orte place location lieu localidad lugar plot transect transekt "
    "deployment camera cameras kamera kameras camara observer observers beobachter beobachterin observateur observador "
    "photographer photographe fotograf fotografin fotografo fotografa recorder recordedby identifiedby annotator "
    "bestimmer bestimmerin erfasser erfasserin bearbeiter bearbeiterin melder melderin waarnemer osservatore".split()
)
_REMARKS = frozenset(
    "note notes notiz notizen remark remarks comment comments bemerkung bemerkungen kommentar kommentare anmerkung "
    "remarque remarques commentaire nota notas observaciones description beschreibung".split()
)
_MEASURES = frozenset(
    "id index nr no num nummer number numero n anzahl count counts total summe gesamt jahr year annee ano anno monat "
    "month mois mes tag day jour dia woche week stunde hour minute second width height breite hoehe hohe size x y z "
    "lat lon lng latitude longitude easting northing altitude elevation depth tiefe temperature temperatur temp age "
    "alter iso sequence frame event rating score confidence episode seite page".split()
)
_A_TIME = re.compile(r"\d{4}[-./:]\d{1,2}[-./:]\d{1,2}(\D.*)?|\d{1,2}[-./]\d{1,2}[-./]\d{2,4}(\D.*)?|\d{1,2}:\d\d.*")
_NUMBERED = re.compile(r"(?P<word>.*?[^\W\d_])[\W_]*\d{1,2}\W*")
_NEARLY_ALL = 0.9


def may_have_several_rows(name: str) -> bool:
    """Whether a column of that name holds one label, so that a photograph with several has several rows."""
    word = _word_for_labels(name)
    return bool(word) and word not in _PLURALS


def says_labels(name: str) -> bool:
    """Whether a header is a word for labels and nothing else: even numbers below it say what a photograph shows."""
    return bare(name) in LABELS


def names_of_labels(columns: Sequence[str]) -> list[str]:
    """The columns whose headers are words for labels, likeliest first: the word alone, then as part of ``Artname``, of
    ``Art-Code``, and last with a number, as ``Art 1``."""
    by_word = {bare(name): name for name in reversed(columns)}
    no_label = {"class", "species"} if not _RANKS.isdisjoint(by_word) else set()
    found = [by_word[word] for word in LABELS if word in by_word and word not in no_label]
    more = [name for name in columns if not says_labels(name) and _word_for_labels(name)]
    return [*found, *sorted(more, key=lambda name: (bare(name) != _without_number(name), _has_code(name)))]


def numbered_alike(column: str, columns: Sequence[str]) -> list[str]:
    """The columns whose headers are the same word with a number: ``Art 1``, ``Art 2``."""
    word = _without_number(column)
    alike = [name for name in columns if _without_number(name) == word] if word else []
    return alike if len(set(map(bare, alike))) > 1 else [column]


def is_time(column: str, rows: Sequence[Row]) -> bool:
    """Whether a column says when, by its header or by nearly all of its cells."""
    cells = [str(cell).strip() for _, row in rows if (cell := row.get(column)) not in (None, "")]
    times = sum(_A_TIME.fullmatch(cell) is not None for cell in cells)
    return bool(cells) and (not _TIMES.isdisjoint(_words(column)) or times >= _NEARLY_ALL * len(cells))


def is_site(column: str) -> bool:
    """Whether a header says that the column holds where photographs were taken, or who did."""
    return not _SITES.isdisjoint(_words(column))


def is_remark(column: str) -> bool:
    return not _REMARKS.isdisjoint(_words(column))


def is_measure(column: str) -> bool:
    """Whether a header says that numbers below it number or measure something, rather than count what is called so."""
    return not (_MEASURES | _SITES | _TIMES).isdisjoint(_words(column))


def _words(name: str) -> set[str]:
    """The words of a header, and all of it as one."""
    return {*_parts(name), bare(name)}


def _without_number(name: str) -> str:
    match = _NUMBERED.fullmatch(name)
    return bare(match["word"] if match else name)


def _word_for_labels(name: str) -> str:
    """The word for labels in a header, with or without a number, a "name" or a "code"; empty where there is none."""
    if (word := _without_number(name)) in LABELS:
        return word
    parts = [part for part in _parts(name) if part not in _BETWEEN]
    kept = [part for part in parts if part not in _NAMES | _CODES]
    if len(kept) < len(parts):
        return "".join(kept) if "".join(kept) in LABELS else ""
    # In one word: Artname, speciescode. The longest affix counts: "Artenkürzel" is no "Artenk".
    ends = sorted((end for end in _NAMES | _CODES if word.endswith(end)), key=len)
    return next((word.removesuffix(end) for end in reversed(ends) if word.removesuffix(end) in LABELS), "")


def _has_code(name: str) -> bool:
    return not _CODES.isdisjoint(_parts(name)) or any(_without_number(name).endswith(code) for code in _CODES)


def _parts(name: str) -> list[str]:
    """The words of a header, in order, without numbers."""
    parted = re.sub(r"(?<=[a-zß-ÿ])(?=[A-Z])", " ", name)
    return [bare(word) for word in re.split(r"[\W\d_]+", parted) if word]
