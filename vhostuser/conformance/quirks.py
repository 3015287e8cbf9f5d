"""What is known of peers that differ from the specification, by peer.

Must not know: how checks are run.

A known quirk stays what it is, a failure or a difference, and counts as one; it is named, so that whoever reads the
results need not find it out again.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vhostuser.conformance.suite import Result


@dataclass(frozen=True)
class Quirk:
    """A way in which a peer differs.

    Attributes:
        name: What it is called.
        text: What the peer does.
        checks: Patterns of the checks that find it.
    """

    name: str
    text: str
    checks: tuple[str, ...]

    def explains(self, result: Result) -> bool:
        """Whether a result is this one."""
        return any(fnmatchcase(result.check.name, pattern) for pattern in self.checks)


_COPIES_FLAGS = Quirk(
    "copied-flags",
    "replies have the request's flags, NEED_REPLY and reserved ones too, and REPLY added",
    ("framing.a_reply_repeats_the_request",),
)
_LOOKS_AT_NO_FLAGS = Quirk(
    "flags-unread",
    "neither version nor REPLY flag of a request is looked at",
    ("framing.another_version_closes", "framing.a_request_with_the_reply_flag_closes"),
)
_ALWAYS_ACKNOWLEDGES = Quirk(
    "unasked-acks",
    "NEED_REPLY is honoured without REPLY_ACK",
    ("replies.without_reply_ack_*", "replies.the_new_bits_*"),
)
_UNSEALED = Quirk(
    "sigbus",
    "memory, or a dirty log, that the front-end shrinks kills the process (SIGBUS)",
    ("memory.*_shrinks_*", "memory.*_that_is_gone", "vanishing_memory.*", "log.a_log_that_vanishes_*"),
)

LIBVHOST_USER = (
    _COPIES_FLAGS,
    _LOOKS_AT_NO_FLAGS,
    _ALWAYS_ACKNOWLEDGES,
    _UNSEALED,
    Quirk(
        "ring-index",
        "ring indices are not checked in SET_VRING_NUM, ADDR, BASE and GET_VRING_BASE: memory beyond the table is used",
        ("ring_values.*_that_is_not_there", "replies.a_refusal_is_an_empty_reply", "endurance.wild_frames_*"),
    ),
    Quirk(
        "ring-values",
        "sizes, positions, alignment and enable bits of rings are taken as they come",
        (
            "ring_values.a_switch_*",
            "ring_values.the_size_*",
            "ring_values.a_split_position_has_*",
            "ring_values.parts_of_*",
            "rings.no_enabling_*",
        ),
    ),
    Quirk(
        "fd-count",
        "descriptors are not counted: surplus ones are kept, missing ones are taken for -1",
        ("descriptors.*", "payloads.regions_without_*", "payloads.one_to_eight_regions", "memory.regions_without_*"),
    ),
    Quirk("kick-word", "bits 9 to 63 of SET_VRING_KICK, CALL and ERR are not looked at", ("payloads.the_word_of_*",)),
    Quirk(
        "failed-is-zero",
        "a request that failed is acknowledged with zero, unless the connection is closed",
        ("replies.what_failed_*", "log.a_log_without_its_feature_*", "log.a_log_that_cannot_be_*"),
    ),
    Quirk(
        "first-kick",
        "a ring that is started waits for its first kick, as the specification once said",
        ("rings.what_was_available_before_the_start_*", "rings.a_ring_without_a_kick_descriptor_*"),
    ),
    Quirk(
        "config-offset",
        "GET_CONFIG is answered from the beginning of the configuration space, whatever the offset",
        ("own_matters.a_piece_of_*", "own_matters.what_is_past_*", "payloads.a_piece_of_configuration_space"),
    ),
    Quirk(
        "postcopy-addresses",
        "in post-copy the regions are answered with the front-end's addresses, and each userfaultfd is kept",
        ("postcopy.*",),
    ),
    Quirk(
        "slot-by-address",
        "REM_MEM_REG looks at the guest-physical address alone, and unmaps what a ring is using",
        ("slots.what_names_a_region", "slots.a_region_with_a_running_ring_*"),
    ),
    Quirk(
        "log-assertion", "a write outside the dirty log is an assertion: the process ends", ("log.nothing_beyond_*",)
    ),
    Quirk(
        "table-alone", "an indirect table is understood as a whole chain only", ("chains.normal_descriptors_then_*",)
    ),
)
"""libvhost-user of QEMU 7.2, as in qemu-storage-daemon."""

DPDK = (
    _COPIES_FLAGS,
    _LOOKS_AT_NO_FLAGS,
    _ALWAYS_ACKNOWLEDGES,
    _UNSEALED,
    Quirk("whole-header", "a header that comes in pieces closes the connection", ("framing.a_message_may_come_in_*",)),
    Quirk(
        "ring-values",
        "positions, alignment and enable bits of rings are taken as they come",
        (
            "ring_values.a_switch_*",
            "ring_values.a_split_position_has_*",
            "ring_values.parts_of_*",
            "rings.no_enabling_*",
        ),
    ),
    Quirk(
        "half-a-base",
        "GET_VRING_BASE of a packed ring tells where it fetches, not where it uses",
        ("ring_values.a_packed_position_has_*",),
    ),
    Quirk("kick-word", "bits 9 to 63 of SET_VRING_KICK, CALL and ERR are not looked at", ("payloads.the_word_of_*",)),
    Quirk(
        "disabled-rests",
        "a ring that is started and disabled is left alone, not emptied",
        ("rings.rings_are_disabled_*", "rings.a_disabled_ring_*"),
    ),
    Quirk(
        "status-kept",
        "SET_STATUS is stored and without effect: 0 resets nothing, FEATURES_OK is always granted",
        ("resets.status_0_*", "resets.after_status_0_*", "resets.features_ok_*"),
    ),
    Quirk(
        "fd-leaks",
        "descriptors of tables that are refused, and of some requests that are not expected, are kept",
        ("endurance.wild_frames_*", "replies.what_failed_*", "memory.*", "payloads.*regions*"),
    ),
    Quirk(
        "blocking-call",
        "a call descriptor that blocks and is full stops the thread that polls",
        ("ring_descriptors.odd_call_*",),
    ),
    Quirk("populates", "memory is mapped with all of its pages at once", ("memory.a_table_of_more_*",)),
)
"""DPDK 22.11's vhost library, as in net_vhost."""

RUST_VMM = (
    Quirk("one-owner", "a second SET_OWNER is refused", ("negotiation.an_owner_*",)),
    Quirk(
        "whole-payload", "a payload that comes in pieces closes the connection", ("framing.a_message_may_come_in_*",)
    ),
    Quirk("refuses-by-leaving", "what is refused without NEED_REPLY ends the connection", ("framing.an_unknown_*",)),
    Quirk("logs-on", "LOG_ALL that is taken back goes on being followed", ("log.nothing_is_logged_without_*",)),
    Quirk("log-address", "the address for a used ring's log is not looked at", ("log.a_used_ring_is_logged_*",)),
    Quirk("bit-21", "SHMEM has the number of GPA_ADDRESSES before 0.17", ("slots.ring_addresses_*", "slots.user_*")),
)
"""rust-vmm's vhost and vhost-user-backend crates, from their source."""

PEERS: dict[str, tuple[Quirk, ...]] = {"libvhost-user": LIBVHOST_USER, "dpdk": DPDK, "rust-vmm": RUST_VMM}
"""The peers, and what is known of each."""
