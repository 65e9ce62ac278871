"""Asking the command line in this process."""

from __future__ import annotations

import pytest
from commands import Answer, Ask

from kerneltable.cli import main


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ask:
    monkeypatch.delenv("FORCE_COLOR", raising=False)

    def run(*argv: object) -> Answer:
        code = main([str(argument) for argument in argv])
        return Answer(code, *capsys.readouterr())

    return run
