"""The benchmark for cards goes on where a section dies or hangs, and keeps every row it got."""

import json
import sys
import time

import pytest
from gpu import driver, report, sections

# Stands for a worker: `dies` ends it, `hangs` says nothing any more.
WORKER = """
import json, os, sys, time
def send(**message):
    print("benchmark " + json.dumps(message), flush=True)
print("a line of a library")
for name in sys.argv[sys.argv.index("--worker") + 1:]:
    send(kind="begin")
    if name == "dies":
        print("the device is lost", file=sys.stderr)
        os._exit(3)
    send(kind="row", cells={"what": name, "value": 1.5, "more": True})
    if name == "hangs":
        time.sleep(600)
    send(kind="end")
"""


def section(name, seconds=60):
    return sections.Section(name, name, f"Title of {name}", seconds, ("what", "value"))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`run(*sections, seconds=…)`: the rows after these sections, and the table."""
    monkeypatch.setattr(driver, "GRACE", 0.1)
    script = tmp_path / "worker.py"
    script.write_text(WORKER)

    def all_of(*wanted, seconds=60.0):
        out = report.Report(tmp_path / "out", "540P")
        driver.run_all(list(wanted), [sys.executable, str(script)], out, time.time() + seconds)
        folder = tmp_path / "out"
        return json.loads((folder / "rows.json").read_text()), (folder / "table.md").read_text()

    return all_of


def test_rows_come_in_order_into_both_files(run):
    rows, table = run(section("one"), section("two"))
    assert [(row["section"], row["what"], row["value"]) for row in rows] == [
        ("one", "one", 1.5),
        ("two", "two", 1.5),
    ]
    assert "## Title of one\n\n| what | value | note |\n|---|---|---|\n" in table
    assert "| one | 1.5 | more: yes |" in table


def test_a_section_that_dies_costs_only_itself(run):
    rows, _ = run(section("one"), section("dies"), section("two"))
    assert [row["section"] for row in rows] == ["one", "dies", "two"]
    assert rows[1]["what"] == "failed"
    assert rows[1]["note"] == "the process ended: the device is lost"


def test_a_section_that_hangs_keeps_its_rows_and_lets_the_next_begin(run):
    rows, _ = run(section("hangs", seconds=1), section("two"))
    assert [(row["section"], row["what"]) for row in rows] == [
        ("hangs", "hangs"),
        ("hangs", "stopped"),
        ("two", "two"),
    ]


def test_what_there_is_no_time_for_is_said(run):
    rows, _ = run(section("one"), section("two"), seconds=0)
    assert [(row["section"], row["what"]) for row in rows] == [
        ("one", "left out"),
        ("two", "left out"),
    ]


def test_a_card_that_is_far_slower_still_gets_to_14b():
    """Where each section before it is stopped for taking too long, the most valuable have rows."""
    names = [section.name for section in sections.SECTIONS]
    assert names[:6] == ["card", "films", "attention", "precision", "1.3B", "14B"]
    taken = sum(section.seconds + driver.GRACE for section in sections.SECTIONS[:5])
    assert sections.TOTAL - taken >= 80


def test_sections_are_chosen_by_name_or_number():
    assert [s.name for s in sections.chosen(["vae", "1"])] == ["card", "vae"]
    assert sections.chosen([]) == list(sections.SECTIONS)
    with pytest.raises(ValueError, match="--only is 11; it must be one of: card, films"):
        sections.chosen(["11"])
