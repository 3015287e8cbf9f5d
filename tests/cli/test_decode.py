"""``vhostuser decode``: every kind of input, what is shown of it, and what the exit status says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rig.mutations import TRANSCRIPTS, mutations
from vhostuser.cli import main
from vhostuser.transcript.entries import Said
from vhostuser.transcript.file import load
from vhostuser.wire import messages as m
from vhostuser.wire.codec import encode, encode_ack
from vhostuser.wire.frames import MAX_PAYLOAD, Frame
from vhostuser.wire.layouts import build
from vhostuser.wire.requests import BackendRequest, Direction
from vhostuser.wire.requests import FrontendRequest as R

KICK = encode(Direction.FRONTEND, R.SET_VRING_KICK, m.VringFd(1, no_fd=True)).encode()
README = Path(__file__).parents[2] / "README.md"
XXD = """
00000000: 0c00 0000 0100 0000 0800 0000 0101 0000  ................
00000010: 0000 0000                                ....
"""


def decode(*words: object, stdin: bytes | None = None) -> Result:
    """What the command says, and its status."""
    return CliRunner().invoke(main, ["decode", *map(str, words)], input=stdin)


def shown(*words: object, stdin: bytes | None = None) -> list[dict[str, Any]]:
    """What it says as JSON."""
    result = decode("--json", *words, stdin=stdin)
    assert result.exit_code in (0, 1), result.output
    found: list[dict[str, Any]] = json.loads(result.output)
    return found


def refused(*words: object, stdin: bytes | None = None) -> str:
    """The sentence with which it refuses a command line."""
    result = decode(*words, stdin=stdin)
    assert (result.exit_code, type(result.exception)) == (2, SystemExit)
    return result.output.splitlines()[-1]


# ---- what comes in ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", [KICK.hex(), KICK.hex(" ").upper(), KICK.hex("\n", 4), XXD, f"\t{KICK.hex()}\n\n"], ids=range(5)
)
def test_hexadecimal_digits(text: str, tmp_path: Path) -> None:
    wanted = shown("--binary", "-", stdin=KICK)
    (tmp_path / "kick").write_text(text)
    assert [message["name"] for message in wanted] == ["SET_VRING_KICK"]
    assert shown(tmp_path / "kick") == wanted
    assert shown("--hex", tmp_path / "kick") == wanted
    assert shown(stdin=text.encode()) == wanted


def test_digits_on_the_command_line() -> None:
    wanted = shown("--binary", "-", stdin=KICK)
    assert shown(KICK.hex()) == shown(KICK.hex(" ")) == shown(*KICK.hex(" ", 4).split()) == wanted


def test_bytes_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "0c"  # digits, and a file
    path.write_bytes(KICK * 2)
    assert [message["offset"] for message in shown(path)] == [0, 20]


def test_bytes_that_could_be_digits(tmp_path: Path) -> None:
    (tmp_path / "digits").write_bytes(b"00 11")
    assert [message["size"] for message in shown("--binary", tmp_path / "digits")] == [5]
    assert [message["size"] for message in shown(tmp_path / "digits")] == [2]


def test_input_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("# Tea\n")
    (tmp_path / "empty").touch()
    assert refused("nothing") == "Error: nothing: no such file, and 'n' is no hexadecimal digit"
    assert refused("123") == "Error: 123: no such file, and 3 hexadecimal digits are no whole number of bytes"
    assert refused("--binary", "00") == "Error: --binary: 00: no such file"
    other = "'#' is no hexadecimal digit; --binary takes the bytes as they are"
    assert refused(tmp_path / "text").endswith(f"text: neither a transcript nor hexadecimal: {other}")
    assert refused(README).endswith(f"README.md: neither a transcript nor hexadecimal: {other}")
    assert refused("--hex", tmp_path / "text").endswith(f"text: {other}")
    assert refused("--hex", "--binary", "00") == "Error: --hex and --binary: the input is one of them"
    assert refused(tmp_path / "empty").endswith("empty: empty")
    assert refused(stdin=b"") == "Error: standard input: empty"
    assert refused(tmp_path).endswith("Is a directory")
    assert refused("/dev/zero") == "Error: /dev/zero: more than 67108864 bytes"
    assert "is not one of" in refused("--from", "tea", "00")


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=1, max_size=100), st.sampled_from([(), ("--json",)]))
def test_any_bytes_are_shown(data: bytes, options: tuple[str, ...]) -> None:
    result = decode("--binary", *options, stdin=data)
    assert result.exit_code in (0, 1)
    assert isinstance(result.exception, SystemExit | None)
    if options:
        assert "".join(f["raw"] for part in json.loads(result.output) for f in part["fields"] if "bits" not in f)


# ---- what is shown ---------------------------------------------------------------------------------------------------


def test_plain_lines_on_a_pipe() -> None:
    """The screen in README.md is what the command prints, in however narrow a window."""
    found = re.search(r"^    \$ vhostuser (decode .*)\n((?:    .*\n)+)", README.read_text(), re.MULTILINE)
    assert found
    run = subprocess.run(
        [sys.executable, "-m", "vhostuser", *found[1].split()],
        capture_output=True,
        text=True,
        check=False,
        env={"COLUMNS": "40"},
    )
    assert run.stdout == textwrap.dedent(found[2]) + "\n"
    assert run.returncode == 1


def test_json_has_what_the_lines_have() -> None:
    (message,) = shown("--fds", 1, KICK.hex())
    assert message | {"fields": message["fields"][-2:]} == {
        "time": None,
        "from": "front-end",
        "offset": 0,
        "size": 20,
        "name": "SET_VRING_KICK",
        "reply": False,
        "fields": [
            {
                "offset": 12,
                "size": 8,
                "name": "no_fd",
                "raw": "0101000000000000",
                "value": True,
                "meaning": "no descriptor comes along",
                "bits": [8, 1],
            },
            {
                "offset": 12,
                "size": 8,
                "name": "reserved",
                "raw": "0101000000000000",
                "value": 0,
                "meaning": "",
                "bits": [9, 55],
            },
        ],
        "broken": [
            {
                "rule": "VU-FD-2",
                "text": "SET_VRING_KICK: 1 descriptors instead of 0",
                "kind": "must",
                "statement": "With no_fd there is no descriptor, without it there is exactly one.",
            }
        ],
    }


def test_colours_on_a_terminal() -> None:
    master, terminal = os.openpty()
    words = [sys.executable, "-m", "vhostuser", "decode", KICK[:-1].hex()]
    environment = {"TERM": "xterm-256color", "COLUMNS": "100"}
    subprocess.run(words, stdout=terminal, stderr=terminal, check=False, env=environment)
    printed = os.read(master, 4096).decode()
    os.close(terminal)
    os.close(master)
    assert "\x1b[1mfront-end: SET_VRING_KICK, 19 bytes" in printed
    assert "\x1b[31mbroken: SET_VRING_KICK: size 8, payload of 7 bytes" in printed


def test_programs_that_serve_start_without_what_draws_tables() -> None:
    script = "import sys, vhostuser.cli; print([name for name in sys.modules if name.startswith('rich')])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_whose_requests_and_replies_they_are() -> None:
    config_changed = encode(Direction.BACKEND, BackendRequest.CONFIG_CHANGE_MSG).encode()
    acked = encode_ack(BackendRequest.CONFIG_CHANGE_MSG, 0).encode()
    messages = shown("--from", "back-end", (config_changed + acked).hex())
    assert [(message["name"], message["from"], message["reply"]) for message in messages] == [
        ("CONFIG_CHANGE_MSG", "back-end", False),
        ("CONFIG_CHANGE_MSG", "front-end", True),
    ]


def test_the_names_of_a_devices_features() -> None:
    data = encode(Direction.FRONTEND, R.SET_FEATURES, m.U64(1 << 15 | 1 << 32)).encode().hex()
    assert shown(data)[0]["fields"][-1]["meaning"] == "bit 15, VERSION_1"
    assert shown("--device", "net", data)[0]["fields"][-1]["meaning"] == "MRG_RXBUF, VERSION_1"


def test_elements_that_are_zero_share_a_row() -> None:
    sizes = m.ShmemConfig(1, (0, 4096, *[0] * 254))
    data = Frame(R.GET_SHMEM_CONFIG, 5, build(sizes)).encode().hex()
    lines = decode(data).output.splitlines()
    assert [line.split() for line in lines[6:]] == [
        ["16", "4", "padding", "00000000"],
        ["20", "8", "memory_sizes[0]", "0"],
        ["28", "8", "memory_sizes[1]", "0x1000"],
        ["36", "2032", "memory_sizes[2..255]", "0"],
        [],
    ]
    assert len(shown(data)[0]["fields"]) == 3 + 2 + 256


def test_the_longest_payload_and_a_longer_one() -> None:
    for size, status in ((MAX_PAYLOAD, 0), (MAX_PAYLOAD + 1, 1)):
        data = Frame(R.CREATE_CRYPTO_SESSION, 1, bytes(size)).encode()
        assert decode("--binary", stdin=data).exit_code == status


# ---- transcripts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(TRANSCRIPTS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_recorded_conversations_break_no_rule(path: Path) -> None:
    said = [entry for entry in load(path).entries if isinstance(entry, Said)]
    result = decode(path)
    assert result.exit_code == 0
    assert "broken" not in result.output
    assert "surplus" not in result.output
    headings = [line for line in result.output.splitlines() if line and not line.startswith(" ")]
    assert len(headings) == len(said)
    for heading, entry in zip(headings, said, strict=True):
        name = R(entry.request).name + " reply" * entry.is_reply
        assert heading.startswith(f"{entry.time:.6f} s  {entry.side.value}: {name}, ")
    assert result.output.count("  header.request  ") == len(said)


def test_what_a_transcript_says_of_a_message(tmp_path: Path) -> None:
    """Of the back-end's own channel, of descriptors, of a message that was not sent to its end."""
    lines: list[dict[str, Any]] = [
        {"format": "vhost-user transcript 2"},
        {"time": 0.5, "from": "back-end", "own_channel": True, "request": "VRING_CALL", "flags": 1,
         "payload": "0000000000000000"},
        {"from": "front-end", "request": "SET_VRING_CALL", "flags": 1, "payload": "0000000000000000",
         "fds": [{"name": "a", "kind": "eventfd"}] * 2},
        {"event": "pause", "seconds": 1},
        {"from": "front-end", "request": 99, "flags": 1, "payload": "00000000", "cut": 14},
    ]  # fmt: skip
    path = tmp_path / "transcript"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    call, two, unknown = shown(path)
    assert (call["time"], call["from"], call["name"], call["broken"]) == (0.5, "back-end", "VRING_CALL", [])
    assert [broken["rule"] for broken in two["broken"]] == ["VU-FD-2"]
    assert (unknown["size"], [broken["rule"] for broken in unknown["broken"]]) == (14, ["VU-HDR-1"])
    path.write_text('{"format": "vhost-user transcript 2"}\n{"from": "tea"}\n')
    assert "transcript:2: " in refused(path)
    path.write_text('{"tea": 1}\n')
    assert "transcript:1: format None" in refused(path)


# ---- any bytes -------------------------------------------------------------------------------------------------------


def test_mutations_of_recorded_messages() -> None:
    """The short form of ``scripts/soak decode``."""
    told = mutations(3000, seed=7)
    assert told["samples"] == 3000 < told["messages"]
    assert told["samples that break a rule"] > 500
    assert len(told["rules broken"]) > 10
