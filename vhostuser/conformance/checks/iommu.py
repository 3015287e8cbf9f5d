"""Addresses that an IOMMU translates: what is asked, what is used, and what is withdrawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostuser.conformance.check import checks, each_layout
from vhostuser.conformance.iommu import (
    BOTH,
    LAYOUT,
    PROTOCOL,
    READ,
    ROOM,
    WRITE,
    behind_an_iommu,
    invalidate,
    miss,
    missed,
    update,
    withheld_job,
)
from vhostuser.conformance.violation import Violation
from vhostuser.frontend.dirty import PAGE
from vhostuser.frontend.iommu import IOVA_BASE
from vhostuser.frontend.split import DriverRing, Used
from vhostuser.wire.features import ProtocolFeature, VhostFeature
from vhostuser.wire.messages import U64, Iotlb, IotlbType, Log
from vhostuser.wire.requests import BackendRequest, FrontendRequest

if TYPE_CHECKING:
    from vhostuser.conformance.driver import Driver
    from vhostuser.conformance.own_channel import OwnChannel
    from vhostuser.conformance.probe import Probe
    from vhostuser.wire.messages import Message

B, P, R, V = BackendRequest, ProtocolFeature, FrontendRequest, VhostFeature
_NEEDS = (V.ACCESS_PLATFORM, P.BACKEND_REQ)
_KICKS = 10
_MOST = 2048  # translations that are kept
_IN_A_PAGE = PAGE // 16  # descriptors


@checks("VU-IOTLB-1", needs=_NEEDS)
async def buffers_are_translated(probe: Probe) -> None:
    driver, _ = await behind_an_iommu(probe)
    await driver.served(3)
    if probe.offer.echo:
        await driver.effective()


@checks("VU-IOTLB-1", needs=(*_NEEDS, V.RING_PACKED))
async def buffers_are_translated_with_packed_rings(probe: Probe) -> None:
    driver, _ = await behind_an_iommu(probe, virtio=V.RING_PACKED)
    await driver.served(3)


@checks("VU-IOTLB-2", needs=_NEEDS)
async def an_update_replaces_what_it_overlaps(probe: Probe) -> None:
    driver, own = await behind_an_iommu(probe)
    second, _ = LAYOUT[1]
    await update(driver, second, ROOM)
    await update(driver, second + ROOM - PAGE, PAGE)
    job = withheld_job(driver)
    asked = await missed(own)
    if asked.iova // PAGE != job // PAGE:
        raise Violation(f"a miss for {job:#x} is due, whose translation was replaced in part; came {asked}")
    await update(driver, second, ROOM)
    await driver.used(1)


@checks("VU-IOTLB-2", needs=_NEEDS)
async def an_invalidation_withdraws_what_it_touches(probe: Probe) -> None:
    driver, own = await behind_an_iommu(probe)
    second, _ = LAYOUT[1]
    await update(driver, second, ROOM)
    await invalidate(driver, second + ROOM - PAGE, 1)
    withheld_job(driver)
    await missed(own)
    await update(driver, second, ROOM)
    await driver.used(1)


@checks("VU-IOTLB-3", needs=_NEEDS)
async def what_was_withdrawn_is_not_used(probe: Probe) -> None:
    driver, own = await behind_an_iommu(probe)
    second, size = LAYOUT[1]
    for _ in range(3):
        await update(driver, second, size)
        withheld_job(driver)
        await driver.used(1)
        await invalidate(driver, second, size)
        withheld_job(driver)
        await missed(own)
        await driver.left_alone(kick=False)  # a kick would have it ask again, and the next round find that
        await update(driver, second, size)
        await driver.used(1)


@checks("VU-IOTLB-4", needs=_NEEDS)
async def translations_that_cannot_be_are_refused(probe: Probe) -> None:
    driver, _ = await behind_an_iommu(probe)
    await driver.served()
    connection = driver.connection
    uaddr = driver.memory.userspace_addr(LAYOUT[1][0])
    for bad in (
        Iotlb(0, 0, uaddr, BOTH, IotlbType.UPDATE),
        Iotlb((1 << 64) - 1, 2, uaddr, BOTH, IotlbType.UPDATE),
        Iotlb(0, PAGE, 0x1000, BOTH, IotlbType.UPDATE),
        Iotlb(0, PAGE, uaddr, 0, IotlbType.UPDATE),
        Iotlb(0, PAGE, uaddr, 7, IotlbType.UPDATE),
        Iotlb(0, PAGE, 0, BOTH, IotlbType.MISS),
        Iotlb(0, PAGE, 0, BOTH, 9),
        Iotlb(0x1000, 0, 0, 0, IotlbType.INVALIDATE),
        Iotlb((1 << 64) - 1, 2, 0, 0, IotlbType.INVALIDATE),
    ):
        await connection.refused(connection.frame(R.IOTLB_MSG, bad))
    await driver.served()


@checks("VU-IOTLB-4", needs=_NEEDS)
async def invalidating_nothing_at_0_withdraws_everything(probe: Probe) -> None:
    driver, own = await behind_an_iommu(probe)
    await driver.served()
    await invalidate(driver, 0, 0)
    driver.give()
    driver.kick(driver.work)
    await missed(own)


@checks("VU-IOTLB-4", "VU-REP-8")
async def translations_without_the_feature_are_refused(probe: Probe) -> None:
    connection = await probe.negotiated()
    frame = connection.frame(R.IOTLB_MSG, Iotlb(0, 0, 0, 0, IotlbType.INVALIDATE))
    await connection.refused(frame)


@checks("VU-IOTLB-5", needs=_NEEDS)
async def the_oldest_translation_goes_first(probe: Probe) -> None:
    driver, own = await behind_an_iommu(probe, known=False, start=False)
    second, _ = LAYOUT[1]
    for number in range(_MOST):
        await update(driver, second + number * PAGE, PAGE)
    await update(driver, *LAYOUT[0])
    await driver.start_all()
    driver.memory.alloc(64, region=1)  # the first page
    driver.give(region=1)
    driver.kick(driver.work)
    message = await own.asked(B.IOTLB_MSG, "for an address that is not translated")
    asked = miss(message)
    if asked.iova // PAGE != second // PAGE:
        raise Violation(
            f"of {_MOST + 1} translations the oldest, of {second:#x}, is to be asked for again; came {asked}"
        )
    await update(driver, second, PAGE)
    await own.answer(message)  # not before: see a_miss_is_asked_for_and_the_ring_goes_on
    await driver.used(1)
    driver.memory.alloc(4 * PAGE, PAGE, 1)
    driver.give(region=1)
    driver.kick(driver.work)
    await driver.used(1)
    await own.silent("a page whose translation is one of the last 2048 was used")


@checks("VU-IOTLB-6", needs=_NEEDS)
async def a_new_memory_table_keeps_translations(probe: Probe) -> None:
    driver, own = await behind_an_iommu(probe)
    await driver.served(2)
    await driver.tell_memory()
    await driver.served(2)
    await own.silent("a memory table with the same memory came")


@checks("VU-IOTLB-7", needs=_NEEDS)
async def a_ring_waits_until_its_addresses_are_translated(probe: Probe) -> None:
    driver, own = await behind_an_iommu(probe, known=False)
    driver.give()
    asked = await missed(own)
    first, size = LAYOUT[0]
    if not first <= asked.iova < first + size:
        raise Violation(f"a miss in the rings' memory, {first:#x}+{size:#x}, is due, came {asked}")
    await driver.left_alone()
    await update(driver, first, size)
    await driver.used(1)


@checks("VU-IOTLB-8", needs=_NEEDS)
async def an_access_that_is_not_allowed(probe: Probe) -> None:
    driver, own = await behind_an_iommu(probe)
    second, size = LAYOUT[1]
    allowed, wanted = (READ, WRITE) if probe.device.writes else (WRITE, READ)
    await update(driver, second, size, allowed)
    page = driver.memory.alloc(PAGE, PAGE, 1)
    buffer = (page, 128)
    if probe.device.writes:
        driver.work.add(writable=[buffer])
    else:
        driver.work.add(readable=[buffer])
    driver.kick(driver.work)
    message = await own.asked(B.IOTLB_MSG, "of type ACCESS_FAIL")
    await own.answer(message)
    told = message.payload
    if not isinstance(told, Iotlb) or (told.type, told.iova // PAGE, told.perm) != (
        IotlbType.ACCESS_FAIL,
        page // PAGE,
        wanted,
    ):
        raise Violation(f"ACCESS_FAIL of {page:#x} for {wanted} is due, came {message}")
    [used] = await driver.used(1)
    if used.written:
        raise Violation(f"a buffer that may not be used came back with {used.written} bytes written")
    await driver.served()


@checks("VU-IOTLB-9", needs=_NEEDS)
async def a_miss_that_is_not_answered_stalls_its_ring_alone(probe: Probe) -> None:
    driver, own = await behind_an_iommu(probe)
    await driver.served()
    withheld_job(driver)
    await own.asked(B.IOTLB_MSG)
    await driver.connection.talks()
    await driver.left_alone()
    if (position := await driver.stop(driver.work)) & 0xFFFF != 1:
        raise Violation(f"GET_VRING_BASE: {position:#x}, one chain was used and the next one waits for its translation")


@checks("VU-IOTLB-9", needs=_NEEDS)
async def a_miss_that_is_refused_is_asked_for_again(probe: Probe) -> None:
    driver, own = await behind_an_iommu(probe)
    second, size = LAYOUT[1]
    withheld_job(driver)
    await missed(own, 1)
    await driver.left_alone(kick=False)
    for _ in range(_KICKS):  # the first may come before the back-end has read the refusal
        driver.kick(driver.work)
        if (message := await own.asked_in_silence()) is not None:
            miss(message)
            await own.answer(message)
            break
    else:
        raise Violation(f"a miss was refused, and is not asked for again by any of {_KICKS} kicks")
    await update(driver, second, size)
    await driver.used(1)


@checks("VU-IOTLB-10", needs=_NEEDS)
async def a_miss_is_asked_for_and_the_ring_goes_on(probe: Probe) -> None:
    driver, own = await behind_an_iommu(probe)
    for _ in range(3):
        page = withheld_job(driver)
        message = await own.asked(B.IOTLB_MSG, "for an address that is not translated")
        asked = miss(message)
        perm = WRITE if probe.device.writes and not _reads_first(driver) else READ
        if asked.iova // PAGE != page // PAGE or not asked.perm & perm:
            raise Violation(f"a miss for {page:#x} and permission {perm} is due, came {asked}")
        await driver.left_alone(kick=False)
        await update(driver, page & -PAGE, PAGE)
        # Not before: the kick may be read late, and a page that is not asked for any more is asked for again by a kick.
        await own.answer(message)
        await driver.used(1)


def _reads_first(driver: Driver) -> bool:
    return bool(driver.device.job(driver.memory).readable)


@checks("VIO-MEM-2", needs=_NEEDS)
@each_layout
async def a_chain_that_waits_holds_up_those_behind_it(probe: Probe, layout: int) -> None:
    driver, own = await behind_an_iommu(probe, virtio=layout)
    first = driver.give()
    page = driver.memory.alloc(PAGE, PAGE, 1) + PAGE
    second, third = driver.give(region=1), driver.give()
    driver.kick(driver.work)
    order = [used.head for used in await driver.used(1)]
    await missed(own)
    await driver.left_alone(kick=False)
    await update(driver, page, PAGE)
    order += [used.head for used in await driver.used(2)]
    if order != [first, second, third]:
        raise Violation(f"chains {first}, {second}, {third}, the second waits for its translation; used were {order}")


@checks("VU-IOTLB-11", needs=_NEEDS)
async def a_page_is_asked_for_once_at_a_time(probe: Probe) -> None:
    driver, own = await behind_an_iommu(probe, known=False, start=False)
    first, size = LAYOUT[0]
    for index in range(probe.device.rings):
        driver.make_ring(index, 16)  # all of them in one page
    for ring in driver.rings.values():
        driver.post(ring)
        await driver.start(ring)
    first_of_them = await own.asked(B.IOTLB_MSG, "for an address that is not translated")
    await driver.left_alone(kick=False)  # until all kicks are read: the next one after the answer may ask again
    asked = [miss(first_of_them)]
    await own.answer(first_of_them)
    while (message := await own.asked_in_silence()) is not None:
        asked.append(miss(message))
        await own.answer(message)
    pages = [iotlb.iova // PAGE for iotlb in asked]
    if len(pages) != len(set(pages)):
        raise Violation(f"{len(driver.rings)} rings in the same pages wait; asked for: {', '.join(map(str, asked))}")
    await update(driver, first, size)
    await driver.served()


@checks("VU-IOTLB-12", needs=_NEEDS)
async def translations_end_with_the_last_ring(probe: Probe) -> None:
    driver, own = await behind_an_iommu(probe)
    await driver.served()
    await driver.stop_all()
    for ring in driver.rings.values():
        await driver.start(ring)
    await missed(own)
    await update(driver, *LAYOUT[0])
    await driver.served()


@checks("VU-IOTLB-13", needs=(*_NEEDS, P.LOG_SHMFD, V.LOG_ALL))
async def the_log_is_by_guest_physical_address(probe: Probe) -> None:
    driver, _ = await behind_an_iommu(probe, PROTOCOL | P.LOG_SHMFD)
    log = probe.dirty_log(LAYOUT[1][0] - IOVA_BASE + ROOM)
    await driver.connection.accepted(R.SET_LOG_BASE, Log(log.size, 0), [log.fd.fileno()])
    await driver.connection.accepted(R.SET_FEATURES, U64(driver.connection.features | V.LOG_ALL))
    for ring in driver.rings.values():
        addr = driver.vring_addr(ring, ring.used_addr - IOVA_BASE)
        await driver.connection.accepted(R.SET_VRING_ADDR, addr)
    driver.memory.watch()
    log.take()
    await (driver.effective() if probe.offer.echo else driver.served(2))
    await driver.stop_all()
    written = {page - IOVA_BASE for page in driver.memory.foreign()}
    if missing := written - log.take():
        raise Violation(f"pages {', '.join(map(hex, sorted(missing)))} were written and are not in the log")


@checks("VU-IOTLB-14", needs=_NEEDS)
async def the_pages_of_a_ring_lie_anywhere(probe: Probe) -> None:
    driver, _ = await behind_an_iommu(probe, start=False)
    driver.make_rings()
    ring = driver.make_ring(driver.device.ring, 512, region=1)  # its table takes two pages
    assert isinstance(ring, DriverRing)
    heads = [driver.give()]
    while heads[-1] < _IN_A_PAGE:
        heads.append(driver.give())
    done = heads[:-1]  # all in the first page are used already
    for slot, head in enumerate(done):
        ring.set_used(slot, Used(head, 0))
        driver.forget(head)
    ring.used_idx = ring.base = len(done)
    ring.reap()
    memory, second = driver.memory, ring.desc_addr + PAGE
    elsewhere = memory.alloc(PAGE, PAGE, 1)
    memory.write(elsewhere, memory.read(second, PAGE))
    memory.write(ring.desc_addr, b"\xff" * (2 * PAGE))  # no descriptor is like that
    begin, size = LAYOUT[1]
    for iova, length, to in (
        (begin, second - begin, begin),
        (second, PAGE, elsewhere),
        (second + PAGE, begin + size - second - PAGE, second + PAGE),
    ):
        await update(driver, iova, length, to=to)
    for each in driver.rings.values():
        await driver.start(each)
    await driver.used(1)


@checks("VU-IOTLB-14", needs=_NEEDS)
async def a_ring_whose_translation_ends_within_a_page_breaks(probe: Probe) -> None:
    driver, own = await behind_an_iommu(probe, start=False)
    driver.make_rings()
    ring = driver.make_ring(driver.device.ring, 512, region=1)  # its table takes two pages
    for each in driver.rings.values():
        await driver.start(each)
    await missed(own)
    begin, size = LAYOUT[1]
    end = ring.desc_addr + PAGE + PAGE // 2
    await update(driver, begin, end - begin)
    await update(driver, end, begin + size - end - PAGE, to=end + PAGE)
    await driver.signalled(ring.err_fd.fileno(), "err, of a ring whose table is not side by side in memory,")
    await driver.connection.talks()


@checks("VU-BACK-2", needs=_NEEDS)
async def without_reply_ack_nothing_is_waited_for(probe: Probe) -> None:
    driver, own = await behind_an_iommu(probe, P.BACKEND_REQ | P.MQ)
    message = await _asked_for_a_job(driver, own)
    if message.need_reply:
        raise Violation(f"REPLY_ACK is not acknowledged, and {message} asks for an acknowledgement")
    page = miss(message).iova & -PAGE
    await update(driver, page, PAGE)
    await driver.used(1)
    await _asked_for_a_job(driver, own)


async def _asked_for_a_job(driver: Driver, own: OwnChannel) -> Message:
    withheld_job(driver)
    return await own.asked(B.IOTLB_MSG, "for an address that is not translated")
