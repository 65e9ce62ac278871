"""Override files that others can write: refused, and taken only when the command line says so."""

import pytest

from kerneltable.cli import main
from kerneltable.table import check_table

OVERRIDE = "override: 1\nroutes:\n  mxfp8: {cuda: {prefer: triton_mxfp8_w8a16}}\n"


@pytest.fixture
def shared(tmp_path):
    path = tmp_path / "override.yaml"
    path.write_text(OVERRIDE)
    path.chmod(0o664)
    return path


@pytest.mark.parametrize(
    "command", [["check"], ["explain", "mxfp8", "--device", "a100", "--n", "64", "--k", "64"], ["diff"]]
)
def test_a_file_that_a_group_can_write_is_refused_and_the_way_out_is_named(command, shared, capsys):
    assert main([*command, "-f", str(shared)]) != 0
    told = capsys.readouterr()
    assert "KT122" in told.out + told.err
    assert "--allow-insecure-permissions" in told.out + told.err


@pytest.mark.parametrize("command", [["check"], ["explain", "mxfp8", "--device", "a100", "--n", "64", "--k", "64"]])
def test_the_switch_takes_it(command, shared, capsys):
    assert main([*command, "-f", str(shared), "--allow-insecure-permissions"]) == 0
    assert "KT122" not in capsys.readouterr().out


def test_the_switch_forgives_permissions_alone(tmp_path):
    table, findings = check_table(overrides=[tmp_path / "absent.yaml"], any_writer=True)
    assert table is None
    assert findings[0].code == "KT121"
