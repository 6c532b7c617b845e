"""A run that skips what `skips.yaml` does not list fails: a skip that nobody sees is a test that nobody has."""

from pathlib import Path

import pytest
import yaml

LISTED = yaml.safe_load(Path(__file__).with_name("skips.yaml").read_text())


def unlisted_skips(reports):
    """`(test, reason)` of every skip that no entry covers; a listed reason may be the beginning of the whole."""
    found = []
    for report in reports:
        file = Path(report.nodeid.split("::")[0]).name
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not any(file in entry["tests"] and reason.startswith(entry["reason"]) for entry in LISTED):
            found.append((report.nodeid, reason))
    return found


def skipped_reports(config):
    # an expected failure is in this list, too, without being a skip
    reports = config.pluginmanager.get_plugin("terminalreporter").stats.get("skipped", [])
    return [report for report in reports if isinstance(report.longrepr, tuple)]


def pytest_sessionfinish(session):
    if not hasattr(session.config, "workerinput") and unlisted_skips(skipped_reports(session.config)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    for test, reason in unlisted_skips(skipped_reports(config)):
        terminalreporter.write_line(f"NOT LISTED in tests/skips.yaml: {test} was skipped: {reason}", red=True)
