"""Says how many examples were tried."""

from exploring import RAN


def pytest_terminal_summary(terminalreporter):
    if RAN:
        terminalreporter.section("generated examples")
        for test, count in sorted(RAN.items()):
            terminalreporter.write_line(f"{count:7,} {test}")
        terminalreporter.write_line(f"{sum(RAN.values()):7,} in all")
