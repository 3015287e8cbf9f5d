"""A file of guests: the same options as on the command line, judged by the same command."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from vhostuser.cli.commands import DeviceCommand, main
from vhostuser.cli.file import guests_of

DEVICES = {name: command for name, command in main.commands.items() if isinstance(command, DeviceCommand)}


def written(folder: Path, content: str) -> Path:
    path = folder / "guests.toml"
    path.write_text(content)
    return path


def test_the_keys_are_the_options(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        [[net]]
        socket-path = "/run/vm1.sock"
        loop = true
        client = true
        null = false
        mtu = 9000
        features = "-MRG_RXBUF"
        counters = "/run/vm1.json"

        [[rng]]
        fd = 7

        [[net]]
        socket-path = "/run/vm2.sock"
        null = true
        """,
    )
    first, second, third = guests_of(path, DEVICES)
    assert (first.name, first.socket_path, first.fd, first.client) == (
        f"{path}: [[net]] 1",
        "/run/vm1.sock",
        None,
        True,
    )
    assert first.counters == Path("/run/vm1.json")
    assert (second.socket_path, second.fd, second.client) == ("/run/vm2.sock", None, False)
    assert (third.name, third.fd) == (f"{path}: [[rng]] 1", 7)
    device = first.make()
    assert device.features & 1 << 3
    assert not device.features & 1 << 15
    device.close()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "no guest is described; one is a table \\[\\[net\\]\\] or \\[\\[rng\\]\\]"),
        ("[[net]", "Expected"),
        ("[[net]]\nfd = 3\nnull = true\nqueues = 'many'", "'--queues': 'many' is not a number from 1 to 128"),
        ("[[gpu]]", "gpu: a guest is a table"),
        ("[net]\nnull = true", "net: a guest is a table"),
        ("[[net]]\nnull = true", "\\[\\[net\\]\\] 1: exactly one of --socket-path and --fd is needed"),
        ("[[net]]\nsocket-path = 's'", "\\[\\[net\\]\\] 1: exactly one of --tap, --packet, --loop and --null"),
        ("[[net]]\nsocket-path = 's'\nnull = true\nloop = true", "exactly one of --tap"),
        (
            "[[net]]\nsocket-path = 's'\nnull = true\nmtu = 67",
            "Invalid value for '--mtu': '67' is not a number from 68 to 65535",
        ),
        ("[[net]]\nsocket-path = 's'\nnull = true\nfeatures = 'RAIN'", "Invalid value for '--features'"),
        ("[[net]]\nfd = 3\nnull = true\nclient = true", "--client needs --socket-path"),
        ("[[net]]\nfd = 3\ntap = 'fd:x'", "--tap fd:x: a number must follow fd:"),
        ("[[net]]\nsocket_path = 's'", "socket_path: no such option; there are .*socket-path"),
        ("[[rng]]\nfd = 3\ntap = 'x'", "\\[\\[rng\\]\\] 1: tap: no such option"),
        ("[[net]]\nverbose = 2", "verbose: no such option"),
        ("[[net]]\nversion = true", "version: no such option"),
        ("[[net]]\nprint-capabilities = true", "print-capabilities: no such option"),
        ("[[net]]\nloop = 'yes'", "loop = 'yes': true or false is needed"),
        ("[[net]]\nmtu = true", "mtu = True: a value is needed"),
        ("[[net]]\nmtu = [1, 2]", "mtu = \\[1, 2\\]: a string or a number is needed"),
        ('[[net]]\nfd = 3\ntap = "vm1\\u0000x"', "NUL"),
        ("[[rng]]\nfd = 3\n[[net]]\nfd = 4\ntap = 'fd:5,fd:3'", "descriptor 3 is that of .*\\[\\[rng\\]\\] 1 already"),
        (
            "[[rng]]\nsocket-path = '/s'\n[[net]]\nnull = true\nsocket-path = '/./s'",
            "\\[\\[net\\]\\] 1: socket-path /s is that of .*\\[\\[rng\\]\\] 1 already",
        ),
        ("[[net]]\nfd = 3\nnull = true\n[[net]]\nfd = 4", "\\[\\[net\\]\\] 2: exactly one of --tap"),
    ],
)
def test_what_a_file_may_not_say(tmp_path: Path, content: str, reason: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(click.UsageError, match=rf"guests.toml: .*{reason}"):
        guests_of(path, DEVICES)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "guests.toml").write_bytes(b"\xff\0")
    with pytest.raises(click.UsageError, match=r"guests.toml: not a TOML file \(UTF-8\)"):
        guests_of(tmp_path / "guests.toml", DEVICES)


def test_guests_that_connect_may_share_a_path(tmp_path: Path) -> None:
    path = written(tmp_path, "[[rng]]\nsocket-path = '/s'\nclient = true\n" * 2)
    assert [guest.socket_path for guest in guests_of(path, DEVICES)] == ["/s", "/s"]


@pytest.mark.parametrize("name", ["INDIRECT_DESC", "EVENT_IDX"])
def test_features_have_their_names_in_virtio_and_in_linux(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, "".join(f"[[net]]\nfd = {fd}\nnull = true\nfeatures = '-{word}'\n"
                                     for fd, word in enumerate((name, f"RING_{name}", "MRG_RXBUF"))))  # fmt: skip
    offers = []
    for guest in guests_of(path, DEVICES):
        device = guest.make()
        offers.append(device.features)
        device.close()
    assert offers[0] == offers[1] != offers[2]


def test_the_help_of_all_tells_what_it_is_and_has_an_example() -> None:
    lines = CliRunner().invoke(main, ["--help"]).output.splitlines()
    assert lines[2].startswith("  A vhost-user back-end for virtual machines")
    assert "  Example: vhostuser net --socket-path=/run/vm1.sock --tap vm1" in lines


def test_the_command_line_says_the_same() -> None:
    result = CliRunner().invoke(main, ["net", "--socket-path=s", "--tap", "a", "--null"])
    assert result.exit_code == 2
    assert "exactly one of --tap, --packet, --loop and --null is needed" in result.output
