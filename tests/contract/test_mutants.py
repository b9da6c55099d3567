"""What mutation testing is about is still there: its modules, and the mutants that are listed as equivalent."""

from __future__ import annotations

from tests.conftest import REPOSITORY
from tests.mutants import CORE, LIST, _equivalents
from tests.mutations import mutants


def test_its_modules_and_its_equivalent_mutants_exist():
    paths = [path for part in CORE.values() for path in part.modules]
    tests = [path for part in CORE.values() for path in part.tests]
    assert not [path for path in (*paths, *tests) if not (REPOSITORY / path).is_file()]
    known = {mutant.identity for path in paths for mutant in mutants(path)}
    listed = _equivalents()
    assert len(listed) == LIST.read_text().count("\n- ``") and not listed - known
