"""Where connections come from: paths to listen at, paths to connect to, inherited descriptors."""

# ruff: noqa: ASYNC240 - a temporary directory blocks nobody

from __future__ import annotations

import errno
import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from vhostuser.errors import ConnectionClosedError, EndpointError
from vhostuser.transport.channel import Channel
from vhostuser.transport.endpoints import (
    BACKLOG,
    RETRY_MAX,
    Connector,
    Endpoint,
    connect,
    from_fd,
    listen,
)
from vhostuser.wire.frames import Frame

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vhost.sock"


async def ask(channel: Channel, request: int) -> int:
    await channel.send(Frame(request, 0x1))
    return (await channel.receive()).request


async def echo(channel: Channel) -> None:
    """Serve one client until it leaves."""
    async with channel:
        while True:
            try:
                frame = await channel.receive()
            except ConnectionClosedError:
                return
            await channel.send(frame)


async def serve(endpoint: Endpoint) -> None:
    async for channel in endpoint:
        await echo(channel)


####
# Listening
####


async def test_a_client_is_served(path: Path) -> None:
    async with await listen(path) as endpoint, trio.open_nursery() as nursery:
        nursery.start_soon(serve, endpoint)
        async with await connect(path) as client:
            assert await ask(client, 7) == 7
        nursery.cancel_scope.cancel()


async def test_the_second_client_waits_for_its_turn(path: Path) -> None:
    answers: list[str] = []

    async def second() -> None:
        async with await connect(path) as client:
            await ask(client, 2)
            answers.append("second")

    async with await listen(path) as endpoint, trio.open_nursery() as nursery:
        nursery.start_soon(serve, endpoint)
        async with await connect(path) as client:
            await ask(client, 1)
            nursery.start_soon(second)
            await trio.testing.wait_all_tasks_blocked()
            assert await ask(client, 3) == 3
            answers.append("first")
        while len(answers) < 2:
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert answers == ["first", "second"]


async def test_close_removes_the_path(path: Path) -> None:
    async with await listen(path):
        assert stat.S_ISSOCK(path.stat().st_mode)
    assert not path.exists()


async def test_close_leaves_what_another_server_put_there(path: Path) -> None:
    async with await listen(path):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
    assert path.exists()


async def test_close_with_the_path_gone(path: Path) -> None:
    async with await listen(path):
        path.unlink()


async def test_a_stale_socket_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(str(path))
        crashed.listen()
    async with await listen(path) as endpoint, trio.open_nursery() as nursery:
        nursery.start_soon(serve, endpoint)
        async with await connect(path) as client:
            assert await ask(client, 1) == 1
        nursery.cancel_scope.cancel()


async def test_a_live_server_keeps_its_path(path: Path) -> None:
    async with await listen(path):
        with pytest.raises(EndpointError, match="another server listens there"):
            await listen(path)
        assert path.exists()


async def test_a_live_server_with_a_full_backlog_keeps_its_path(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(path))
        server.listen(0)
        client.connect(str(path))
        with pytest.raises(EndpointError, match="another server listens there"):
            await listen(path)


async def test_a_socket_of_another_type_keeps_its_path(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(EndpointError, match="cannot be probed"):
            await listen(path)
        with pytest.raises(EndpointError, match="cannot connect"):
            await connect(path)
    assert path.exists()


async def test_a_regular_file_is_left_alone(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(EndpointError, match="exists and is not a socket"):
        await listen(path)
    assert path.read_text() == "precious"


async def test_a_path_that_cannot_be_bound(tmp_path: Path) -> None:
    with pytest.raises(EndpointError, match="No such file"):
        await listen(tmp_path / "no" / "socket")
    with pytest.raises(EndpointError, match="too long"):
        await listen(tmp_path / ("x" * 120))


async def test_closing_ends_the_wait_for_a_client(path: Path) -> None:
    async with await listen(path) as endpoint, trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await endpoint.next_channel()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await endpoint.aclose()


async def test_out_of_descriptors_accept_waits(
    path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await listen(path) as endpoint:
        accept, failures = endpoint._socket.accept, [errno.EMFILE, errno.ENFILE]

        async def exhausted() -> object:
            if failures:
                raise OSError(failures.pop(), "exhausted")
            return await accept()

        monkeypatch.setattr(endpoint._socket, "accept", exhausted)
        async with await connect(path), await endpoint.accept():
            assert failures == []


####
# Connecting
####


async def test_connect_waits_for_the_path_and_its_server(path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async def appear() -> None:
        await trio.sleep(10)
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        await trio.sleep(10)
        async with await listen(path) as endpoint:
            await echo(await endpoint.accept())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(appear)
        async with await connect(path) as client:
            assert 20 <= trio.current_time() <= 20 + RETRY_MAX
            assert await ask(client, 5) == 5


async def test_connect_waits_for_room_in_the_backlog(path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with await listen(path) as endpoint:
        waiting = [await connect(path) for _ in range(BACKLOG + 1)]
        with trio.move_on_after(60) as scope:
            await connect(path)
        assert scope.cancelled_caught
        await (await endpoint.accept()).aclose()
        await (await connect(path)).aclose()
        for client in waiting:
            await client.aclose()


async def test_connect_to_a_regular_file(path: Path) -> None:
    path.touch()
    with pytest.raises(EndpointError, match="cannot connect"):
        await connect(path)


async def test_a_connector_connects_again(path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with await listen(path) as server, Connector(path) as endpoint, trio.open_nursery() as nursery:
        nursery.start_soon(serve, endpoint)
        for request in (1, 2, 3):
            async with await server.accept() as channel:
                assert await ask(channel, request) == request
        nursery.cancel_scope.cancel()


async def test_a_connector_warns_once_of_a_path_where_nobody_is(
    path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = Connector(path)
    for _ in range(2):
        with trio.move_on_after(5):
            await endpoint.next_channel()
    assert caplog.messages == [f"{path}: No such file or directory; trying on"]


async def test_a_server_that_hangs_up_does_not_keep_us_spinning(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with await listen(path) as server, Connector(path) as endpoint:
        begin = trio.current_time()
        for _ in range(11):
            channel = await endpoint.next_channel()
            await (await server.accept()).aclose()
            await channel.aclose()
        assert trio.current_time() - begin == pytest.approx(1)


####
# Inherited descriptors
####


async def test_a_connected_descriptor_serves_once() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with theirs:
        async with from_fd(ours.detach()) as endpoint, trio.open_nursery() as nursery:
            nursery.start_soon(serve, endpoint)
            async with Channel(trio.socket.from_stdlib_socket(theirs)) as client:
                assert await ask(client, 9) == 9


async def test_a_connected_descriptor_that_nobody_took_is_closed() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with theirs:
        async with from_fd(ours.detach()):
            assert theirs.send(b"x") == 1
        with pytest.raises(BrokenPipeError):
            theirs.send(b"x")


async def test_a_listening_descriptor_serves_on_and_leaves_its_path(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made_by_a_manager:
        made_by_a_manager.bind(str(path))
        made_by_a_manager.listen()
        fd = made_by_a_manager.detach()
    async with from_fd(fd) as endpoint, trio.open_nursery() as nursery:
        nursery.start_soon(serve, endpoint)
        for request in (1, 2):
            async with await connect(path) as client:
                assert await ask(client, request) == request
        nursery.cancel_scope.cancel()
    assert path.exists()


async def test_an_adopted_descriptor_is_not_inherited_further() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with theirs:
        ours.set_inheritable(True)
        fd = ours.detach()
        async with from_fd(fd):
            assert not os.get_inheritable(fd)


@pytest.mark.parametrize(
    ("family", "kind", "reason"),
    [
        (socket.AF_INET, socket.SOCK_STREAM, "family AF_INET"),
        (socket.AF_UNIX, socket.SOCK_SEQPACKET, "type SOCK_SEQPACKET"),
        (socket.AF_UNIX, socket.SOCK_STREAM, "neither listening nor connected"),
    ],
)
def test_other_sockets_are_refused_and_stay_the_callers(family: int, kind: int, reason: str) -> None:
    with socket.socket(family, kind) as sock:
        with pytest.raises(EndpointError, match=reason):
            from_fd(sock.fileno())
        os.fstat(sock.fileno())


def test_what_is_no_socket_is_refused() -> None:
    with open("/dev/null") as null, pytest.raises(EndpointError, match="is no socket"):
        from_fd(null.fileno())
    for fd in (-1, 999_999):
        with pytest.raises(EndpointError, match=f"descriptor {fd} is no socket"):
            from_fd(fd)
