"""The planted faults still apply, and the table of the last run lists them, all dead."""

import subprocess
import sys

import pytest
from conftest import REPO, check_each
from mutants import FAULTS, Fault, read_table


def test_each_fault_applies():
    def check(fault: Fault) -> None:
        held = (REPO / fault.file).read_text(encoding="utf-8")
        compile(fault.plant(held), fault.file, "exec")

    check_each([(fault,) for fault in FAULTS], check)


def test_the_table_lists_each_fault_as_dead():
    found = [row[:4] for row in read_table().values()]
    assert found == [[fault.name, fault.file, fault.test, "died"] for fault in FAULTS]


@pytest.mark.slow
def test_each_fault_names_tests_that_exist():
    """Ids hold words of messages, which are edited."""
    named = {fault.test for fault in FAULTS}
    files = sorted({test.split("::")[0] for test in named})
    words = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n", "0", "-m", "", *files]
    found = {*subprocess.run(words, cwd=REPO, capture_output=True, text=True, check=True).stdout.splitlines(), *files}
    assert named - found - {test.split("[")[0] for test in found} == set()
